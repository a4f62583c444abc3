"""What a client says of a party, turned into the party's part of the config."""

import asyncio
import json
import os
from typing import Any

import ray
from ray.exceptions import RayError

from fedray import data, placement, user_code
from fedray.config import unknown
from fedray.config.specs import LABEL
from fedray.errors import CallRefused, ConfigError, DataError, PlacementError
from fedray.service.settings import Settings
from fedray.service.uploads import Body

VALUES = ("aggregator_id", "data_handler_class_name", "data_path", "labels")
FILES = ("data", "custom_data_handler")
MAX_PATH = 1024  # characters
INSIDE = ray.remote(data.inside)
LOOK_S = 30.0  # for the node that has the data


async def party_of(came: Body, settings: Settings) -> tuple[dict[str, Any], bool]:
    """The party as the config lists it, and whether its data is to be examined here.

    Raises
    ------
    CallRefused, ConfigError
        For fields that are missing, unknown or do not go together; 403 for code.
    """
    _check_fields(came)
    party = {"data_handler": _handler(came, settings)}
    if "data" in came.files:
        party["data"] = str(came.files["data"].path)
        return party, "custom_data_handler" not in came.files
    party |= _labelled(came.values, settings)
    await asyncio.to_thread(_look, party)
    return party, False


def _check_fields(came: Body) -> None:
    found = [
        unknown("field", name[:80], (*VALUES, *FILES))
        for name in (*came.values, *came.files)
        if name not in (VALUES if name in came.values else FILES)
        and not (name in FILES and came.values.get(name) == "")  # a form left empty
    ]
    has_path = bool(came.values.get("data_path"))
    if "data" in came.values and came.values["data"] != "":
        found.append("data must be uploaded as a file; for a path there is data_path")
    elif has_path == ("data" in came.files):
        found.append("give either a file data, or data_path with labels")
    if came.values.get("labels") and not has_path:
        found.append("labels go with data_path: an upload stays on the service's node")
    if not came.values.get("data_handler_class_name"):
        found.append(f"data_handler_class_name is missing: {sorted(data.HANDLERS)}")
    if found:
        raise ConfigError(list(dict.fromkeys(found)))


def _handler(came: Body, settings: Settings) -> str:
    name = came.values["data_handler_class_name"]
    if "custom_data_handler" in came.files:
        if not settings.allow_custom_handlers:
            told = "A custom data handler is code, and this service runs none."
            hint = "Ask its operator for --allow-custom-handlers, or take a built-in: "
            raise CallRefused(403, told, hint + ", ".join(sorted(data.HANDLERS)))
        if not isinstance(name, str) or not name.isidentifier():
            told = "data_handler_class_name must be the name of a class"
            raise ConfigError([told])
        return _code(came, name)
    if (
        not isinstance(name, str)
        or user_code.is_source(name)
        or name not in data.HANDLERS
    ):
        raise ConfigError([unknown("data_handler", str(name)[:80], data.HANDLERS)])
    return name


def _code(came: Body, name: str) -> str:
    """Look at a handler's code without running it."""
    python = came.rename("custom_data_handler", ".py")
    found = data.problems(f"{python}:{name}", "")
    if found:
        raise ConfigError([line.replace(f"{python.parent}/", "") for line in found])
    return f"{python}:{name}"


def _labelled(values: dict[str, Any], settings: Settings) -> dict[str, Any]:
    if settings.data_root is None:
        told = "This service does not read data by its path."
        hint = "Ask its operator for --data-root, or upload the file as data."
        raise CallRefused(403, told, hint)
    path, root = values["data_path"], os.path.abspath(settings.data_root)
    if not isinstance(path, str) or len(path) > MAX_PATH or not path.isprintable():
        told = f"data_path must be text of at most {MAX_PATH} printable characters"
        raise ConfigError([told])
    whole = os.path.normpath(os.path.join(root, path))
    if os.path.commonpath([whole, root]) != root:
        raise ConfigError(["data_path leads out of the operator's data root"])
    labels = _labels(values.get("labels"))
    return {"data": whole, "labels": labels, "data_root": root}


def _labels(given: Any) -> dict[str, str]:
    """Labels as JSON, or as ``key=value,key=value``."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise ConfigError(["labels are not JSON"]) from None
    if isinstance(given, str):
        pairs = [pair.partition("=") for pair in given.split(",") if pair.strip()]
        given = {key.strip(): value.strip() for key, _, value in pairs}
    fits = isinstance(given or {}, dict) and len(given or {}) <= 16
    texts = [text for pair in (given or {}).items() for text in pair] if fits else [0]
    if not all(isinstance(text, str) and LABEL.fullmatch(text) for text in texts):
        needed = 'labels must be like fedray-party=hospital-a, or {"key": "value"}'
        raise ConfigError([f"{needed}, of letters, digits and ./_-"])
    return dict(given or {})


def _look(party: dict[str, Any]) -> None:
    """See on the node itself that the data is there and lies in the root."""
    name = "this party"
    try:
        seats = placement.seat_all({name: party["labels"]}, placement.nodes(), 0)
    except PlacementError as error:
        told = f"No node has these labels: wanted {error.wanted}."
        hint = "Start Ray there with --labels first, or mend labels."
        raise CallRefused(422, told, hint) from None
    options = seats[name].options() | {"num_gpus": 0}
    looking = INSIDE.options(**options, max_retries=1)
    try:
        ray.get(looking.remote(party["data"], party["data_root"]), timeout=LOOK_S)
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DataError):
            told = f"data_path: got {cause.got}; needed {cause.needed}."
            raise CallRefused(422, told, "Mend data_path or labels.") from None
        told = "The node with these labels does not answer."
        raise CallRefused(503, told, "Try again in a moment.") from None
