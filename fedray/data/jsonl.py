"""Lines of JSON, one document each: read one at a time, within bounds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedray.data.archive import MAX_MEMBER, Bounded, opened
from fedray.errors import DataError


def are_in(path: Path) -> bool:
    """Whether a file is lines of JSON: by its name, or as it begins with a brace.

    An upload has no name of its own.
    """
    if path.is_dir() or path.suffix in (".jsonl", ".ndjson"):
        return path.is_file()
    try:
        with opened(path) as file:
            return file.read(100).lstrip().startswith(b"{")
    except Exception:  # a packed file that is damaged: whoever reads it will tell
        return False


def objects(path: Path, needed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give ("line 7", {...}) for every line that is not blank.

    needed : what a line should be, for errors, which never quote one.

    Raises
    ------
    DataError
        At the first line that is not an object, is too long or too deep.
    """
    with opened(path) as file:
        number = 0
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            who = f"line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                got = f"{who} that is not JSON"
                raise DataError(str(path), got, needed) from None
            if not isinstance(value, dict):
                raise DataError(str(path), f"{who} that is no object", needed)
            yield who, value


def text_of(value: dict[str, Any], key: str, who: str, source: str) -> str | None:
    """The text under a key; None if it is not there.

    Raises
    ------
    DataError
        If something else is there.
    """
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        got = f"{who} with a {key} of type {type(found).__name__}"
        raise DataError(source, got, f"{key} as text")
    return found


def _lines(file: Bounded, path: Path) -> Iterator[bytes]:
    rest = b""
    while given := file.read(1 << 16):
        file.n_left = MAX_MEMBER
        *whole, rest = (rest + given).split(b"\n")
        yield from whole
        if len(rest) > MAX_MEMBER:
            needed = f"lines of at most {MAX_MEMBER >> 20} MiB"
            raise DataError(str(path), "a longer line", needed)
    yield rest
