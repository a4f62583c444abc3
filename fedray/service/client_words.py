"""Puts error messages into the words of a REST client.

Messages are written for whoever runs fedray: they name files by their paths on this
machine, and advise keys of config files and options of commands. A client has sent
fields and files, and is told of those; advice that REST refuses is left out.
"""

import contextlib
import html
import os
import re
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fedray
from fedray.config import FederationConfig, keys_of, rest_settings
from fedray.errors import ConfigError, FedrayError

MAX_DETAIL = 4_000  # characters of a message
FIELDS = {"data_handler": "data_handler_class_name"}  # config key -> field
HANDLER = "custom_data_handler"
SEPARATORS = (
    "\n",
    ". ",
    "? ",
    "; ",
    ": ",
    ", or ",
    ", and ",
    " or ",
)  # strongest first
PARTS = re.compile(f"({'|'.join(map(re.escape, SEPARATORS))})")
PATH = re.compile(r"(?<![\w./~}])(?<!:(?=//))~?(?:/[^\s/'\"`,:;()\[\]{}<>|]+)+/?")
QUOTED = re.compile(r"""(['"`])(~?/[^'"`\n]+)\1""")  # with blanks in it
FILE_URI = re.compile(r"\bfile://(?=/)")
ADDRESS = re.compile(
    r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b|\[[0-9a-f:]*:[0-9a-f:]*\]:\d+"
)
CALL = re.compile(
    r"/(?:start-aggregator|start-party|stop-party|train|stop|docs)(?:$|[?.])"
)
TEXT_OF_PAGE = re.compile(r"(<style.*?</style>|<[^>]*>)|([^<]*/[^<]*)", re.DOTALL)
UPLOAD = re.compile(r"[0-9a-f]{32}(?:\.[a-z0-9]+)*")
TWICE = re.compile(
    r"\b(?:model file|data|data_handler_class_name|data_handler|file) "
    rf"(?=(?:model_file|data_path|data|{HANDLER}) )"
)
INSTALL = (
    r"install it there(?:, or put \S+ beside the file that imports it[^(;\n]*?)?"
    r"(?= \(|$)"
)
PHRASES = {  # advice that a client can follow in another way, as patterns
    r"model_file is missing: give it": (
        "model_file is missing: send it as a file of a multipart/form-data form"
    ),
    INSTALL: "only the operator can install it there",
    r" in the service's folder": "",
    r"'ensemble', ": "",  # of the algorithms
}
OWN_KINDS = re.compile(  # errors whose message says all
    rf"\b(?:{'|'.join(kind.__name__ for kind in FedrayError.__subclasses__())}): "
)
WORDS = ("attack", "groups", "name", "parties", "track")  # keys that are plain words


def _elsewhere() -> re.Pattern[str]:
    """What only the command line, Python or a config file has."""
    others = {*keys_of(FederationConfig)} - {*rest_settings(), *FIELDS, "model_file"}
    keys = "|".join(sorted(others - set(WORDS)))
    words = "|".join(WORDS)
    return re.compile(
        rf"(?<!\w)--[a-z]|\bfedray[ .][a-z]|\bpip install\b|\.py:[A-Za-z_]|\bYAML\b"
        rf"|\bconfig file\b|\bhistory\.jsonl\b|\b(?:{keys})\b|`(?:{words})`"
        rf"|\bwrite [a-z_]+=|\bstate_dict\b"
    )


ELSEWHERE = _elsewhere()


def _own_folders() -> dict[str, None]:
    """Folders of this machine that are there for all messages, the longest first."""
    folders = [sys.prefix, sys.base_prefix, tempfile.gettempdir(), os.getcwd()]
    folders += sysconfig.get_paths().values()
    folders.append(str(Path(fedray.__file__).parents[1]))
    with contextlib.suppress(RuntimeError):  # a user without one
        folders.append(str(Path.home()))
    whole = {str(Path(folder)) for folder in folders} - {"/"}
    return dict.fromkeys(sorted(whole, key=len, reverse=True))


OWN_FOLDERS = _own_folders()


def _own_host() -> re.Pattern[str] | None:
    """This machine's name as a word; None where it may be a word like others."""
    host = socket.gethostname()
    if not re.search(r"[-.\d]", host):
        return None
    return re.compile(rf"(?<![\w.-]){re.escape(host)}(?![\w-])")


OWN_HOST = _own_host()


def translate(text: str, files: Mapping[str, str], root: Path | str = "") -> str:
    """A message about a federation, as its client is told it.

    Parameters
    ----------
    files : what the client calls its uploads and paths (``model_file cnn.pt``), by
        the name, or the whole path, that they have here.
    root : folder whose path is cut off wherever it stands, with blanks in it too.
    """
    text = hide_paths(text, files, root)
    for key, field in FIELDS.items():
        text = re.sub(rf"\b{key}\b", field, text)
    text = OWN_KINDS.sub("", TWICE.sub("", text))
    for phrase, own in PHRASES.items():
        text = re.sub(phrase, own, text)
    return leave_out_advice(text)[:MAX_DETAIL]


def hide_paths(text: str, files: Mapping[str, str], root: Path | str = "") -> str:
    """The text without paths, addresses and the name of this machine.

    Of a path only the last part stays, or what the client calls the file.

    files, root : as `translate` has them.
    """
    for path in sorted(files, key=len, reverse=True):
        if "/" in path:
            text = text.replace(path, files[path])
    if len(str(root)) > 1:
        text = text.replace(f"{root}/", "/").replace(str(root), "the service's folder")
    for folder in OWN_FOLDERS:
        if " " in folder:  # one that no pattern ends at the right place
            text = text.replace(f"{folder}/", "/")
    text = FILE_URI.sub("", text)
    text = QUOTED.sub(lambda m: f"{m[1]}{_path_words(m[2], files)}{m[1]}", text)
    text = PATH.sub(lambda match: _path_words(match[0], files), text)
    for name in files:
        text = text.replace(name, files[name])
    if OWN_HOST:
        text = OWN_HOST.sub("the service's machine", text)
    return TWICE.sub("", ADDRESS.sub("a node", text))


def hide_paths_in_data(value: Any, files: Mapping[str, str], root: Path | str) -> Any:
    """Plain data with all its texts as `hide_paths` has them; keys stay."""
    if isinstance(value, str):
        return hide_paths(value, files, root)
    if isinstance(value, dict):
        return {k: hide_paths_in_data(one, files, root) for k, one in value.items()}
    if isinstance(value, list):
        return [hide_paths_in_data(one, files, root) for one in value]
    return value


def hide_paths_in_page(page: str, files: Mapping[str, str], root: Path | str) -> str:
    """An HTML page without paths in its text."""

    def hide(match: re.Match[str]) -> str:
        return html.escape(hide_paths(html.unescape(match[2]), files, root))

    return TEXT_OF_PAGE.sub(lambda m: m[0] if m[1] else hide(m), page)


def config_error(
    error: ConfigError, files: Mapping[str, str], root: Path | str = ""
) -> ConfigError:
    """The error with every mistake as the client is told it."""
    return ConfigError([translate(text, files, root) for text in error.problems])


def without_paths(error: ConfigError) -> ConfigError:
    """The error as any client may see it, wherever it was raised."""
    return ConfigError([hide_paths(text, {}) for text in error.problems])


def _path_words(path: str, files: Mapping[str, str]) -> str:
    name = Path(path).name
    if name in files:
        return files[name]
    if CALL.match(path) or path.startswith("/aggregators"):
        return path
    if path.rstrip("/") in OWN_FOLDERS:
        return "a folder of the service"
    return "an uploaded file" if UPLOAD.fullmatch(name) else name


def leave_out_advice(text: str) -> str:
    """The text without the parts of sentences that REST has nothing for.

    The first part stays, whatever it is: it says what is wrong.
    """
    first, *rest = PARTS.split(text)
    words, before = [first], []  # separators since the last part that stays
    for separator, part in zip(rest[::2], rest[1::2], strict=True):
        before.append(separator)
        if part and not ELSEWHERE.search(part):
            end = min(before, key=SEPARATORS.index)
            has_cut = len(before) > 1 and end in (". ", "? ")
            words += [end, part[0].upper() + part[1:] if has_cut else part]
            before = []
    ends = [end.strip() for end in before if end in (". ", "? ")]
    return "".join([*words, *ends[:1]])
