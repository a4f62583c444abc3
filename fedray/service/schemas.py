"""Schemas of the REST calls: form fields and their checks, OpenAPI text, JSON answers.

The fields of /start-aggregator are the config keys that are declared with rest=True:
those that name neither code nor a path and take no cores.
"""

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from fedray import data, fusion, models, user_code
from fedray.config import (
    FederationConfig,
    Key,
    describe_unknown,
    describe_unknown_key,
    keys_of,
    parse,
    rest_settings,
)
from fedray.config.conversion import convert_values
from fedray.config.declaration import to_plain
from fedray.errors import ConfigError
from fedray.messages import BUDGET_SPENT, is_budget_spent
from fedray.service.client_words import leave_out_advice
from fedray.service.json_text import read_json, value_problem
from fedray.service.store import TRAINED, State

CONFIG_KEYS, REST_KEYS = keys_of(FederationConfig), rest_settings()
FILES = ("model_file",)
NO_ENSEMBLE = (
    "fusion_algorithm: ensemble is not for REST: one model comes with a federation "
    "here and one is given back, an ensemble has one of each party; take another"
)
NOT_FIELDS = {  # config keys that are none, and what REST has instead
    **dict.fromkeys(
        ("architecture", "architecture_args"),
        "the model comes whole, as the file model_file",
    ),
    "data_handler": "each party has its own: data_handler_class_name of /start-party",
    "parties": "they join by POST /start-party; num_parties says how many",
    "partition": "parties join by POST /start-party; num_parties says how many",
    **dict.fromkeys(
        ("clients", "num_clients", "n_clients"), "num_parties says how many there are"
    ),
    **dict.fromkeys(
        ("device", "num_gpus", "gpus"), "a party uses the GPU of its node if it has one"
    ),
    **dict.fromkeys(
        ("run_dir", "resume"), "each federation has a folder; POST /train goes on in it"
    ),
    "name": "a federation is named by its aggregator_id",
    "groups": "a federation has one model over REST",
    "attack": "attacks are not simulated over REST",
    **dict.fromkeys(
        ("member_weights", "distill", "distill_data", "distill_epochs"),
        "ensembles are not for REST",
    ),
}
OPERATORS = "it is the service's own: only the operator sets it"
VALUE_NOT_FILE = "{} is a value, not a file: send it without a file name"
MEMORY_FIELDS = ("data_bytes", "model_bytes")  # of a party: see `demands`
EDGE_BLANKS = ("data", "data_handler")  # that an edge names itself
MAX_TEXT = 10_000  # characters of a value that is a mapping


def read_settings(
    values: Mapping[str, Any], max_parties: int, files: Collection[str] = FILES
) -> dict[str, Any]:
    """Check form or JSON values of /start-aggregator as far as they go by themselves.

    files : names of the fields that came as files.

    Raises
    ------
    ConfigError
        With every mistake at once.
    """
    settings, problems = {}, []
    for key, value in values.items():
        if key in FILES and value != "":
            how = f"not given as a value (curl -F {key}=@FILE)"
            problems.append(f"{key} must be uploaded as a file, {how}")
        elif key in FILES:
            continue
        elif key not in REST_KEYS:
            problems.append(_describe_unknown_field(key[:80]))
        elif problem := value_problem(key, _to_plain(REST_KEYS[key], value)):
            problems.append(problem)
        elif value == "" or _is_idle_default(REST_KEYS[key], value):
            continue  # a field left empty, or a form's default for other algorithms
        elif _is_code(REST_KEYS[key], value):
            problems.append(f"{key} {str(value)[:80]!r} names code: take it by name")
        else:
            settings[key] = _to_plain(REST_KEYS[key], value)
    problems += _file_problems(values, files)
    as_files = {f"{name} is missing" for name in files}
    wrong = _config_problems(settings, max_parties)
    problems += [problem for problem in wrong if problem not in as_files]
    if problems:
        raise ConfigError(problems)
    return settings


def _file_problems(values: Mapping[str, Any], files: Collection[str]) -> list[str]:
    """What is wrong with the names of a form's files; a model that is missing."""
    problems = []
    for name in files:
        if name in REST_KEYS:
            problems.append(VALUE_NOT_FILE.format(name))
        elif name not in FILES:
            problems.append(describe_unknown("file", name[:80], FILES))
    is_needed = values.get("model_type") != "doc2vec" and not values.get("model_file")
    if is_needed and "model_file" not in files:
        how = "send it as a file of a multipart/form-data form"
        problems.append(f"model_file is missing: {how}")
    return problems


def whole_config(
    settings: Mapping[str, Any], model_file: str | None, parties: list[dict]
) -> dict[str, Any]:
    """The whole config of a federation, as `fedray.federation.read_config` takes it.

    Parties reserve no core, so that federations need not wait for each other's. Keys
    without effect, which an older version took, are left out.
    """
    without_effect = config_alone(settings).keys_without_effect()
    settings = {k: v for k, v in settings.items() if k not in without_effect}
    n_parties = {"num_parties": len(parties)}  # some may have joined later
    listed = [config_party(party) for party in parties]
    config = {**settings, **n_parties, "party_cpus": 0, "parties": listed}
    return config | ({"model_file": model_file} if model_file else {})


def config_alone(settings: Mapping[str, Any]) -> FederationConfig:
    """The config that settings are part of, without parties and files."""
    return parse({**settings, "partition": {}, "model_file": "/"})[0]


def config_party(party: Mapping[str, Any]) -> dict[str, Any]:
    """A party as a config lists it, without what the service notes of its memory."""
    not_listed = (*MEMORY_FIELDS, *(EDGE_BLANKS if party.get("edge") else ()))
    return {k: v for k, v in party.items() if k not in not_listed}


def add_placeholders(
    settings: Mapping[str, Any], parties: list[dict]
) -> list[dict[str, Any]]:
    """`parties`, and placeholders for those that have yet to join."""
    n_missing = int(float(settings["num_parties"])) - len(parties)
    handler = _any_handler(settings.get("model_type"))
    placeholder = {"data": "/", "data_handler": handler}
    names = (f"unjoined-{i}" for i in range(n_missing))
    return [*parties, *({"name": name} | placeholder for name in names)]


def _any_handler(model_type: str | None) -> str:
    """A data handler that goes with the model type, for placeholders."""
    names = (
        name for name in data.HANDLERS if not data.problems(name, model_type or "")
    )
    return next(names)


def _config_problems(settings: Mapping[str, Any], max_parties: int) -> list[str]:
    """What `parse` finds wrong with settings alone, without parties and files."""
    own = []
    if settings.get("fusion_algorithm") == "ensemble":
        own += [NO_ENSEMBLE]
        settings = {**settings, "fusion_algorithm": "fedavg"}
    config, problems = parse({**settings, "partition": {}, "model_file": "/"})
    # the partition stands for parties that are to join: nothing is wrong with it
    problems = [one for one in problems if not one.startswith("partition ")]
    problems = [leave_out_advice(problem) for problem in problems]
    n_parties = config.num_parties or 0
    if n_parties > max_parties:
        most = f"num_parties must be at most {max_parties} here, got {n_parties}"
        problems = [*problems, most]
    return own + problems


def _describe_unknown_field(key: str) -> str:
    if key in CONFIG_KEYS or key in NOT_FIELDS:
        return f"{key} is no field here: {NOT_FIELDS.get(key, OPERATORS)}"
    if key in PARTY_FORM["properties"]:
        return f"{key} is no field here: POST /start-party takes it"
    allowed, listing = (*REST_KEYS, *FILES), "/docs lists the fields"
    return describe_unknown_key(key, "", FederationConfig, allowed, listing)


def _is_idle_default(key: Key, value: Any) -> bool:
    """Whether a field that only some algorithms read has its default.

    A page with a form for all fields sends all defaults.
    """
    if not key.setting.applies:
        return False
    plain = _to_plain(key, value)
    own = to_plain(convert_values({key.name: plain}, FederationConfig)[key.name])
    return own == to_plain(key.default)


def _is_code(key: Key, value: Any) -> bool:
    """Whether a value of a key that takes names would be read as ``file.py:name``."""
    plain = _to_plain(key, value)
    values = plain if isinstance(plain, list | tuple) else [plain]
    is_code = (user_code.is_source(str(one)) for one in values)
    return key.setting.path == "code" and any(is_code)


def _to_plain(key: Key, value: Any) -> Any:
    """Form values are text: mappings and lists come as JSON. Others stay text."""
    is_json = key.json_type in ("object", "array")
    if not is_json or not isinstance(value, str) or len(value) > MAX_TEXT:
        return value
    try:
        return read_json(value)
    except ValueError:
        return value


ABOUT = (
    "Fuse models that were trained apart. Start an aggregator with a model, start its "
    "parties, train, take the global model, stop. Uploading data is not private: it "
    "then lies on the service's disk. Name it by data_path and labels to keep it "
    "where it is."
)
EXAMPLES = {"num_parties": 2, "rounds": 5}
EXAMPLE_ID = "8a6d1c0e4b7f49d0a2c4f5b1e3d79a60"  # page/docs.js puts a real one there
CHOICES = {
    "fusion_algorithm": [name for name in fusion.FUSIONS if name != "ensemble"],
    "model_type": sorted(models.MODELS),
}
DOC2VEC_KEYS = ("fusion_algorithm", "model_type")  # both name it; it needs no file
TEXT = {"type": "string"}
MAYBE_TEXT = {"type": "string", "example": ""}
UPLOAD = {"type": "string", "format": "binary"}
MODEL_FILE = UPLOAD | {
    "description": "the initial model: torch.save(model, file), .keras, .h5 or "
    ".skops; doc2vec needs none, and goes on from the .npz of another run",
    "x-example-file": "/examples/model.pt",  # page/docs.js chooses it
}
FORM, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
JSON = "application/json"


def _property(key: Key) -> dict[str, Any]:
    """OpenAPI property of a config key: type, bounds, choices, default, description."""
    schema = dict(key.json_schema)
    if key.json_type in ("object", "array"):
        schema["description"] += "; in a form as JSON text"
    if key.name == "num_parties":
        schema["description"] = "number of parties that the training waits for"
    if key.name in CHOICES:
        schema["enum"] = CHOICES[key.name]
    if key.is_optional and key.name not in EXAMPLES:
        schema |= _or_empty(key.json_type)
    if key.name in EXAMPLES:
        schema["example"] = EXAMPLES[key.name]
    return schema


def _or_empty(json_type: str) -> dict[str, Any]:
    """Type of a field that has no default: forms send it empty, or not at all."""
    if json_type == "string":
        return MAYBE_TEXT
    return {"type": [json_type, "string"], "maxLength": 0, "example": ""}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _with_words(word: str, *names: str) -> dict[str, Any]:
    """Schema of an object that has this word under each of the names."""
    constants = {name: {"const": word} for name in names}
    return {"properties": constants, "required": list(names)}


def field_names(form: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of a form's values, and of its files."""
    fields = form["properties"]
    files = [name for name in fields if fields[name].get("format") == "binary"]
    return [name for name in fields if name not in files], files


def _errors(*statuses: int) -> dict[str, Any]:
    """OpenAPI responses for a call's errors and those that all calls have."""
    texts = dict.fromkeys(("error", "detail", "hint"), TEXT)
    problems = {"type": "array", "items": TEXT, "description": "of wrong fields"}
    schema = _object(texts | {"problems": problems}, *texts)
    content = {JSON: {"schema": schema}}
    return {
        str(status): {"description": "refused", "content": content}
        for status in (*statuses, 401, 403, 422, 431)
    }


def _operation(
    bodies: dict[str, Any], *statuses: int, others: dict[str, str] | None = None
) -> dict[str, Any]:
    """The part of a call's OpenAPI description that FastAPI cannot know.

    Parameters
    ----------
    bodies : schema by media type; empty for a call without a body.
    statuses : of its errors.
    others : descriptions of successes other than 200, by status.
    """
    successes = {"200": "done"} | (others or {})
    responses: dict[str, Any] = {s: {"description": d} for s, d in successes.items()}
    operation: dict[str, Any] = {"responses": responses | _errors(*statuses)}
    if bodies:
        content = {kind: {"schema": schema} for kind, schema in bodies.items()}
        if "example" in bodies.get(JSON, {}):
            content[JSON]["example"] = bodies[JSON]["example"]
        operation["requestBody"] = {"required": True, "content": content}
    return operation


SETTINGS = {name: _property(key) for name, key in REST_KEYS.items()}
DOC2VEC = _with_words("doc2vec", *DOC2VEC_KEYS)
AGGREGATOR_FORM = _object({"model_file": MODEL_FILE} | SETTINGS, "num_parties") | {
    "anyOf": [{"required": ["model_file"]}, DOC2VEC]
}
AGGREGATOR_JSON = _object(SETTINGS, "num_parties") | {
    "allOf": [DOC2VEC],  # without a file
    "example": dict.fromkeys(DOC2VEC_KEYS, "doc2vec") | EXAMPLES,
}
ID = TEXT | {
    "example": EXAMPLE_ID,
    "description": "the federation, as /start-aggregator answered it",
}
PARTY = {
    "aggregator_id": ID,
    "data_handler_class_name": TEXT
    | {
        "example": "mnist_pytorch",
        "description": f"how the data is read: {', '.join(sorted(data.HANDLERS))}; or "
        "the name of the class in custom_data_handler",
    },
}
DATA_PATH = MAYBE_TEXT | {
    "description": "instead of data: where it lies below the operator's data root"
}
LABELS = MAYBE_TEXT | {
    "description": "with data_path: labels of the node that has the data, as "
    "fedray-party=hospital-a"
}
EDGE = {
    "type": "boolean",
    "default": False,
    "description": "instead of data: the party is outside the cluster and calls by "
    "itself (`fedray edge`); the answer has its one-time invitation",
}


def _with_data(name: str) -> dict[str, Any]:
    """Schema of a party whose data is given by this field."""
    schema = {"required": ["data_handler_class_name", name]}
    return schema | {"properties": {"edge": {"const": False}}}


NOT_AN_EDGES = ("data_handler_class_name", "data", "data_path", "labels")
ONLY_EDGE = {"required": ["edge"], "properties": {"edge": {"const": True}}} | {
    "not": {"anyOf": [{"required": [name]} for name in NOT_AN_EDGES]}
}
PARTY_FORM = _object(
    {
        **PARTY,
        "edge": EDGE,
        "data": UPLOAD
        | {
            "description": "the party's data",
            "x-example-file": "/examples/digits.npz",
        },
        "custom_data_handler": UPLOAD
        | {"description": "Python code, if the operator allows it"},
        "data_path": DATA_PATH,
        "labels": LABELS,
    },
    "aggregator_id",
) | {
    "oneOf": [
        _with_data("data"),
        _with_data("data_path"),
        ONLY_EDGE,
    ]
}
PARTY_JSON = _object(
    PARTY
    | {
        "edge": EDGE,
        "data_path": DATA_PATH | {"type": "string", "example": "a.npz"},
        "labels": {
            "type": ["object", "string"],
            "description": LABELS["description"],
            "example": {"fedray-party": "hospital-a"},
        },
    },
    "aggregator_id",
) | {
    "oneOf": [
        _with_data("data_path"),
        ONLY_EDGE,
    ],
    "example": {
        "aggregator_id": EXAMPLE_ID,
        "data_handler_class_name": "mnist_pytorch",
        "data_path": "a.npz",
        "labels": {"fedray-party": "hospital-a"},
    },
}
AGGREGATOR_ID = _object({"aggregator_id": ID}, "aggregator_id")
PARTY_ID = _object(
    {
        "aggregator_id": ID,
        "party_id": TEXT
        | {"example": "party-0", "description": "as /start-party answered it"},
    },
    "aggregator_id",
    "party_id",
)
BODY = (400, 408, 413, 415, 507)  # errors of every call with a body
START_AGGREGATOR = _operation(
    {FORM: AGGREGATOR_FORM, JSON: AGGREGATOR_JSON}, *BODY, 429, 501
)
START_PARTY = _operation(
    {FORM: PARTY_FORM, JSON: PARTY_JSON}, *BODY, 404, 409, 429, 502, 503
)
STOP_PARTY = _operation({JSON: PARTY_ID, URLENCODED: PARTY_ID}, *BODY, 404, 409, 503)
TRAIN = _operation(
    {JSON: AGGREGATOR_ID, URLENCODED: AGGREGATOR_ID},
    *(*BODY, 404, 409, 500, 502, 503, 504),
    others={"202": "training or queued, with wait=false"},
)
STOP = _operation({JSON: AGGREGATOR_ID, URLENCODED: AGGREGATOR_ID}, *BODY, 404, 503)
LIST = _operation({})
STATUS = _operation({}, 404)
EDGES = _operation({}, 404)
WEIGHTS = _operation({}, 404, 409)
HEALTH = _operation({})


def public_state(state: State) -> str:
    """A federation's state as clients see it; a spent budget ended its training."""
    reason = state.metrics.get("stop_reason") or ""
    is_spent = state.state == TRAINED and is_budget_spent(reason)
    return BUDGET_SPENT if is_spent else state.state


OPTIONAL = ("metrics", "spread", "privacy", "staleness")  # of a state's metrics


def summarize(state: State) -> dict[str, Any]:
    """A federation as one entry of the list of GET /aggregators."""
    settings, metrics = state.settings, state.metrics
    always = ("loss", "accuracy", "bytes_moved")
    names = (*always, *(name for name in OPTIONAL if name in metrics))
    return {
        "aggregator_id": state.id,
        "name": state.name,
        "state": public_state(state),
        "status": public_state(state),
        "fusion_algorithm": settings.get("fusion_algorithm", "fedavg"),
        "model_type": settings.get("model_type", "pytorch"),
        "num_parties": state.num_parties,
        "remaining_parties": state.n_remaining,
        "round": metrics.get("round", 0),
        "rounds": int(float(settings.get("rounds", 1))),
        "metrics": {name: metrics.get(name) for name in names},
        "stop_reason": metrics.get("stop_reason"),
        "created": state.created,
        "elapsed_s": state.elapsed_s,
    }


def handler_words(data_handler: str, state: State) -> str:
    """A built-in handler's name, or ``h.py:Class`` as the client called its file."""
    file, _, name = data_handler.rpartition(":")
    client_name = state.files.get(PurePath(file).name, "").partition(" ")[2]
    return f"{client_name or 'custom_data_handler'}:{name}" if file else name


def describe(state: State, live: dict[str, Any]) -> dict[str, Any]:
    """GET /aggregators/{id} but its history: parties, settings, the round under way."""
    parties = [
        {
            "party_id": party["name"],
            "data_handler": handler_words(party["data_handler"], state) or None,
            "labels": party.get("labels", {}),
            **({"edge": True} if party.get("edge") else {}),
            **{key: party[key] for key in ("joined", "left") if party.get(key)},
        }
        for party in state.parties
    ]
    more = {"parties": parties, "settings": state.settings, "error": state.error}
    return summarize(state) | more | {"under_way": live or None}
