"""What calls take and answer, as /docs shows it and as clients get it."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from fedray import data
from fedray.config import FederationConfig, parse, unknown
from fedray.errors import ConfigError
from fedray.service.store import State

KEYS = (
    "fusion_algorithm",
    "model_type",
    "num_parties",
    "rounds",
    "epochs",
    "learning_rate",
    "optimizer",
    "optimizer_args",
    "batch_size",
    "loss",
    "loss_args",
    "party_fraction",
    "quorum",
    "over_select",
    "deadline_s",
    "late",
    "round_timeout_s",
    "stacked",
    "wire_dtype",
    "aggregation",
    "drift_tolerance",
    "drift_threshold",
    "max_rounds_apart",
    "evaluate_every",
    "proximal_mu",
    "server_learning_rate",
    "server_momentum",
    "server_beta2",
    "server_tau",
    "candidates",
    "adopt",
    "n_hostile",
    "n_selected",
    "clip_norm",
    "bucketing",
    "max_update_norm",
    "max_refused",
    "doc2vec",
    "share",
    "cap",
    "row_momentum",
    "seed",
)
FILES = ("model_file",)
FIELDS = {item.name for item in dataclasses.fields(FederationConfig)}
ALLOWED = tuple(key for key in KEYS if key in FIELDS)
NO_ENSEMBLE = (
    "fusion_algorithm: ensemble is not for REST: one model comes with a federation "
    "here and one is given back, an ensemble has one of each party; write a config "
    "with `parties`, each with its own model, for `fedray run` or fedray.run"
)
MAX_TEXT = 10_000  # characters of a value that is a mapping


def read(given: Mapping[str, Any], max_parties: int) -> dict[str, Any]:
    """Settings from form or JSON values, checked as far as they go by themselves.

    Raises
    ------
    ConfigError
        With every mistake at once.
    """
    settings, found = {}, []
    for key, value in given.items():
        if key in FILES:
            found.append(f"{key} must be uploaded as a file, not given as a value")
        elif key not in ALLOWED:
            found.append(unknown("key", key[:80], (*ALLOWED, *FILES)))
        else:
            settings[key] = _mapping(value) if _is_mapping(key) else value
    found += _mistakes(settings, max_parties)
    if found:
        raise ConfigError(found)
    return settings


def with_parties(
    settings: Mapping[str, Any], model_file: str | None, parties: list[dict]
) -> dict[str, Any]:
    """The whole config of a federation, as `fedray.federation.read_config` takes it.

    Parties hold no core, so that federations need not wait for each other's.
    """
    n_parties = {"num_parties": len(parties)}  # some may have joined later
    whole = {**settings, **n_parties, "party_cpus": 0, "parties": parties}
    return whole | ({"model_file": model_file} if model_file else {})


def unjoined(settings: Mapping[str, Any], parties: list[dict]) -> list[dict]:
    """`parties`, and stand-ins for those that have yet to join."""
    n_missing = int(float(settings["num_parties"])) - len(parties)
    one = {"data": "/", "data_handler": _some_handler(settings.get("model_type"))}
    return [*parties, *({"name": f"unjoined-{i}"} | one for i in range(n_missing))]


def _some_handler(model_type: str | None) -> str:
    """One that goes with the model type, for parties that are not there yet."""
    able = (name for name in data.HANDLERS if not data.problems(name, model_type or ""))
    return next(able)


def _mistakes(settings: Mapping[str, Any], max_parties: int) -> list[str]:
    """What `parse` says of settings alone, without parties and files."""
    told = []
    if settings.get("fusion_algorithm") == "ensemble":
        told, settings = [NO_ENSEMBLE], {**settings, "fusion_algorithm": "fedavg"}
    config, found = parse({**settings, "partition": {}, "model_file": "/"})
    found = told + found
    n_parties = config.num_parties or 0
    if n_parties > max_parties:
        found.append(f"num_parties must be at most {max_parties} here, got {n_parties}")
    return found


def _is_mapping(key: str) -> bool:
    hint = typing.get_type_hints(FederationConfig)[key]
    kinds = typing.get_args(hint) or (hint,)
    is_dict = typing.get_origin(hint) is dict
    return is_dict or any(dataclasses.is_dataclass(kind) for kind in kinds)


def _mapping(value: Any) -> Any:
    """Form values are text: a mapping comes as JSON."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


ABOUT = (
    "Fuse models that were trained apart. Start an aggregator with a model, start its "
    "parties, train, take the global model, stop. Uploading data is not private: it "
    "then lies on the service's disk. Name it by data_path and labels to keep it "
    "where it is."
)
NUMBERS = {
    "num_parties": ("integer", 2),
    "rounds": ("integer", 5),
    "epochs": ("integer", 3),
    "learning_rate": ("number", 1),
    "batch_size": ("integer", 64),
    "seed": ("integer", 0),
}
TEXTS = {
    "fusion_algorithm": "fedavg",
    "model_type": "pytorch",
    "optimizer": "optim.Adadelta",
    "loss": "cross_entropy",
}
FILE = {"type": "string", "format": "binary"}


def _property(key: str) -> dict[str, Any]:
    if key in NUMBERS:
        kind, example = NUMBERS[key]
        return {"type": kind, "example": example}
    example = {"example": TEXTS[key]} if key in TEXTS else {}
    return {"type": "string", **example}


def _errors(*statuses: int) -> dict[str, Any]:
    keys = ("error", "detail", "hint")
    form = {"type": "object", "properties": {key: {"type": "string"} for key in keys}}
    content = {"application/json": {"schema": form}}
    known = (*statuses, 401, 403, 431)
    return {
        str(status): {"description": "refused", "content": content} for status in known
    }


def _words(kinds: dict[str, Any], *statuses: int, ok: int = 200) -> dict[str, Any]:
    """The part of an OpenAPI description that FastAPI cannot know."""
    content = {kind: {"schema": schema} for kind, schema in kinds.items()}
    answers = {str(ok): {"description": "done"}} | _errors(*statuses)
    words: dict[str, Any] = {"responses": answers}
    if content:
        words["requestBody"] = {"required": True, "content": content}
    return words


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


SETTINGS = {key: _property(key) for key in ALLOWED}
ONE = _object({"aggregator_id": {"type": "string"}}, "aggregator_id")
BOTH = {
    "application/json": ONE,
    "application/x-www-form-urlencoded": ONE,
}
BODY = (400, 408, 413, 415, 422)
START_AGGREGATOR = _words(
    {
        "multipart/form-data": _object(
            {**SETTINGS, "model_file": FILE}, "num_parties", "model_file"
        )
    },
    *BODY,
    429,
    501,
)
START_PARTY = _words(
    {
        "multipart/form-data": _object(
            {
                "aggregator_id": {"type": "string"},
                "data_handler_class_name": {
                    "type": "string",
                    "example": "mnist_pytorch",
                },
                "data": FILE,
                "custom_data_handler": FILE,
                "data_path": {"type": "string"},
                "labels": {"type": "string", "example": "fedray-party=hospital-a"},
            },
            "aggregator_id",
            "data_handler_class_name",
        )
    },
    *BODY,
    404,
    409,
    502,
    503,
)
PARTY = _object(
    {"aggregator_id": {"type": "string"}, "party_id": {"type": "string"}},
    "aggregator_id",
    "party_id",
)
STOP_PARTY = _words(
    {"application/json": PARTY, "application/x-www-form-urlencoded": PARTY},
    *BODY,
    404,
    409,
    503,
)
TRAIN = _words(BOTH, *BODY, 404, 409, 500, 502, 503)
TRAIN["responses"]["202"] = {"description": "training, with wait=false"}
STOP = _words(BOTH, *BODY, 404, 503)
LIST = _words({})
STATUS = _words({}, 404)
WEIGHTS = _words({}, 404, 409)
HEALTH = _words({})


def short(state: State) -> dict[str, Any]:
    """A federation as one entry of the list."""
    settings, metrics = state.settings, state.metrics
    return {
        "aggregator_id": state.id,
        "state": state.state,
        "status": state.state,
        "fusion_algorithm": settings.get("fusion_algorithm", "fedavg"),
        "model_type": settings.get("model_type", "pytorch"),
        "num_parties": state.num_parties,
        "remaining_parties": state.n_remaining,
        "round": metrics.get("round", 0),
        "rounds": int(float(settings.get("rounds", 1))),
        "metrics": {k: metrics.get(k) for k in ("loss", "accuracy", "bytes_moved")},
        "created": state.created,
    }


def whole(state: State, live: dict[str, Any]) -> dict[str, Any]:
    """A federation with its parties, and the round under way if it is training."""
    parties = [
        {
            "party_id": party["name"],
            "data_handler": party["data_handler"].rpartition("/")[2],
            "labels": party.get("labels", {}),
            **{key: party[key] for key in ("joined", "left") if party.get(key)},
        }
        for party in state.parties
    ]
    told = {"parties": parties, "settings": state.settings, "error": state.error}
    return short(state) | told | {"under_way": live or None}
