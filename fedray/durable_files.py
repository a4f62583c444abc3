"""Atomic file replacement: write beside the target, flush to disk, then rename.

After a crash, also of the machine, a file is there whole, as it was before or as it was
written last. `os.replace` alone does not promise that: the rename may reach the disk
before what was written, and neither need have reached it when the call returns. Where
a call fails, the file or folder is as it was before, and the error names it.
"""

import contextlib
import errno
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
        If the disk refuses, or `path` is a device or a pipe; its `filename` is `path`.
    """
    _require_file(path)
    temporary, before = _beside(path), _beside(path)
    try:
        with name_errors(path):
            if mode is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                os.close(os.open(temporary, flags, mode))
            yield temporary
            flush(temporary)
            _replace(temporary, path, before)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            before.unlink(missing_ok=True)


def read_new_lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    """Complete lines of a file from an offset on, and the offset after them.

    A last one that is still being written comes the next time.

    Raises
    ------
    OSError
    """
    with path.open("rb") as file:
        file.seek(offset)
        added = file.read()
    complete = added[: added.rfind(b"\n") + 1]
    return complete.splitlines(), offset + len(complete)


def remove_leftovers(folder: Path) -> None:
    """Delete what a process that was killed in `replace_file` left below a folder."""
    for path in folder.rglob(".*.????????.part*"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Let an OSError of the block name this file: errors of writing name none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2
        raise


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, and those that it lies in, unless it is there; on disk then.

    mode : permissions of all that are made; 0o700: for this user alone.
    """
    if path.is_dir():
        return
    make_folder(path.parent, mode)
    path.mkdir(mode=mode, exist_ok=True)
    with contextlib.suppress(PermissionError):  # of a folder that may only be entered
        flush(path.parent)


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
        If the disk refuses, or `target` is a folder that is not empty, a device or a
        pipe. Both are as before, but for a file that was at `target`.
    """
    _require_file(target)
    flush(source)
    with name_errors(target):
        os.replace(source, target)
        try:
            flush(target.parent)
        except OSError:
            with contextlib.suppress(OSError):
                os.replace(target, source)
            raise


def flush(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on disk."""
    with name_errors(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise  # some file systems cannot flush a folder, and say so
        finally:
            os.close(handle)


def _require_file(path: Path) -> None:
    """Refuse what a rename would take away from all programs: /dev/null, a pipe."""
    if path.exists() and not path.is_file() and not path.is_dir():
        reason = "a device or a pipe, which no file may replace"
        raise OSError(errno.EINVAL, reason, str(path))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")


def _replace(temporary: Path, path: Path, before: Path) -> None:
    """Rename, and undo that where it does not reach the disk.

    before : where the old file is kept meanwhile.
    """
    is_new = not os.path.lexists(path)
    with contextlib.suppress(OSError):  # not every file system has links
        os.link(path, before)
    os.replace(temporary, path)
    try:
        flush(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink() if is_new else os.replace(before, path)
        raise
