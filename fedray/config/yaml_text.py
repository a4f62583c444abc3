"""YAML as configs need it: unquoted values keep their text, no key is given twice.

What ``on``, ``1e-4``, ``1.10`` or ``2024-01-01`` means depends on the key that it is
given for. YAML by itself would decide without knowing it.
"""

import re
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"
PLAIN = "!plain"  # tag of unquoted values
NOTHING = ("", "~", "null", "Null", "NULL")
TRUE_WORDS = ("true", "yes", "on")
FALSE_WORDS = ("false", "no", "off")
INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-fA-F_]+")
DECIMAL = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
)
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE)


class PlainText(str):
    """An unquoted YAML value as it is written; its key's type says how it is read."""


def load(text: str) -> tuple[Any, list[str]]:
    """The data of a YAML text, unquoted values as `PlainText`; mistakes in its keys.

    Raises
    ------
    yaml.YAMLError, ValueError, RecursionError
        If it is not YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.mistakes
    finally:
        loader.dispose()


def dump(data: Any) -> str:
    """Plain data as YAML that `load` reads back as it is: ``'1e5'`` stays a text."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `load` would take for something else, as YAML does not."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A text, in quotes if it would not be read as one without them."""
        style = None if isinstance(to_value(text), str) else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


class _Loader(yaml.SafeLoader):
    """Notes mistakes in keys; leaves unquoted values to whoever knows their keys."""

    yaml_implicit_resolvers = {
        "<": [(MERGE, re.compile("^<<$"))],
        None: [(PLAIN, re.compile(""))],
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.mistakes: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                message = f"line {line}: the key {key.value!r} is given twice"
                first = f"first in line {lines[key.value]}"
                self.mistakes.append(f"{message}, {first}: keep one")
            lines.setdefault(key.value, line)
            if ":" in key.value and key.tag == PLAIN and value.value == "":
                message = f"line {line}: {key.value!r} needs a blank after the colon"
                self.mistakes.append(message)
        return node


_Loader.add_constructor(PLAIN, lambda loader, node: PlainText(node.value))


def to_number(text: str) -> int | float | None:
    """The number that a text is, as Python and YAML write numbers; None if none."""
    plain = text.replace("_", "")
    try:
        if HEXADECIMAL.fullmatch(text):
            return int(plain, 16)
        if INTEGER.fullmatch(text):
            return int(plain)
        if DECIMAL.fullmatch(text):
            return float(plain)
    except ValueError:  # more digits than Python reads
        return None
    return float(plain.replace(".", "")) if NOT_FINITE.fullmatch(text) else None


def to_bool(text: str) -> bool | None:
    """The truth value that a word stands for in YAML; None if it is no such word."""
    word = text.lower()
    return word in TRUE_WORDS if word in TRUE_WORDS + FALSE_WORDS else None


def to_value(text: str) -> Any:
    """An unquoted value where no type is declared: nothing, a bool, number or text."""
    if text in NOTHING:
        return None
    for value in (to_bool(text), to_number(text)):
        if value is not None:
            return value
    return str(text)
