"""The plan of an edge as plain JSON: settings and model, never code.

`write_plan` makes it in the cluster of what a party's actor would get, `read_plan`
rebuilds at the edge what `PartyGroup` trains by. A model is a list of layers that
fedray knows, or code (an architecture, a model class) that already lies at the edge and
is named there. Nothing in a plan is run.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedray import data, models
from fedray.config import RunConfig
from fedray.config.conversion import convert_values
from fedray.errors import ConfigError, FedrayError
from fedray.models import Blueprint
from fedray.models.pytorch.safe_load import MAX_ENTRIES, MAX_LAYERS, Layer
from fedray.models.untrusted import MAX_TENSORS, UnsafeFile
from fedray.party import GroupPlan
from fedray.untrusted_text import name_problem
from fedray.user_code import Source, is_source
from fedray.weights import KINDS, MAX_DIMENSIONS, Form, Schema, size_of

FORMAT = 1
MAX_BYTES = 16 << 20  # of a plan
# keys that reach a party's training or its answers; all others stay in the cluster
SETTINGS = (
    "fusion_algorithm", "aggregation", "rounds", "seed", "wire_dtype",
    "epochs", "local_steps", "batch_size", "drop_last", "stacked",
    "learning_rate", "scheduler", "scheduler_args", "scheduler_every",
    "optimizer", "optimizer_args", "loss", "loss_args",
    "proximal_mu", "gradient_clip_norm", "mixed_precision",
    "personal", "personal_epochs", "ditto_lambda", "finetune_epochs",
    "data_args", "metrics", "evaluate_every", "compare",
    "quorum", "party_fraction", "over_select", "late", "round_timeout_s",
    "max_update_norm", "max_refused", "keep_checkpoints", "dp_sgd",
    "n_hostile", "n_selected", "bucketing", "clip_norm",
)  # fmt: skip
PATH_ARGS = ("test", "tokenizer")  # data_args that are paths: an edge has its own


class EdgePlanError(FedrayError):
    """A plan that an edge was sent cannot be read, or asks for the unknown."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the plan that the service sent cannot be used: {self.reason}"


@dataclass(frozen=True)
class EdgeParty:
    """What the owner of an edge says of it: nothing of this comes from the service.

    name : of the party, as its invitation says.
    data : path, or what a handler of the owner's own is given.
    data_handler : a handler's name, or file.py:ClassName.
    data_args : options of the handler, over those of the plan.
    code : file.py:name of the architecture or model class, if the model is code.
    folder : where this edge keeps what is its own; no other process writes there.
    """

    name: str
    data: str
    data_handler: str
    data_args: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    folder: str = ""


class PlanSummary(NamedTuple):
    """What a plan asks for, for the owner's policy and for people.

    run, run_id : the federation's name and the id of its run.
    model : "layers", "architecture" or "class".
    code : name of the function or class that has to lie at the edge; else empty.
    data_handler : as the config has it; of code its name alone.
    settings : by config key.
    n_bytes : of the weights as they travel.
    """

    run: str
    run_id: str
    model_type: str
    model: str
    code: str
    data_handler: str
    settings: dict[str, Any]
    n_bytes: int


def write_plan(
    plan: GroupPlan, run_id: str, frozen: str = "", n_parties: int = 1
) -> bytes:
    """The plan of an edge as JSON: the same bytes for all edges with the same settings.

    Parameters
    ----------
    plan : as a party's actor in the cluster would get it.
    run_id : under which a party keeps what is its own of this run.
    frozen : SHA-256 of the object with the tensors that travel once; empty: none.
    n_parties : of the run.

    Raises
    ------
    ConfigError
        If it would take code.
    """
    handler = plan.config.handler_of(plan.parties.start)
    plain = {
        "format": FORMAT,
        "run": plan.run,
        "run_id": run_id,
        "n_parties": n_parties,
        "data_handler": _attribute(handler),
        "settings": _settings(plan),
        "model": _write_model(plan.blueprint),
        "frozen": frozen,
    }
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def read_plan(content: bytes, party: EdgeParty) -> GroupPlan:
    """Rebuild what `PartyGroup` trains by; of one party, at place 0.

    Raises
    ------
    EdgePlanError
        If the plan is damaged, or asks for what this version does not know.
    ConfigError, ModelFileError, DataError
        If what the owner named does not fit it.
    """
    plain = _parse(content)
    summary = _summary(plain)
    config = _read_config(summary, plain["n_parties"], party)
    try:
        blueprint = _read_model(plain["model"], config, party)
    except UnsafeFile as error:
        raise EdgePlanError(f"its model cannot be built: {error}") from None
    handler = data.named(party.data_handler, party.data)
    own_folder = f"{party.folder}/{summary.run_id}"
    return GroupPlan(
        party.name, range(1), config, blueprint, handler, summary.run,
        f"{own_folder}/data.sha256", own_folder,
    )  # fmt: skip


def describe_plan(content: bytes) -> PlanSummary:
    """What a plan asks for; nothing of it is built.

    Raises
    ------
    EdgePlanError
        If the plan is damaged.
    """
    return _summary(_parse(content))


def frozen_object(content: bytes) -> str:
    """SHA-256 of the object with the tensors that travel once; empty: there is none."""
    return str(_parse(content)["frozen"])


def _attribute(spec: str) -> str:
    """Name of a function or class in ``file.py:name``; no path leaves the cluster."""
    return spec.rpartition(":")[2] if is_source(spec) else spec


def _settings(plan: GroupPlan) -> dict[str, Any]:
    values = plan.config.explicit_values()
    own = {key: values[key] for key in SETTINGS if key in values}
    args = {k: v for k, v in plan.data_args.items() if k not in PATH_ARGS}
    if plan.config.test_data is not None:
        own.pop("metrics", None)
    return own | ({"data_args": args} if args else {})


def _write_model(blueprint: Blueprint) -> dict[str, Any]:
    if blueprint.loss is not None:
        raise ConfigError([f"loss: {blueprint.loss.attribute} is code: see edges"])
    forms = [[n, list(f.shape), f.dtype] for n, f in blueprint.schema.items()]
    is_class = is_source(blueprint.model_type)
    return {
        "type": "class" if is_class else blueprint.model_type,
        "plan": _write_layers(blueprint.plan),
        "tensors": forms,
        "parameters": list(blueprint.parameters),
        "defaults": blueprint.settings,
        "frozen": list(blueprint.frozen),
        "tied": dict(blueprint.tied),
        "bfloat16": sorted(blueprint.bfloat16),
        "personal": list(blueprint.personal),
        "outside": {k: [f.form, list(f.numbers)] for k, f in blueprint.outside.items()},
    }


def _write_layers(plan: Any) -> dict[str, Any]:
    """Layers as plain data, or the name of the code that makes the model."""
    layers = getattr(plan, "layers", plan)  # of Keras they stand within its plan
    source = getattr(plan, "source", layers)
    if isinstance(source, Source):
        return {"code": source.attribute}
    if isinstance(layers, Layer):
        listed: list[dict[str, Any]] = []
        _list_layer(layers, listed, {})
        return {"layers": listed, "tied": [list(pair) for pair in layers.tied]}
    if isinstance(layers, dict):
        return {"keras": layers}
    what = f"a model of {type(plan).__name__}"
    raise ConfigError([f"{what} cannot be sent to an edge as plain data"])


def _list_layer(layer: Layer, listed: list[Any], places: dict[int, int]) -> int:
    """Append a layer after those inside it, each once; its place."""
    if id(layer) not in places:
        children = [[n, _list_layer(one, listed, places)] for n, one in layer.children]
        places[id(layer)] = len(listed)
        listed.append({"kind": layer.kind, "args": layer.args, "children": children})
    return places[id(layer)]


def _parse(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise EdgePlanError(f"it has {len(content)} bytes, at most {MAX_BYTES} are")
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError):
        raise EdgePlanError("it is not JSON") from None
    if type(plain) is not dict or plain.get("format") != FORMAT:
        got = plain.get("format") if type(plain) is dict else type(plain).__name__
        raise EdgePlanError(f"it is of format {got!r:.40}, {FORMAT} is read here")
    return plain


def _summary(plain: Mapping[str, Any]) -> PlanSummary:
    model = _part(plain, "model", dict)
    plan, settings = _part(model, "plan", dict), _part(plain, "settings", dict)
    unknown = sorted(settings.keys() - set(SETTINGS))
    if unknown:
        raise EdgePlanError(f"it sets {unknown[:5]}, which no edge takes from it")
    _refuse_code_and_paths(settings, _part(model, "type", str))
    kind = "class" if model.get("type") == "class" else "architecture"
    return PlanSummary(
        _part(plain, "run", str),
        _identifier(_part(plain, "run_id", str)),
        _part(model, "type", str),
        kind if "code" in plan else "layers",
        _part(plan, "code", str) if "code" in plan else "",
        _part(plain, "data_handler", str),
        settings,
        size_of(_schema(model)),
    )


def _refuse_code_and_paths(settings: Mapping[str, Any], model_type: str) -> None:
    """Refuse settings that name a file of the edge's: code, or data beside its own."""
    values = [*settings.values(), *(settings.get("metrics") or []), model_type]
    if any(is_source(value) for value in values if isinstance(value, str)):
        raise EdgePlanError("it names code, which no edge takes from it")
    args = settings.get("data_args", {})
    if not isinstance(args, dict) or any(
        isinstance(args.get(key), str) for key in PATH_ARGS
    ):
        raise EdgePlanError("it names a file of data, which its owner does")


def _identifier(text: str) -> str:
    """An id that may be a folder's name."""
    stem, _, digits = text.rpartition("-")
    if name_problem(stem) or not re.fullmatch("[0-9a-f]{32}", digits):
        raise EdgePlanError(f"its run_id {text!r:.60} is none")
    return text


def _part(holder: Mapping[str, Any], key: str, kind: type) -> Any:
    value = holder.get(key)
    if type(value) is not kind:
        raise EdgePlanError(f"its {key} is a {type(value).__name__}")
    return value


def _names(model: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = _part(model, key, list)
    if not all(type(name) is str for name in names):
        raise EdgePlanError(f"its {key} is no list of names")
    return tuple(names)


def _schema(model: Mapping[str, Any]) -> Schema:
    tensors = _part(model, "tensors", list)
    if not 0 < len(tensors) <= MAX_TENSORS:
        raise EdgePlanError(f"it has {len(tensors)} tensors")
    return dict(map(_form, tensors))


def _form(entry: Any) -> tuple[str, Form]:
    match entry:
        case [str() as name, list() as shape, str() as dtype]:
            sizes = all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
            if sizes and len(shape) <= MAX_DIMENSIONS and _is_dtype(dtype):
                return name, Form(tuple(shape), dtype)
    raise EdgePlanError("one of its tensors has no name, shape and dtype")


def _is_dtype(name: str) -> bool:
    return name.rstrip("0123456789") in ("float", "int", "uint", "bool") and (
        name[0] in KINDS
    )


def _read_config(summary: PlanSummary, n_parties: int, party: EdgeParty) -> RunConfig:
    """The settings as a party in the cluster has them, with this party alone."""
    own: dict[str, Any] = {"name": party.name, "data": party.data}
    own["data_handler"] = party.data_handler
    if party.data_args:
        own["data_args"] = dict(party.data_args)
    is_code = summary.model == "architecture"
    settings = {
        **summary.settings,
        "parties": [own],
        "num_parties": n_parties,
        "party_dir": party.folder,
        "model_type": party.code if summary.model == "class" else summary.model_type,
        "architecture": party.code if is_code else None,
    }
    if summary.model != "layers" and not party.code:
        option = "--model-class" if summary.model == "class" else "--architecture"
        what = f"the model is made by {summary.code}, which must lie at this edge: "
        raise ConfigError([f"{what}name it, {option} file.py:{summary.code}"])
    try:
        return RunConfig(**convert_values(settings, RunConfig))
    except ConfigError as error:
        raise EdgePlanError(f"its settings are none: {error.problems[0]}") from None


def _read_model(
    model: Mapping[str, Any], config: RunConfig, party: EdgeParty
) -> Blueprint:
    schema, plan = _schema(model), model["plan"]
    outside: dict[str, Any] = {}
    if "code" in plan:
        own, _ = models.named(config.model_type).read(config)
        if different := _difference(own.schema, schema):
            what = f"{party.code} makes another model than the run has: {different}"
            raise ConfigError([what])
        built, outside = own.plan, own.outside
    elif "layers" in plan:
        built = _read_layers(plan)
    else:
        built = _read_keras(plan)
    return Blueprint(
        config.model_type,
        built,
        schema,
        _names(model, "parameters"),
        _part(model, "defaults", dict),
        outside=outside,
        frozen=_names(model, "frozen"),
        tied=_part(model, "tied", dict),
        bfloat16=frozenset(_names(model, "bfloat16")),
        personal=_names(model, "personal"),
    )


def _difference(own: Schema, needed: Schema) -> str:
    for name in {**own, **needed}:
        if own.get(name) != needed.get(name):
            return f"tensor {name!r} is {own.get(name)}, needed is {needed.get(name)}"
    return ""


def _read_layers(plan: Mapping[str, Any]) -> Layer:
    """The outermost layer; what has no known kind is refused where it is built."""
    listed = _part(plan, "layers", list)
    if not 0 < len(listed) <= MAX_LAYERS:
        raise EdgePlanError(f"its model has {len(listed)} layers")
    layers: list[Layer] = []
    sizes: list[int] = []  # layers in each, one that is used twice counted twice
    for entry in listed:
        match entry:
            case {"kind": str() as kind, "args": dict() as args, "children": list()}:
                children = tuple(_child(one, layers) for one in entry["children"])
                sizes.append(1 + sum(sizes[place] for _, place in entry["children"]))
                if sizes[-1] > MAX_LAYERS:
                    raise EdgePlanError(f"its model has over {MAX_LAYERS} layers")
                layers.append(Layer(kind, _tuples(args), children))
            case _:
                raise EdgePlanError("one of its layers has no kind, args and children")
    if sum(len(layer.args) + len(layer.children) for layer in layers) > MAX_ENTRIES:
        raise EdgePlanError("its layers have too many attributes")
    tied = tuple(
        (str(pair[0]), str(pair[1]))
        for pair in _part(plan, "tied", list)
        if type(pair) is list and len(pair) == len(("name", "earlier"))
    )
    return dataclasses.replace(layers[-1], tied=tied)


def _child(entry: Any, layers: list[Layer]) -> tuple[str, Layer]:
    match entry:
        case [str() as name, int() as place] if 0 <= place < len(layers):
            return name, layers[place]
    raise EdgePlanError("one of its layers has a child that does not come before it")


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read_keras(plan: Mapping[str, Any]) -> Any:
    from fedray.models.keras.build import KerasPlan
    from fedray.models.keras.safe_load import ConfigSanitizer

    return KerasPlan(ConfigSanitizer().sanitize(_part(plan, "keras", dict)))
