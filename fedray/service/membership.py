"""Validation of /start-party: data handler, uploaded file, or data path and labels."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from fedray import data, placement, user_code
from fedray.config import describe_unknown
from fedray.config.mistakes import describe_value
from fedray.config.specs import LABEL
from fedray.errors import CallRefused, ConfigError, DataError, PlacementError
from fedray.service import client_words, schemas
from fedray.service.json_text import read_json, value_problem
from fedray.service.settings import Settings
from fedray.service.uploads import FormData
from fedray.untrusted_text import is_harmless

VALUES, FILES = schemas.field_names(schemas.PARTY_FORM)
SYNONYMS = {  # of fields, where the nearest name is another one
    "data_handler": "data_handler_class_name",
    "handler": "data_handler_class_name",
    "data_file": "data",
    "file": "data",
    "path": "data_path",
}
LABELS_NEEDED = (
    'labels must be like fedray-party=hospital-a, or {"key": "value"}, of letters, '
    "digits and ./_-"
)
MAX_PATH = 1024  # characters
MAX_LABELS = 16
OWN_FOLDER = (
    "one named by your client id below the operator's data root, on each node that "
    "has data of yours"
)
CHECK_TIMEOUT_S = 30.0  # for the node that has the data


async def read_party(
    form: FormData, settings: Settings, client: str | None
) -> tuple[dict[str, Any], bool]:
    """The party as the config lists it, and whether its data is to be checked here.

    client : whose it is; None where the service has no keys.

    Raises
    ------
    CallRefused, ConfigError
        For fields that are missing, unknown or do not go together; 403 for code.
    """
    check_fields(form)
    if is_edge(form.values):
        return {"edge": True, "data": "", "data_handler": ""}, False
    party: dict[str, Any] = {"data_handler": await _read_handler(form, settings)}
    if "data" in form.files:
        party["data"] = str(form.files["data"].path)
        return party, "custom_data_handler" not in form.files
    party |= _read_location(form.values, settings, client)
    is_own = _has_own_folder(settings, client)
    await asyncio.to_thread(_check_on_node, party, is_own)
    return party, False


def is_edge(values: Mapping[str, Any]) -> bool:
    """Whether a party is an edge: outside the cluster, with an invitation.

    Raises
    ------
    ConfigError
        If `edge` is neither true nor false.
    """
    value = values.get("edge", "")
    text = str(value).lower()
    if text not in ("true", "false", "") or isinstance(value, list | dict):
        raise ConfigError([f"edge must be true or false, got {describe_value(value)}"])
    return text == "true"


def check_fields(form: FormData) -> None:
    """Raise ConfigError for fields that are missing, unknown or do not go together."""
    if is_edge(form.values):
        return _check_edge_fields(form)
    strange = [name for name in form.names if name not in (*VALUES, *FILES)]
    problems = [_describe_unknown(name[:80]) for name in strange]
    problems += [
        schemas.VALUE_NOT_FILE.format(name) for name in form.files if name in VALUES
    ]
    for name in FILES:
        if form.values.get(name, "") != "":  # empty: a file input left so
            problems.append(
                f"{name} must be uploaded as a file of a multipart/form-data form "
                f"(curl -F {name}=@FILE)"
            )
    has_path = bool(form.values.get("data_path"))
    if form.values.get("data", "") == "" and has_path == ("data" in form.files):
        problems.append("give either a file data, or data_path with labels")
    if form.values.get("labels") and not has_path:
        problems.append(
            "labels go with data_path: an upload stays on the service's node"
        )
    if not form.values.get("data_handler_class_name"):
        handlers = ", ".join(sorted(data.HANDLERS))
        missing = "data_handler_class_name is missing"
        problems.append(f"{missing}: give one of {handlers}")
    if not (form.values | form.files).get("aggregator_id"):
        problems.append("aggregator_id is missing")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _check_edge_fields(form: FormData) -> None:
    """Raise ConfigError for what an edge says itself: its data and how it is read."""
    own = ("aggregator_id", "edge")
    problems = [
        f"{name} does not go with edge: an edge names its data itself; leave it out"
        if name in (*VALUES, *FILES)
        else _describe_unknown(name[:80])
        for name in form.names
        if name not in own and form.values.get(name) != ""
    ]
    if not form.values.get("aggregator_id"):
        problems.append("aggregator_id is missing")
    if problems:
        raise ConfigError(problems)


def _describe_unknown(name: str) -> str:
    if name in SYNONYMS:
        return f"unknown field {name!r}; did you mean {SYNONYMS[name]!r}?"
    return describe_unknown("field", name, (*VALUES, *FILES))


async def _read_handler(form: FormData, settings: Settings) -> str:
    """Name of a built-in data handler, or ``file.py:Class`` of an uploaded one."""
    name = form.values["data_handler_class_name"]
    if "custom_data_handler" in form.files:
        if not settings.allow_custom_handlers:
            detail = "A custom data handler is code, and this service runs none."
            hint = "Ask its operator for --allow-custom-handlers, or take a built-in: "
            raise CallRefused(403, detail, hint + ", ".join(sorted(data.HANDLERS)))
        if not isinstance(name, str) or not name.isidentifier():
            needed = "data_handler_class_name must be the name of a class"
            raise ConfigError([needed])
        return await _check_code(form, name)
    is_known = isinstance(name, str) and name in data.HANDLERS
    if not is_known or user_code.is_source(name):
        what = "data_handler_class_name"
        problem = describe_unknown(what, str(name)[:80], data.HANDLERS)
        if settings.allow_custom_handlers:
            problem += "; for a class of your own, send its file as custom_data_handler"
        raise ConfigError([problem])
    return name


async def _check_code(form: FormData, name: str) -> str:
    """Parse an uploaded handler without running it; its ``file.py:Class``."""
    python = await form.rename("custom_data_handler", ".py")
    if problems := data.problems(f"{python}:{name}", ""):
        raise client_words.config_error(ConfigError(problems), form.words)
    return f"{python}:{name}"


def data_folder(settings: Settings, client: str | None) -> str | None:
    """Folder below which a client may name data, on any node; None: nowhere.

    Each client has one of its own, named by its id (`fedray keys` allows no id that is
    a path), unless the service has no keys, or its operator has the clients share.
    """
    root = settings.data_root and os.path.abspath(settings.data_root)
    if root and client is not None and _has_own_folder(settings, client):
        return os.path.join(root, client)
    return root


def _has_own_folder(settings: Settings, client: str | None) -> bool:
    return client is not None and not settings.shared_data_root


def data_root_line(settings: Settings) -> str | None:
    """What the operator is told at the start of the data that clients may name."""
    if settings.data_root is None or settings.api_keys is None:
        return None
    if not settings.shared_data_root:
        return f"clients may name data below {settings.data_root}/<their client id>"
    return (
        f"--shared-data-root: every client with a key may train on all data below "
        f"{settings.data_root}, other clients' too, and read the models"
    )


def _read_location(
    values: dict[str, Any], settings: Settings, client: str | None
) -> dict[str, Any]:
    """Data path, labels and data root of a party whose data is on a cluster node."""
    root = data_folder(settings, client)
    if root is None:
        detail = "This service does not read data by its path."
        hint = "Ask its operator for --data-root, or upload the file as data."
        raise CallRefused(403, detail, hint)
    path = values["data_path"]
    if not isinstance(path, str) or len(path) > MAX_PATH or not is_harmless(path):
        needed = f"data_path must be text of at most {MAX_PATH} printable characters"
        raise ConfigError([needed])
    full_path = os.path.normpath(os.path.join(root, path))
    if os.path.commonpath([full_path, root]) != root:
        where = "your own folder below " if _has_own_folder(settings, client) else ""
        raise ConfigError([f"data_path leads out of {where}the operator's data root"])
    labels = _read_labels(values.get("labels"))
    return {"data": full_path, "labels": labels, "data_root": root}


def _read_labels(value: Any) -> dict[str, str]:
    """Labels from JSON, or from ``key=value,key=value``."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = read_json(value)
        except ValueError:
            raise ConfigError([f"{LABELS_NEEDED}; got {value[:80]!r}"]) from None
        if problem := value_problem("labels", value):
            raise ConfigError([problem])
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        value = {key.strip(): text.strip() for key, _, text in pairs}
    labels = value or {}
    is_mapping = isinstance(labels, dict) and len(labels) <= MAX_LABELS
    texts = [text for pair in labels.items() for text in pair] if is_mapping else [0]
    if not all(isinstance(text, str) and LABEL.fullmatch(text) for text in texts):
        raise ConfigError([f"{LABELS_NEEDED}; got {describe_value(value)}"])
    return dict(labels)


def find_data(path: str, root: str, is_own: bool) -> None:
    """Check on a party's node that its data is there, within its root.

    is_own : whether the root is the client's own folder. Its name must be the client's
        id in the same case: some file systems take `Ann` for `ann`.

    Raises
    ------
    DataError
        If it is not.
    """
    folder = Path(root)
    with contextlib.suppress(OSError):  # a data root that may only be entered
        if is_own and folder.name not in os.listdir(folder.parent):
            raise DataError("root", "no folder of your own on this node", OWN_FOLDER)
    data.resolve_in_root(path, root)


FIND_DATA = ray.remote(find_data)


def _check_on_node(party: dict[str, Any], is_own: bool) -> None:
    """Check on the labelled node itself that the data is there, within the root."""
    name = "this party"
    try:
        seats = placement.place_parties({name: party["labels"]}, placement.nodes(), 0)
    except PlacementError as error:
        detail = f"No node has these labels: wanted {error.wanted}."
        hint = "Correct labels; the service's operator gives nodes theirs."
        raise CallRefused(422, detail, hint) from None
    options = seats[name].options() | {"num_gpus": 0}
    check = FIND_DATA.options(**options, max_retries=1)
    try:
        check_ref = check.remote(party["data"], party["data_root"], is_own)
        ray.get(check_ref, timeout=CHECK_TIMEOUT_S)
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DataError):
            path = os.path.relpath(party["data"], party["data_root"])
            detail = f"data_path {path}: got {cause.got}; needed {cause.needed}."
            raise CallRefused(422, detail, "Correct data_path or labels.") from None
        detail = "The node with these labels does not answer."
        raise CallRefused(503, detail, "Try again in a moment.") from None
