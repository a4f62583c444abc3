"""Files of a folder, a zip or a tar, read one at a time and never extracted.

What an archive declares is not believed: names are checked, sizes are counted while
they inflate, and a lie ends the reading. Errors name members, never what is in them.
"""

import bz2
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fedray.data.text import MAX_DOCUMENTS
from fedray.errors import DataError

MAX_MEMBER = 16 << 20  # bytes of one document
MAX_BYTES = 16 << 30  # of all
MAX_INFLATION = 200  # times; real text reaches about 10
FREE_BYTES = 64 << 20  # below this no inflation hurts
MAX_DIRECTORY = 1 << 30  # bytes of a zip's list of members
MAX_NAME = 1024
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}  # xz may ask for 4 GiB at once
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
WHOLE = "a whole zip or tar of text files, or a folder of them"

File = tuple[str, bytes]


class Bounded(io.RawIOBase):
    """A stream that ends in a DataError where it gives more than it may.

    Counts what comes out of a decompressor against what lies on the disk.
    """

    def __init__(self, inner: IO[bytes], path: Path):
        self.inner, self.path, self.n_read = inner, path, 0
        self.n_left = 2 * MAX_MEMBER  # until the next member
        n_there = path.stat().st_size
        self.n_most = min(MAX_BYTES, max(FREE_BYTES, MAX_INFLATION * n_there))

    def readable(self) -> bool:
        """It can be read, and nothing else."""
        return True

    def close(self) -> None:
        """Close what lies under it too."""
        self.inner.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        given = self.inner.read(min(size, MAX_MEMBER) if size >= 0 else MAX_MEMBER)
        self.n_read += len(given)
        self.n_left -= len(given)
        if self.n_left < 0:
            raise DataError(str(self.path), "a member past the bounds", WHOLE)
        if self.n_read > self.n_most:
            needed = f"at most {MAX_INFLATION} times"
            raise DataError(str(self.path), "a file that inflates past that", needed)
        return given


def opened(path: Path) -> Bounded:
    """A regular file, decompressed by what its first bytes say, within bounds."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, opener in OPENERS.items():
        if start.startswith(magic):
            return Bounded(opener(path, "rb"), path)
    return Bounded(open(path, "rb"), path)


def files(path: Path) -> Iterator[File]:
    """Names and bytes of all text files, in the order of their names (zip, folder).

    Left out: empty names, hidden files and `__MACOSX`, and in a folder links, devices
    and sockets. An archive with a link, a device, a name that leaves it, two members
    of one name or one past the bounds is refused as a whole.

    Raises
    ------
    DataError
        If there is no such file, or it is none of these, or cut short, or hostile.
    """
    try:
        if path.is_dir():
            yield from _folder(path)
        elif zipfile.is_zipfile(path):
            yield from _zip(path)
        else:
            yield from _tar(path)
    except DataError:
        raise
    except OSError as error:
        if error.errno:
            raise DataError(str(path), str(error.strerror), WHOLE) from None
        raise DataError(str(path), "a file that is cut short", WHOLE) from None
    except Exception as error:
        # hostile bytes break zipfile, tarfile and zlib in too many ways to list them
        got = f"a file that cannot be read ({type(error).__name__})"
        raise DataError(str(path), got, WHOLE) from None


def _folder(path: Path) -> Iterator[File]:
    found = []
    for root, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(root, name) for name in names]
        if len(found) > MAX_DOCUMENTS:
            raise DataError(str(path), "more files", f"at most {MAX_DOCUMENTS}")
    for name in sorted(found):
        inside = Path(name).relative_to(path).as_posix()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        if _is_hidden(inside) or not stat.S_ISREG(os.lstat(name).st_mode):
            continue
        with open(os.open(name, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                continue
            data = file.read(MAX_MEMBER + 1)
        yield _checked(inside, path), _whole(data, inside, path)


def _zip(path: Path) -> Iterator[File]:
    with open(path, "rb") as file:
        end = zipfile._EndRecData(file)  # before the list of members is read
        if end is None or end[5] > MAX_DIRECTORY:
            raise DataError(str(path), "a zip with too long a list", WHOLE)
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            names = [_checked(member.orig_filename, path) for member in members]
            _check_zip(members, names, path)
            for member in sorted(members, key=lambda member: member.orig_filename):
                if _is_hidden(member.orig_filename):
                    continue
                with archive.open(member) as inside:
                    data = inside.read(MAX_MEMBER + 1)
                name = member.orig_filename
                yield name, _whole(data, name, path)


def _check_zip(members: list[zipfile.ZipInfo], names: list[str], path: Path) -> None:
    if len(names) > MAX_DOCUMENTS or len(set(names)) < len(names):
        raise DataError(str(path), "two members of one name, or too many", WHOLE)
    n_inflated = sum(member.file_size for member in members)
    n_there = path.stat().st_size
    if n_inflated > min(MAX_BYTES, max(FREE_BYTES, MAX_INFLATION * n_there)):
        needed = f"at most {MAX_INFLATION} times"
        raise DataError(str(path), "a zip that inflates past that", needed)
    for member, name in zip(members, names, strict=True):
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise DataError(str(path), f"a link or device {name[:40]!r}", WHOLE)
        if member.flag_bits & 1 or member.compress_type not in PACKED:
            got = f"a member {name[:40]!r} that is encrypted or packed in another way"
            raise DataError(str(path), got, WHOLE)


def _tar(path: Path) -> Iterator[File]:
    seen: set[str] = set()
    with opened(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            archive.members = []  # or it would remember every one
            stream.n_left = 2 * MAX_MEMBER
            if member.isdir():
                continue
            name = _checked(member.name, path)
            if not member.isreg() or member.issparse():
                raise DataError(str(path), f"a link or device {name[:40]!r}", WHOLE)
            if name in seen or len(seen) >= MAX_DOCUMENTS:
                raise DataError(str(path), "two members of one name", WHOLE)
            seen.add(name)
            if not 0 <= member.size <= MAX_MEMBER:
                raise _too_large(name, path)
            data = archive.extractfile(member).read()
            if len(data) < member.size:
                raise DataError(str(path), "a tar that is cut short", WHOLE)
            if not _is_hidden(name):
                yield name, data
    if not seen:
        raise DataError(str(path), "a tar without a file", WHOLE)


def _whole(data: bytes, name: str, path: Path) -> bytes:
    if len(data) > MAX_MEMBER:
        raise _too_large(name, path)
    return data


def _too_large(name: str, path: Path) -> DataError:
    needed = f"documents of at most {MAX_MEMBER >> 20} MiB"
    return DataError(str(path), f"a larger one, {name[-40:]!r}", needed)


def _checked(name: str, path: Path) -> str:
    """A member's name, which may not leave the archive nor hide what it is."""
    parts = PurePosixPath(name).parts
    wrong = (
        not 0 < len(name) <= MAX_NAME
        or not name.isprintable()
        or name.startswith("/")
        or "\\" in name
        or ".." in parts
        or name[1:2] == ":"
    )
    if wrong:
        got = f"a member named {name[:40]!r}"
        raise DataError(str(path), got, f"plain names within it, up to {MAX_NAME} long")
    return name


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
