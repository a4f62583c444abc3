"""Which config keys come in over REST, and the config they make.

The list is what strangers may set: nothing in it names code or a path, or takes cores.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from fedray import data
from fedray.config import FederationConfig, parse, unknown
from fedray.errors import ConfigError

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
