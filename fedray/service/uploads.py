"""Parts of multipart forms: values in memory, files on the disk.

Files have names that the service makes. `BodyReader` reads the bodies.
"""

import asyncio
import codecs
import contextlib
import dataclasses
import email.message
import email.utils
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from python_multipart.multipart import MultipartParser

from fedray import durable_files
from fedray.errors import CallRefused
from fedray.service import file_locks
from fedray.service.settings import Settings
from fedray.untrusted_text import encodable, escape

MAX_FILES = 2  # of one call: none has more
MAX_NAME = 128  # characters of a field's name
MAX_PARAMETERS = 64  # of a part's header
MAX_FILE_NAME = 100  # characters of a client's file name in messages
MAX_PART_HEADERS = 16 << 10  # bytes
FLUSH = 256 << 10  # bytes of a file written at once
SUFFIX = re.compile(r"(\.[a-z0-9]{1,10}){1,2}$")
NO_CHARSETS = (  # codecs of Python that are no charset of a form
    *("idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"),
)


@dataclass(frozen=True)
class Upload:
    """A file that has arrived; `path` is a name that the service made."""

    path: Path
    n_bytes: int
    client_name: str = ""  # its own name, for messages alone


@dataclass
class FormData:
    """A request's values and uploaded files, by the names of their fields."""

    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)
    stray_files: list[str] = field(default_factory=list)  # where a call takes none
    holds: list[int] = field(default_factory=list)  # handles of the files: in use

    @property
    def names(self) -> list[str]:
        """Names of all fields."""
        return [*self.values, *self.files, *self.stray_files]

    @property
    def paths(self) -> list[Path]:
        """Paths of the uploaded files."""
        return [upload.path for upload in self.files.values()]

    @property
    def words(self) -> dict[str, str]:
        """What the client calls each file, by its name here: ``data a.npz``."""
        return {
            upload.path.name: f"{field} {upload.client_name}".rstrip()
            for field, upload in self.files.items()
        }

    async def rename(self, name: str, suffix: str) -> Path:
        """Give an uploaded file another suffix; its new path."""
        upload = self.files[name]
        path = upload.path.with_suffix(suffix)
        await asyncio.to_thread(durable_files.move, upload.path, path)
        self.files[name] = dataclasses.replace(upload, path=path)
        return path

    def discard(self) -> None:
        """Delete the uploaded files that were not moved elsewhere.

        What the disk refuses to delete is left to the sweep.
        """
        for upload in self.files.values():
            with contextlib.suppress(OSError):
                upload.path.unlink(missing_ok=True)
        while self.holds:
            os.close(self.holds.pop())


def malformed(why: str) -> CallRefused:
    """The error of a form that is not as forms are."""
    hint = "Send a form as `requests` and browsers do."
    return CallRefused(400, f"The form is malformed: {why}.", hint)


class MultipartTarget:
    """Receives the parts of one multipart form from a parser; never much in memory.

    The parser calls `begin_part`, `add_header_name`, ..., `end_part` for each part. A
    file's data is buffered until `flush` writes it, so that no callback waits for a
    disk.
    """

    def __init__(self, folder: Path | None, settings: Settings):
        self.folder, self.settings, self.form = folder, settings, FormData()
        self.is_complete, self.n_parts = False, 0
        self.is_file = False
        self.path: Path | None = None
        self.file: BinaryIO | None = None
        self.buffer: list[bytes] = []
        self.n_buffered = self.n_bytes = self.n_written = self.n_of_values = 0

    def make_parser(self, boundary: bytes, limit: int) -> MultipartParser:
        """A parser of at most `limit` bytes that calls this target."""
        return MultipartParser(boundary, {
            "on_part_begin": self.begin_part,
            "on_header_field": self.add_header_name,
            "on_header_value": self.add_header_value,
            "on_header_end": self.end_header,
            "on_headers_finished": self.end_headers,
            "on_part_data": self.add_data,
            "on_part_end": self.end_part,
            "on_end": self.end_form,
        }, limit)  # fmt: skip

    @property
    def n_memory(self) -> int:
        """Bytes of the form that are in memory."""
        return self.n_buffered + self.n_of_values

    def begin_part(self) -> None:
        """A part begins."""
        self.n_parts += 1
        if self.n_parts > self.settings.max_fields:
            raise malformed(f"it has more than {self.settings.max_fields} parts")
        self.headers: dict[bytes, bytes] = {}
        self.header_name, self.header_value = b"", b""
        self.n_header_bytes = 0
        self.name, self.value = "", bytearray()
        self.is_file, self.path, self.n_bytes = False, None, 0

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        """Append to the name of the part's current header."""
        self._count_header_bytes(end - start)
        self.header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        """Append to the value of the part's current header."""
        self._count_header_bytes(end - start)
        self.header_value += data[start:end]

    def _count_header_bytes(self, n_bytes: int) -> None:
        self.n_header_bytes += n_bytes
        if self.n_header_bytes > MAX_PART_HEADERS:
            raise malformed(f"the headers of a part exceed {MAX_PART_HEADERS} bytes")

    def end_header(self) -> None:
        """Store the header that has ended."""
        self.headers[self.header_name.lower()] = self.header_value
        self.header_name, self.header_value = b"", b""

    def end_headers(self) -> None:
        """Read the field's name; open a file if the part is one."""
        try:
            header = PartHeader(self.headers)
        except ValueError as error:  # of a charset that is none, in a name or value
            raise malformed(f"headers of a part: {str(error)[:80]}") from None
        self.name, self.charset = header.name, header.charset
        if not header.is_utf8 and not self.name.isascii():
            raise malformed("a field's name is not UTF-8")
        if not 0 < len(self.name) <= MAX_NAME:
            raise malformed(f"a part needs a name of 1 to {MAX_NAME} characters")
        if self.name in self.form.names:
            raise malformed(f"it gives {self.name!a} twice")
        if header.encoding not in ("", "7bit", "8bit", "binary"):
            what = f"part {self.name!a} has Content-Transfer-Encoding"
            raise malformed(f"{what}: {header.encoding[:40]!a}; send its bytes as is")
        if header.file_name is not None:
            self._open_file(header.file_name)

    def add_data(self, data: bytes, start: int, end: int) -> None:
        """Append to the part's value or file."""
        most = self.settings.max_value
        if self.is_file:
            self.n_bytes += end - start
            if self.path is not None:
                self.buffer.append(data[start:end])
                self.n_buffered += end - start
        elif len(self.value) + end - start > most:
            detail = f"The value of {self.name!a} is larger than {most} bytes."
            raise CallRefused(413, detail, "Send files as files, with a file name.")
        else:
            self.value += data[start:end]
            self.n_of_values += end - start

    def end_part(self) -> None:
        """Store the value, or close the file."""
        if not self.is_file:
            what = f"the value of {self.name!a}"
            value = _decode(bytes(self.value), what, self.charset)
            self.form.values[self.name] = value
        elif self.path is None or self.file is None:
            if self.file_name or self.n_bytes:
                self.form.stray_files.append(self.name)
            else:
                self.form.values[self.name] = ""
        else:
            self.flush(0)
            with durable_files.name_errors(self.path):
                self.file.close()
            self.n_written += self.n_bytes
            self._add_file(Upload(self.path, self.n_bytes, self.file_name))

    def end_form(self) -> None:
        """The last boundary was read."""
        self.is_complete = True

    def flush(self, threshold: int) -> None:
        """Write buffered data to the file if it is more than `threshold` bytes."""
        if self.file is not None and self.n_buffered > threshold:
            with durable_files.name_errors(Path(self.file.name)):
                self.file.write(b"".join(self.buffer))
            self.buffer, self.n_buffered = [], 0

    def discard(self) -> None:
        """Delete all files, complete or not."""
        self.form.discard()
        if self.file is not None:
            self.file.close()
            Path(self.file.name).unlink(missing_ok=True)

    def _add_file(self, upload: Upload) -> None:
        """Keep the file; one without name and bytes is a file input left empty."""
        if upload.client_name or upload.n_bytes:
            self.form.files[self.name] = upload
        else:
            upload.path.unlink()
            self.form.values[self.name] = ""

    def _open_file(self, client_name: str) -> None:
        """Open a file under a random name; only a harmless suffix is the client's."""
        if len(self.form.files) + len(self.form.stray_files) >= MAX_FILES:
            raise malformed(f"it has more than {MAX_FILES} files")
        self.is_file, self.file_name = True, _harmless(client_name)
        if self.folder is None:
            return
        suffix = SUFFIX.search(client_name[-64:].lower())
        self.path = self.folder / (
            secrets.token_hex(16) + (suffix[0] if suffix else "")
        )
        self.file = self.path.open("xb")
        self.form.holds.append(file_locks.hold(self.file.fileno()))


class PartHeader:
    """Headers of one part: name, file name, charset, in any form that clients use.

    A file name is ``filename="a.npz"``, also empty, or RFC 5987's
    ``filename*=UTF-8''a.npz``, which goes before the other. A part of type
    application/octet-stream is a file without a name.

    Raises
    ------
    ValueError
        If they name a charset that is none, or have too many parameters.
    """

    def __init__(self, headers: Mapping[bytes, bytes]):
        message = email.message.Message()
        self.is_utf8 = True
        for name in ("content-disposition", "content-type"):
            message[name] = self._text(headers.get(name.encode(), b""))
        encoding = headers.get(b"content-transfer-encoding", b"")
        self.encoding = encoding.decode("latin-1").strip().lower()
        self.name = _parameter(message, "name") or ""
        self.file_name = _parameter(message, "filename")
        is_binary = message.get_content_type() == "application/octet-stream"
        if self.file_name is None and is_binary:
            self.file_name = ""
        self.charset = message.get_content_charset("utf-8")

    def _text(self, raw: bytes) -> str:
        """Header text, of UTF-8 or else Latin-1; without line ends."""
        if raw.count(b";") > MAX_PARAMETERS:  # each is looked for from the start
            raise ValueError(f"more than {MAX_PARAMETERS} parameters")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text, self.is_utf8 = raw.decode("latin-1"), False
        return re.sub(r"[\r\n\0]", " ", text)


def _parameter(message: email.message.Message, name: str) -> str | None:
    """A parameter of Content-Disposition; None if it is not there."""
    own = dict(message.get_params([], "content-disposition"))
    value = own.get(name)
    if value is None:
        return None
    return encodable(email.utils.collapse_rfc2231_value(value))


def _harmless(client_name: str) -> str:
    """A client's file name as messages have it: short, without folders."""
    last = PurePath(client_name.replace("\\", "/")).name
    plain = escape(last).replace("\n", " ")
    is_long = len(plain) > MAX_FILE_NAME
    return f"{plain[: MAX_FILE_NAME // 2]}...{plain[-40:]}" if is_long else plain


def _decode(raw: bytes, what: str, charset: str = "utf-8") -> str:
    """Text of a value in the charset that its part names, which UTF-8 can write, too.

    Raises
    ------
    CallRefused
        If it is no text in that charset.
    """
    try:
        if codecs.lookup(charset).name in NO_CHARSETS:
            raise LookupError
        text = raw.decode(charset)
        text.encode()  # UTF-7 has halves of surrogate pairs
    except UnicodeError:
        wrong = f"{what} is not {charset.upper()}; a file needs a file name"
        raise malformed(wrong) from None
    except (LookupError, ValueError):  # NUL in its name
        raise malformed(f"{what} is in an unknown charset; send UTF-8") from None
    return text
