"""A disk that fails one chosen call, or loses power at it with all that is not flushed.

Every call that changes something below a folder is a point: opening a file to write,
write, truncate, flush (fsync), mkdir, rename, replace, link, unlink, rmdir. A point is
known by its file, the kind of call, and how many calls of that kind the file has had,
so that threads do not matter. What libraries do in C is not seen as calls, but as
contents that count once they are flushed.

After a power cut a file has the contents of its last flush, and a folder the entries of
its last flush: what POSIX promises and no more. Two variants are harsher in one way and
milder in another, since disks reorder: all entries are there, and of files that were
not flushed half of their contents; or all that was written is there.
"""

import builtins
import collections
import contextlib
import errno
import io
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
CUTS = ("unflushed lost", "entries kept, contents halved", "all kept")
RANDOM = re.compile(r"\.[0-9a-f]{8}\.|[0-9a-f]{32}")  # in names of temporary files, ids


class Point(NamedTuple):
    """The `n`-th call of one kind that changes one file or folder."""

    file: str  # from the disk's folder on, without random parts
    call: str
    n: int

    def __str__(self) -> str:
        return f"{self.call} {self.file} #{self.n}"


class PowerCut(BaseException):
    """The machine is off; no handler of errors may run on."""


class FaultyDisk:
    """Counts the calls that change a folder; fails at one of them.

    Parameters
    ----------
    root : the folder; all in it, and itself, counts as flushed when this is made.
    point : at which call something happens; None: at none.
    code : number of the error that this call fails with; None: a power cut.
    """

    def __init__(self, root: Path, point: Point | None = None, code: int | None = None):
        self.root, self.point, self.code = Path(os.path.realpath(root)), point, code
        self.points: list[Point] = []  # in the order of the calls
        self.is_off = False
        self.error_path: str | None = None  # of the call that has failed
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._lock = threading.RLock()
        self._contents: dict[int, bytes] = {}  # by inode, as flushed
        self._entries: dict[int, dict[str, int]] = {}
        self._is_folder: dict[int, bool] = {}
        self._dirty: set[int] = set()
        self._held: list[int] = []  # descriptors, so that no inode is used again
        self._real: dict[str, Any] = {}
        for folder, _, files in os.walk(self.root):
            self._flush(folder)
            for file in files:
                self._flush(os.path.join(folder, file))

    @contextlib.contextmanager
    def mounted(self) -> Iterator["FaultyDisk"]:
        """Watch every call of this process meanwhile."""
        with contextlib.ExitStack() as stack:
            for name in ("open", "fsync", "mkdir", "rmdir", "unlink", "remove", "link",
                         "rename", "replace", "truncate"):  # fmt: skip
                self._real[name] = getattr(os, name)
                replacement = getattr(self, f"_os_{name}")
                stack.enter_context(mock.patch.object(os, name, replacement))
            self._real["io_open"] = io.open
            for module in (io, builtins):
                stack.enter_context(mock.patch.object(module, "open", self._io_open))
            try:
                yield self
            finally:
                for handle in self._held:
                    os.close(handle)
                self._held.clear()

    def restart(self, cut: str) -> None:
        """Turn the disk to what a machine finds when its power is back."""
        if cut == CUTS[0]:
            tree = self._flushed_tree(os.stat(self.root).st_ino)
        else:
            tree = self._live_tree(self.root, is_halved=cut == CUTS[1])
        shutil.rmtree(self.root)
        _write_tree(self.root, tree)

    def _flushed_tree(self, inode: int) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, child in self._entries.get(inode, {}).items():
            is_folder = self._is_folder[child]
            content = self._contents.get(child, b"")
            tree[name] = self._flushed_tree(child) if is_folder else content
        return tree

    def _live_tree(self, folder: Path, is_halved: bool) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for path in folder.iterdir():
            if path.is_dir():
                tree[path.name] = self._live_tree(path, is_halved)
                continue
            content, inode = path.read_bytes(), path.stat().st_ino
            flushed = self._contents.get(inode, b"")
            if is_halved and (inode in self._dirty or inode not in self._contents):
                n_flushed = len(flushed) if content.startswith(flushed) else 0
                content = content[: (n_flushed + len(content)) // 2]
            tree[path.name] = content
        return tree

    def _call(self, call: str, path: str, *others: str) -> bool:
        """Count a call; False if it is not below the folder."""
        path = os.path.abspath(path)
        if not f"{path}/".startswith(f"{self.root}/"):
            return False
        with self._lock:
            if self.is_off:
                raise PowerCut
            file = RANDOM.sub(".", os.path.relpath(path, self.root))
            self._counts[call, file] += 1
            point = Point(file, call, self._counts[call, file])
            self.points.append(point)
            if point == self.point:
                if self.code is None:
                    self.is_off = True
                    raise PowerCut
                self.error_path = path
                # a write has no file name, as with the real one
                name = () if call in ("write", "fsync", "truncate") else (path,)
                raise OSError(self.code, os.strerror(self.code), *name)
        return True

    def _created(self, path: str) -> None:
        """Note a new file or folder: nothing of it is flushed."""
        handle = self._real["open"](path, os.O_RDONLY)
        self._held.append(handle)
        inode = os.fstat(handle).st_ino
        self._is_folder[inode] = os.path.isdir(path)
        self._contents.pop(inode, None)
        self._entries.pop(inode, None)

    def _flush(self, path: str | int) -> None:
        found = os.stat(path)
        inode = found.st_ino
        is_folder = (found.st_mode & 0o170000) == 0o040000
        self._is_folder[inode] = is_folder
        if is_folder:
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            self._entries[inode] = {}
            for entry in os.scandir(path):
                child = entry.stat(follow_symlinks=False).st_ino
                self._entries[inode][entry.name] = child
                self._is_folder.setdefault(child, entry.is_dir())
        else:
            if isinstance(path, int):
                path = f"/proc/self/fd/{path}"
            read = self._real.get("io_open", open)
            with read(path, "rb") as file:
                self._contents[inode] = file.read()
            self._dirty.discard(inode)

    # what takes the place of the system's calls

    def _os_open(self, path, flags, mode=0o777, *, dir_fd=None):
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        where = _absolute(path, dir_fd)
        if where is None or not writes or not self._call("open", where):
            return self._real["open"](path, flags, mode, dir_fd=dir_fd)
        is_new = not os.path.lexists(where)
        handle = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if is_new:
            self._created(where)
        self._dirty.add(os.fstat(handle).st_ino)
        return handle

    def _os_fsync(self, handle):
        number = handle if isinstance(handle, int) else handle.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        if not self._call("fsync", path):
            self._real["fsync"](number)
            return
        with self._lock:
            self._flush(number)

    def _os_mkdir(self, path, mode=0o777, *, dir_fd=None):
        is_ours = self._call("mkdir", _absolute(path, dir_fd))
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if is_ours:
            self._created(_absolute(path, dir_fd))

    def _os_rmdir(self, path, *, dir_fd=None):
        self._call("rmdir", _absolute(path, dir_fd))
        self._real["rmdir"](path, dir_fd=dir_fd)

    def _os_unlink(self, path, *, dir_fd=None):
        self._call("unlink", _absolute(path, dir_fd))
        self._real["unlink"](path, dir_fd=dir_fd)

    _os_remove = _os_unlink

    def _os_link(self, source, target, **options):
        self._call("link", os.fspath(target))
        self._real["link"](source, target, **options)

    def _os_rename(self, source, target, **options):
        self._call("rename", os.fspath(target))
        self._real["rename"](source, target, **options)

    def _os_replace(self, source, target, **options):
        self._call("rename", os.fspath(target))
        self._real["replace"](source, target, **options)

    def _os_truncate(self, path, length):
        where = path if isinstance(path, str | os.PathLike) else f"/proc/self/fd/{path}"
        self._call("truncate", os.path.realpath(where))
        self._real["truncate"](path, length)

    def _io_open(  # noqa: PLR0913
        self, file, mode="r", buffering=-1, encoding=None, errors=None,
        newline=None, closefd=True, opener=None,
    ):  # fmt: skip
        path = _absolute(file, None)
        if path is None or not set(mode) & set("wax+") or not self._call("open", path):
            return self._real["io_open"](
                file, mode, buffering, encoding, errors, newline, closefd, opener
            )
        is_new = not os.path.lexists(path)
        raw = _File(path, mode.translate({ord("b"): None, ord("t"): None}))
        raw.disk, raw.path = self, path
        if is_new:
            self._created(path)
        self._dirty.add(os.fstat(raw.fileno()).st_ino)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)


class _File(io.FileIO):
    """A file whose writes are counted."""

    disk: FaultyDisk
    path: str

    def write(self, data):
        self.disk._call("write", self.path)
        self.disk._dirty.add(os.fstat(self.fileno()).st_ino)
        return super().write(data)

    def truncate(self, size=None):
        self.disk._call("truncate", self.path)
        self.disk._dirty.add(os.fstat(self.fileno()).st_ino)
        return super().truncate(size)


def _absolute(path: Any, folder: int | None) -> str | None:
    if isinstance(path, int):
        return None
    path = os.fsdecode(path)
    if folder is not None:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)


def _write_tree(folder: Path, tree: dict[str, Any]) -> None:
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            _write_tree(folder / name, content)
        else:
            (folder / name).write_bytes(content)
