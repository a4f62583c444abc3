"""operator.jsonl: what only the operator of a run may read, one JSON object a line.

Where a privacy mechanism hides what tells of single parties it stands here alone. The
mechanism's guarantee does not cover this file.
"""

import json
import os
from pathlib import Path
from typing import Any

FILE = "operator.jsonl"
MODE = 0o600


def append_for_operator(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to the file, which its owner alone can read.

    A round that is trained again after a crash has a line of its own.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder / FILE, flags | os.O_NONBLOCK, MODE)  # of a pipe: an error
    try:
        os.fchmod(handle, MODE)
        os.write(handle, (json.dumps(line, default=str) + "\n").encode())
    finally:
        os.close(handle)


def read_for_operator(folder: Path) -> list[dict[str, Any]]:
    """All lines of the file; none where there is none.

    Raises
    ------
    OSError, ValueError
        If it cannot be read.
    """
    if not (folder / FILE).exists():
        return []
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
