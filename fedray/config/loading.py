"""Reads configs from YAML, command-line words and plain data; reports all mistakes."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fedray.config import yaml_text
from fedray.config.conversion import convert_values
from fedray.config.declaration import Key, keys_of
from fedray.config.mistakes import MAX_DEPTH, dotted, key_at, problems_of
from fedray.config.settings import FederationConfig
from fedray.config.specs import PartySpec, is_uri
from fedray.config.suggestions import nearest_key
from fedray.config.yaml_text import PlainText
from fedray.errors import ConfigError, shorten
from fedray.untrusted_text import name_of_file
from fedray.user_code import is_in_memory, is_source

MAX_FILE_BYTES = 4 << 20
MAX_VALUES = 1_000_000  # a party takes about ten
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
UNKNOWN_HANDLER = ".py:"  # of a run: it may be the user's own
PATH_ARGS = ("test", "tokenizer")  # options of data handlers that may be paths
PATH_KEYS = tuple(
    name for name, key in keys_of(FederationConfig).items() if key.setting.path
)
CODE_KEYS, PARTY_CODE_KEYS = (
    [name for name, key in keys_of(model).items() if key.setting.path == "code"]
    for model in (FederationConfig, PartySpec)
)
# never in effect together: whoever gives them all has written out every key, as 0.1.0
# did in a run's config.yaml and a form does that sends all of its fields
WRITTEN_OUT = {"server_momentum", "candidates", "share", "doc2vec"}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the settings of a YAML file of bounded size, each by its key's type.

    Raises
    ------
    ConfigError
        If the file is missing, too large, not YAML, no mapping, or gives a key twice.
    """
    path = Path(path).expanduser()
    try:
        n_bytes = path.stat().st_size
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_FILE_BYTES + 1)  # of a pipe, too, or without an end
        if max(n_bytes, len(text)) > MAX_FILE_BYTES:
            raise ConfigError([f"config {path} is larger than {MAX_FILE_BYTES} bytes"])
        data, mistakes = yaml_text.load(text)
        _check_size(data)
    except OSError as error:
        why = f"cannot read config {shorten(str(path))}: {error.strerror}"
        raise ConfigError([why]) from None
    except UnicodeDecodeError:
        needed = "is not UTF-8 text: save it as UTF-8"
        raise ConfigError([f"config {path} {needed}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = _describe_yaml_error(error)
        raise ConfigError([f"config {path} is not YAML: {reason}"]) from None
    if mistakes:
        raise ConfigError([f"config {path}, {mistake}" for mistake in mistakes])
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError([f"config {path} must be a mapping of keys to values"])
    return convert_values(data, FederationConfig)


def _describe_yaml_error(error: Any) -> str:
    """Where and why a text is not YAML, in one line."""
    mark = getattr(error, "problem_mark", None)
    what, context = getattr(error, "problem", None), getattr(error, "context", None)
    if mark is None or not what:
        return " ".join(str(error).split())[:300]
    if context == "while scanning a simple key":  # the line that lacks it, not the next
        mark, what = error.context_mark, "there is no ': ' between key and value"
    elif what.startswith("but "):
        what = f"{context}, {what}"
    return f"line {mark.line + 1}, column {mark.column + 1}: {what[:300]}"


def _check_size(data: Any) -> Any:
    """The same data, if it is not larger than a config may be, aliases written out.

    A YAML alias costs a few letters and stands for everything it points to, itself
    included.
    """
    todo, n_values = [(data, 0)], 0
    while todo:
        value, depth = todo.pop()
        n_values += 1
        if n_values > MAX_VALUES or depth > MAX_DEPTH:
            most = f"more than {MAX_VALUES} values or {MAX_DEPTH} levels"
            raise ValueError(f"{most}, aliases written out")
        if isinstance(value, dict):
            todo += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple | set):
            todo += [(inner, depth + 1) for inner in value]
    return data


def read_overrides(words: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Turn words `key=value` into settings, values being YAML; and what is wrong."""
    words = join_mappings(words)
    values: dict[str, Any] = {}
    first: dict[str, str] = {}
    problems = []
    for place, word in enumerate(words):
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems += _describe_word(words, place)
            continue
        if key in first:
            problems.append(f"{key} is given twice, {first[key]} and {word}: keep one")
            continue
        first[key] = word
        if not text.strip():  # of a shell's variable that is not set
            problems.append(f"{word} has no value: give one, or {key}=null for none")
            continue
        try:
            values[key] = _read_override(key, text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = _describe_yaml_error(error)
            problems.append(f"cannot read the value of {word!r}: {reason}")
    return convert_values(values, FederationConfig), problems


def join_mappings(words: Iterable[str]) -> list[str]:
    """The words; mappings and lists in one piece that a shell has cut at blanks."""
    whole: list[str] = []
    for word in words:
        value = whole[-1].partition("=")[2] if whole else ""
        n_open = sum(value.count(c) for c in "{[") - sum(value.count(c) for c in "]}")
        if value[:1] in ("{", "[") and n_open > 0:
            whole[-1] += f" {word}"
        else:
            whole.append(word)
    return whole


def _describe_word(words: list[str], place: int) -> list[str]:
    """What is wrong with a word that is not key=value: ``rounds 3`` is one mistake."""
    word, *after = words[place:]
    before = [each for each in words[:place] if each != "="]
    if before and "=" not in before[-1] and key_like(before[-1]):
        return []  # it belongs to the word before, which was described
    name, value = (
        key_like(word),
        ([each for each in after if each != "="] or ["..."])[0],
    )
    remedy = f": write {name}={value}" if name else ""
    return [f"{word!r} is not of the form key=value{remedy}"]


def key_like(word: str) -> str | None:
    """The key that ``--num-rounds`` or ``rounds:`` was meant to set; None if none."""
    return nearest_key(word.strip("-:"), keys_of(FederationConfig))


def _read_override(name: str, text: str) -> Any:
    """A value from the command line: for a key of text what is written, else YAML."""
    key = keys_of(FederationConfig).get(name)
    if key and key.type is str and text[:1] not in ("'", '"'):
        return PlainText(text)
    data, mistakes = yaml_text.load(text)
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return _check_size(data)


def parse(
    data: Mapping[str, Any], path: Path | None = None
) -> tuple[FederationConfig, list[str]]:
    """Build a config from plain data, and say everything that is wrong with it.

    What is wrong keeps its default, so that the rest can still be checked and all
    mistakes are reported at once. `path` is the config file: it names the run, and
    relative paths start there.
    """
    values = convert_values(data, FederationConfig)
    if path and values.get("name") is None:
        values["name"] = name_of_file(path.stem) or "federation"
    config, problems, unread = _validate(values)
    if values.keys() >= WRITTEN_OUT:
        config = drop_without_effect(config)
    folder = path.expanduser().resolve().parent if path else Path.cwd()
    return _absolute_paths(config, folder), problems + config.problems(unread)


def _validate(values: dict[str, Any]) -> tuple[FederationConfig, list[str], set[str]]:
    """A config of what is right in the values; mistakes; dotted names of the wrong."""
    try:
        return FederationConfig.model_validate(values), [], set()
    except ValidationError as error:
        problems = problems_of(error, FederationConfig)
        places = [detail["loc"] for detail in error.errors(include_url=False)]
    right, unread = _copy(values), set()
    for place in places:
        unread |= _take_out(right, place)
    try:
        return FederationConfig.model_validate(right), problems, unread
    except ValidationError:  # what was left does not stand by itself
        wrong = {str(place[0]) for place in places}
        right = {key: value for key, value in values.items() if key not in wrong}
        return FederationConfig.model_validate(right), problems, unread | wrong


def _copy(value: Any) -> Any:
    """Mappings and lists that may be changed."""
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list | tuple) else value


def _take_out(values: Any, place: tuple[str | int, ...]) -> set[str]:
    """Remove a wrong value; a stand-in takes the place of one that cannot be missing.

    Returns the dotted name, without places in lists, of what was removed.
    """
    if isinstance(place[-1], int):
        return _take_out(values, place[:-1])
    holder, key = values, key_at(place, FederationConfig)
    for step in place[:-1]:
        is_there = step in holder if isinstance(holder, dict) else isinstance(step, int)
        if not is_there:
            return set()  # removed already, with what it stood in
        holder = holder[step]
    if not isinstance(holder, dict):
        return _take_out(values, place[:-1])
    holder.pop(place[-1], None)
    if key is not None and key.is_required:
        holder[place[-1]] = _stand_in(key, place)
    return {dotted(place)}


def _stand_in(key: Key, place: tuple[str | int, ...]) -> Any:
    """A value that a required key may have."""
    if key.choices:
        return key.choices[0]
    return [] if key.is_list else "-".join(map(str, place))


def drop_without_effect(config: FederationConfig) -> FederationConfig:
    """The config without keys that change nothing in it."""
    values = convert_values(config.to_dict(), FederationConfig)
    return FederationConfig.model_validate(values)


def read_party(data: Mapping[str, Any]) -> PartySpec:
    """One party from plain data, as `parties` lists it; paths from the working folder.

    Raises
    ------
    ConfigError
        With every mistake that can be seen in it alone.
    """
    party = PartySpec(**convert_values(data, PartySpec))
    return _absolute_party(party, Path.cwd(), UNKNOWN_HANDLER)


def _absolute_paths(config: FederationConfig, folder: Path) -> FederationConfig:
    """The config with absolute paths; relative ones start in the folder."""
    changes: dict[str, Any] = {}
    for key in PATH_KEYS:
        value, may_be_name = getattr(config, key), _may_be_name(key, config.model_type)
        if isinstance(value, tuple):
            changes[key] = tuple(_absolute_path(one, folder, True) for one in value)
        elif value:
            changes[key] = _absolute_path(value, folder, may_be_name)
    handler = config.data_handler
    if config.data_args:
        changes["data_args"] = _absolute_args(config.data_args, folder, handler)
    if config.test_data:
        changes["test_data"] = _source(config.test_data, folder, handler)
    if config.parties:
        parties = (
            _absolute_party(party, folder, handler, config.model_type)
            for party in config.parties
        )
        changes["parties"] = tuple(parties)
    if config.partition and config.partition.source != "mnist":
        source = _source(config.partition.source, folder, handler)
        changes["partition"] = config.partition.with_changes(source=source)
    return config.model_copy(update=changes)


def _absolute_party(
    party: PartySpec, folder: Path, handler: str, model_type: str = ""
) -> PartySpec:
    model_type = party.model_type or model_type
    changes: dict[str, Any] = {
        key: _absolute_path(getattr(party, key), folder, _may_be_name(key, model_type))
        for key in ("model_file", "architecture")
        if getattr(party, key)
    }
    if party.data:
        changes["data"] = _source(party.data, folder, party.data_handler or handler)
    if party.data_args:
        own_handler = party.data_handler or handler
        changes["data_args"] = _absolute_args(party.data_args, folder, own_handler)
    for key in PARTY_CODE_KEYS:
        own = _absolute_path(getattr(party, key) or "", folder, may_be_name=True)
        changes[key] = own or None
    return party.model_copy(update=changes)


def _may_be_name(key: str, model_type: str) -> bool:
    """Whether a key may have a name that fedray knows, instead of a path."""
    is_estimator = key == "architecture" and model_type == "sklearn"
    return key in CODE_KEYS or is_estimator


def _absolute_args(
    args: Mapping[str, object], folder: Path, handler: str
) -> dict[str, object]:
    """Options of a data handler; of one of one's own as they are, as nobody else's."""
    if is_source(handler):
        return dict(args)
    return {
        key: _absolute_path(value, folder)
        if key in PATH_ARGS and isinstance(value, str)
        else value
        for key, value in args.items()
    }


def _source(source: str, folder: Path, handler: str) -> str:
    """What a data handler is given: an absolute path, or a URI or name as written.

    Only a handler of one's own reads other things than files: it is given as written
    what is no file here, and is like `table` or `scheme:rest`.
    """
    if is_uri(source) or is_in_memory(source):
        return source
    is_name = "/" not in source or SCHEME.match(source)
    is_file_here = any(map(os.path.exists, _candidates(source, folder)))
    if is_source(handler) and is_name and not is_file_here and source[:1] != "~":
        return source
    return _absolute_path(source, folder)


def _absolute_path(path: str, folder: Path, may_be_name: bool = False) -> str:
    """Beside the config file, else in the working folder; names stay names."""
    if is_in_memory(path) or (may_be_name and ".py:" not in path):
        return path
    file, colon, attribute = path.partition(":") if ".py:" in path else (path, "", "")
    beside, here = _candidates(file, folder)
    is_only_here = os.path.exists(here) and not os.path.exists(beside)
    return f"{here if is_only_here else beside}{colon}{attribute}"


def _candidates(file: str, folder: Path) -> tuple[Path, Path]:
    """A relative path beside the config file, and in the working folder."""
    path = Path(os.path.expanduser(file))
    return folder / path, path.absolute()
