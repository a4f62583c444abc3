"""What calls take and answer, as /docs shows it and as clients get it."""

from typing import Any

from fedray.service.allowed import ALLOWED
from fedray.service.store import State

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
