"""Atomic file replacement: write beside the target, flush to disk, then rename.

After a crash, also of the machine, a file is there whole, as it was before or as it was
written last. `os.replace` alone does not promise that: the rename may reach the disk
before what was written, and neither need have reached it when the call returns.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replace_file(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block ends.

    Both file and folder are on disk then. If the block raises, the temporary file is
    deleted and `path` stays as it was.

    Parameters
    ----------
    path : its folder exists; the temporary file lies there too, has the same suffix and
        a name that starts with a dot.
    mode : permissions that the file has before anything is written; None: as the umask
        says.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    name = f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}"
    temporary = path.with_name(name)
    try:
        if mode is not None:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield temporary
        move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Replace a file by `text` in UTF-8; see `replace_file`."""
    with replace_file(path, mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file by `data`; see `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def move(source: Path, target: Path) -> None:
    """Rename a file, or a folder whose files are flushed; on disk when this returns.

    Raises
    ------
    OSError
        If the disk refuses, or `target` is a folder that is not empty.
    """
    flush(source)
    os.replace(source, target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
