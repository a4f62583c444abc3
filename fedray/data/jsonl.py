"""Reads JSON Lines files (one document a line) incrementally and within limits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedray.data.archive import MAX_MEMBER_BYTES, BoundedStream, open_bounded
from fedray.errors import DataError

CHUNK_BYTES = 1 << 16


def is_jsonl(path: Path) -> bool:
    """Whether a file is JSON Lines: by its suffix, or because it begins with a brace.

    An upload has no suffix of its own.
    """
    if path.is_dir() or path.suffix in (".jsonl", ".ndjson"):
        return path.is_file()
    try:
        with open_bounded(path) as file:
            return file.read(100).lstrip().startswith(b"{")
    except Exception:  # a damaged compressed file: reading it will raise a DataError
        return False


def read_objects(path: Path, needed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("line 7", {...}) for every line that is not blank.

    needed : what a line should be, for errors, which never quote one.

    Raises
    ------
    DataError
        At the first line that is not an object, is too long or nested too deep.
    """
    with open_bounded(path) as file:
        for number, line in enumerate(_read_lines(file, path), 1):
            if not line.strip():
                continue
            name = f"line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                got = f"{name} that is not JSON"
                raise DataError(str(path), got, needed) from None
            if not isinstance(value, dict):
                raise DataError(str(path), f"{name} that is no object", needed)
            yield name, value


def get_text(value: dict[str, Any], key: str, name: str, source: str) -> str | None:
    """The text under a key of a line's object; None if the key is missing.

    name : of the line, for errors.

    Raises
    ------
    DataError
        If the value is not text.
    """
    text = value.get(key)
    if text is not None and not isinstance(text, str):
        got = f"{name} with a {key} of type {type(text).__name__}"
        raise DataError(source, got, f"{key} as text")
    return text


def _read_lines(file: BoundedStream, path: Path) -> Iterator[bytes]:
    rest = b""
    while chunk := file.read(CHUNK_BYTES):
        file.n_member_left = MAX_MEMBER_BYTES
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > MAX_MEMBER_BYTES:
            needed = f"lines of at most {MAX_MEMBER_BYTES >> 20} MiB"
            raise DataError(str(path), "a longer line", needed)
    yield rest
