"""Reads text files one document at a time: folders, zips and tars, and JSON Lines.

Nothing is extracted. What a file declares is not trusted: names are checked, and bytes
are counted while they are decompressed. Errors name members and lines, never what is in
them.
"""

import bz2
import codecs
import gzip
import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fedray import limits
from fedray.data.text import MAX_DOCUMENTS
from fedray.errors import DataError
from fedray.file_kinds import kind_of_start, read_start
from fedray.untrusted_text import decode_name

MAX_MEMBER_BYTES = 16 << 20  # of one document
MAX_BYTES = 16 << 30  # of all documents
MAX_DIRECTORY_BYTES = 1 << 30  # of a zip's list of members
MAX_NAME = 1024
OPENERS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {  # by first bytes
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
}  # not xz: it may ask for 4 GiB at once
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
NEEDED = "a whole zip or tar of text files, or a folder of them"
CHUNK_BYTES = 1 << 16  # of JSON Lines
MARKS = (  # first bytes of a text: its encoding
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

File = tuple[str, bytes]


class BoundedStream(io.RawIOBase):
    """A stream that raises a DataError when it decompresses to too many bytes.

    The limit of all bytes follows from the size of the file on disk. `n_member_left` is
    the limit until the next member, set by the caller when one begins.
    """

    def __init__(self, inner: io.BufferedIOBase, path: Path):
        self.inner, self.path, self.n_read = inner, path, 0
        self.n_member_left = 2 * MAX_MEMBER_BYTES
        self.n_most = limits.max_inflated_bytes(path.stat().st_size, MAX_BYTES)

    def readable(self) -> bool:
        """True: it can be read, not written."""
        return True

    def close(self) -> None:
        """Close the inner stream too."""
        self.inner.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        most = MAX_MEMBER_BYTES
        chunk = self.inner.read(min(size, most) if size >= 0 else most)
        self.n_read += len(chunk)
        self.n_member_left -= len(chunk)
        if self.n_member_left < 0:
            raise DataError(str(self.path), "a member past the bounds", NEEDED)
        if self.n_read > self.n_most:
            needed = f"at most {limits.MAX_INFLATION} times"
            raise DataError(str(self.path), "a file that inflates past that", needed)
        return chunk


def open_bounded(path: Path) -> BoundedStream:
    """Open a regular file; gzip and bzip2 (by its first bytes) are decompressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, decompress in OPENERS.items():
        if start.startswith(magic):
            return BoundedStream(decompress(path), path)
    return BoundedStream(open(path, "rb"), path)


def read_files(path: Path) -> Iterator[File]:
    """Yield name and bytes of every text file; of a zip or folder sorted by name.

    Left out: hidden files and `__MACOSX`, and in a folder links, devices and sockets.
    An archive with a link, a device, a name that leads out of it, two members of one
    name or one that is too large is refused as a whole.

    Raises
    ------
    DataError
        If there is no such file, or it is none of these, truncated or hostile.
    """
    try:
        if path.is_dir():
            yield from _read_folder(path)
        elif zipfile.is_zipfile(path):
            yield from _read_zip(path)
        else:
            yield from _read_tar(path)
    except DataError:
        raise
    except OSError as error:
        if error.errno:
            raise DataError(str(path), str(error.strerror), NEEDED) from None
        raise DataError(str(path), "a file that is cut short", NEEDED) from None
    except Exception as error:
        # hostile bytes break zipfile, tarfile and zlib in too many ways to list them
        got = f"a file that cannot be read ({type(error).__name__})"
        raise DataError(str(path), f"{got}{_kind_words(path)}", NEEDED) from None


def _kind_words(path: Path) -> str:
    """What a file that is no archive is instead, as the end of a sentence."""
    start = read_start(path)
    kind = kind_of_start(start, path.suffix)
    if kind is None:
        return "" if start else ": it is empty"
    return f": it is {kind.what}"


def _read_folder(path: Path) -> Iterator[File]:
    files = []
    for root, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(root, name) for name in names]
        if len(files) > MAX_DOCUMENTS:
            raise DataError(str(path), "more files", f"at most {MAX_DOCUMENTS}")
    for file_path in sorted(files):
        name = Path(file_path).relative_to(path).as_posix()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        if _is_hidden(name) or not stat.S_ISREG(os.lstat(file_path).st_mode):
            continue
        with open(os.open(file_path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                continue
            data = file.read(MAX_MEMBER_BYTES + 1)
        yield _check_name(name, path), _check_size(data, name, path)


def _read_zip(path: Path) -> Iterator[File]:
    with open(path, "rb") as file:
        # zipfile offers no public way to learn the size of the list of members before
        # it reads the list
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end is None or end[5] > MAX_DIRECTORY_BYTES:
            raise DataError(str(path), "a zip with too long a list", NEEDED)
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            names = [_check_name(member.orig_filename, path) for member in members]
            _check_zip(members, names, path)
            by_name = dict(zip(names, members, strict=True))
            for name in sorted(by_name):
                if _is_hidden(name):
                    continue
                with archive.open(by_name[name]) as stream:
                    data = stream.read(MAX_MEMBER_BYTES + 1)
                yield name, _check_size(data, name, path)


def _check_zip(members: list[zipfile.ZipInfo], names: list[str], path: Path) -> None:
    if len(names) > MAX_DOCUMENTS or len(set(names)) < len(names):
        raise DataError(str(path), "two members of one name, or too many", NEEDED)
    n_inflated = sum(member.file_size for member in members)
    if n_inflated > limits.max_inflated_bytes(path.stat().st_size, MAX_BYTES):
        needed = f"at most {limits.MAX_INFLATION} times"
        raise DataError(str(path), "a zip that inflates past that", needed)
    for member, name in zip(members, names, strict=True):
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise DataError(str(path), f"a link or device {name[:40]!r}", NEEDED)
        if member.flag_bits & 1 or member.compress_type not in COMPRESSIONS:
            got = f"a member {name[:40]!r} that is encrypted or packed in another way"
            raise DataError(str(path), got, NEEDED)


def _read_tar(path: Path) -> Iterator[File]:
    names: set[str] = set()
    with (
        open_bounded(path) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        for member in archive:
            # or it would keep every member in memory; an attribute without a type
            archive.members = []  # type: ignore[attr-defined]
            stream.n_member_left = 2 * MAX_MEMBER_BYTES
            if member.isdir():
                continue
            name = _check_name(member.name, path)
            if not member.isreg() or member.issparse():
                raise DataError(str(path), f"a link or device {name[:40]!r}", NEEDED)
            if name in names or len(names) >= MAX_DOCUMENTS:
                raise DataError(str(path), "two members of one name", NEEDED)
            names.add(name)
            if not 0 <= member.size <= MAX_MEMBER_BYTES:
                raise _too_large(name, path)
            file = archive.extractfile(member)
            data = file.read() if file else b""
            if len(data) < member.size:
                raise DataError(str(path), "a tar that is cut short", NEEDED)
            if not _is_hidden(name):
                yield name, data
    if not names:
        raise DataError(str(path), "a tar without a file", NEEDED)


def _check_size(data: bytes, name: str, path: Path) -> bytes:
    if len(data) > MAX_MEMBER_BYTES:
        raise _too_large(name, path)
    return data


def _too_large(name: str, path: Path) -> DataError:
    needed = f"documents of at most {MAX_MEMBER_BYTES >> 20} MiB"
    return DataError(str(path), f"a larger one, {name[-40:]!r}", needed)


def _check_name(name: str, path: Path) -> str:
    """A member's name as text, if it does not lead out of the archive."""
    name = decode_name(name)
    parts = PurePosixPath(name).parts
    is_wrong = (
        not 0 < len(name) <= MAX_NAME
        or "\0" in name
        or name.startswith("/")
        or "\\" in name
        or ".." in parts
        or name[1:2] == ":"
    )
    if is_wrong:
        got = f"a member named {name[:40]!r}"
        raise DataError(str(path), got, f"plain names within it, up to {MAX_NAME} long")
    return name


def marked_encoding(data: bytes) -> str | None:
    """Encoding that a text's first bytes say it has (a byte order mark), if any."""
    return next((name for mark, name in MARKS if data.startswith(mark)), None)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_jsonl(path: Path) -> bool:
    """Whether a file is JSON Lines: by its suffix, or because it begins with a brace.

    An upload has no suffix of its own.
    """
    if path.is_dir() or path.suffix in (".jsonl", ".ndjson"):
        return path.is_file()
    try:
        with open_bounded(path) as file:
            start = file.read(100)
            text = start.decode(marked_encoding(start) or "latin-1", "ignore")
            return text.lstrip().startswith("{")
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
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                got = f"{name} that is not UTF-8 (Latin-1 perhaps?)"
                raise DataError(str(path), got, f"{needed}, in UTF-8") from None
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


def _utf8_encoder(start: bytes) -> Callable[[bytes], bytes]:
    """Turns one chunk of a file after another into UTF-8, by the mark at its start."""
    encoding = marked_encoding(start)
    if encoding is None:
        return bytes
    decode = codecs.getincrementaldecoder(encoding)("replace").decode
    return lambda chunk: decode(chunk).encode("utf-8", "replace")


def _read_lines(file: BoundedStream, path: Path) -> Iterator[bytes]:
    rest, to_utf8 = b"", None
    while chunk := file.read(CHUNK_BYTES):
        file.n_member_left = MAX_MEMBER_BYTES
        to_utf8 = to_utf8 or _utf8_encoder(chunk)
        *lines, rest = (rest + to_utf8(chunk)).split(b"\n")
        yield from lines
        if len(rest) > MAX_MEMBER_BYTES:
            needed = f"lines of at most {MAX_MEMBER_BYTES >> 20} MiB"
            raise DataError(str(path), "a longer line", needed)
    yield rest
