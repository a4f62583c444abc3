"""Request bodies: JSON and forms, read as they arrive, within limits of size and time.

Values of a form go into memory, files onto the disk under names that the service makes.
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
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from fedray import durable_files
from fedray.errors import CallRefused, ConfigError
from fedray.service import file_locks
from fedray.service.json_text import read_json, value_problem
from fedray.service.settings import Settings
from fedray.untrusted_text import encodable, escape

MAX_FIELDS = 64  # of one call
MAX_FILES = 2
MAX_NAME = 128  # characters of a field's name
MAX_PARAMETERS = 64  # of a part's header
MAX_FILE_NAME = 100  # characters of a client's file name in messages
MAX_PART_HEADERS = 16 << 10  # bytes
MAX_VALUE = 64 << 10  # bytes of a field's value
MAX_PLAIN = 1 << 20  # bytes of a body without files
MIN_RATE = 16 << 10  # bytes per second, after twice the body timeout
FLUSH = 1 << 20  # bytes written at once
SUFFIX = re.compile(r"(\.[a-z0-9]{1,10}){1,2}$")
NO_CHARSETS = (  # codecs of Python that are no charset of a form
    *("idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"),
)
EXAMPLE = 'Send an object like {"aggregator_id": "..."}.'


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
    holds: list[int] = field(default_factory=list)  # handles of the files: in use

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


async def read_form(request: Request, folder: Path, settings: Settings) -> FormData:
    """Read a request's body; its files land in `folder`.

    Raises
    ------
    CallRefused
        400 if it is malformed, 408 if it comes too slowly, 413 if it is too large,
        415 if it is neither JSON nor a form.
    ConfigError
        If JSON has a value that no answer could repeat.
    """
    header = request.headers.get("content-type", "")
    kind, options = parse_options_header(header.encode("latin-1", "replace"))
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary")
        return await _read_multipart(request, folder, boundary, settings)
    if kind not in (b"application/json", b"application/x-www-form-urlencoded", b""):
        detail = f"A body of type {kind[:80].decode('latin-1')!r} is not understood."
        hint = "Send application/json, or a form as multipart/form-data or urlencoded."
        raise CallRefused(415, detail, hint)
    body = bytearray()
    async for chunk in _body_chunks(request, MAX_PLAIN, settings.body_timeout_s):
        body += chunk
    if kind == b"application/x-www-form-urlencoded":
        return FormData(_parse_urlencoded(bytes(body)))
    return FormData(_parse_json(bytes(body)))


async def _body_chunks(
    request: Request, limit: int, timeout_s: float
) -> AsyncIterator[bytes]:
    """Chunks of the body; its declared length is checked first, then what arrives.

    Parameters
    ----------
    limit : bytes of the whole body.
    timeout_s : for each chunk; from twice that on, at least `MIN_RATE` is expected.
    """
    _check_declared_length(request, limit)
    n_bytes, started = 0, time.monotonic()
    stream = request.stream().__aiter__()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), timeout_s)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _body_too_slow() from None
        except ClientDisconnect:
            detail = "The body ended before it was complete."
            raise CallRefused(400, detail, "Send it again.") from None
        n_bytes += len(chunk)
        if n_bytes > limit:
            raise _body_too_large(limit)
        overtime_s = time.monotonic() - started - 2 * timeout_s
        if overtime_s > n_bytes / MIN_RATE:
            raise _body_too_slow()
        if chunk:
            yield chunk


def _check_declared_length(request: Request, limit: int) -> None:
    declared = request.headers.get("content-length")
    if declared is not None and not re.fullmatch(r"[0-9]{1,18}", declared):
        raise CallRefused(400, "Content-Length is no number.", "Send it as bytes.")
    if int(declared or 0) > limit:
        raise _body_too_large(limit)


def _body_too_large(limit: int) -> CallRefused:
    return CallRefused(413, f"The body is larger than {limit} bytes.", "Send less.")


def _body_too_slow() -> CallRefused:
    return CallRefused(408, "The body comes too slowly.", "Send it again, faster.")


def _malformed(why: str) -> CallRefused:
    hint = "Send a form as `requests` and browsers do."
    return CallRefused(400, f"The form is malformed: {why}.", hint)


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        orjson.loads(body or b"{}")  # strict: neither NaN nor stray surrogates
        values = read_json(body or b"{}")
    except ValueError as error:
        detail = f"The body is not JSON: {str(error)[:200]}."
        raise CallRefused(400, detail, EXAMPLE) from None
    if not isinstance(values, dict):
        detail = f"The body is JSON, but a {type(values).__name__} and not an object."
        raise CallRefused(400, detail, EXAMPLE)
    if len(values) > MAX_FIELDS:
        raise CallRefused(400, f"It has more than {MAX_FIELDS} keys.", "Send fewer.")
    problems = [value_problem(name, value) for name, value in values.items()]
    if problems := list(filter(None, problems)):
        raise ConfigError(problems)
    return values


def _parse_urlencoded(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode(), True, strict_parsing=bool(body), max_num_fields=MAX_FIELDS
        )
    except ValueError as error:  # UnicodeDecodeError among them
        raise _malformed(str(error)[:200]) from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _malformed("it gives a field twice")
    return values


async def _read_multipart(
    request: Request, folder: Path, boundary: bytes | None, settings: Settings
) -> FormData:
    target, limit = MultipartTarget(folder), settings.max_upload
    try:
        parser = MultipartParser(boundary or b"", {
            "on_part_begin": target.begin_part,
            "on_header_field": target.add_header_name,
            "on_header_value": target.add_header_value,
            "on_header_end": target.end_header,
            "on_headers_finished": target.end_headers,
            "on_part_data": target.add_data,
            "on_part_end": target.end_part,
            "on_end": target.end_form,
        }, limit)  # fmt: skip
        if not boundary:
            raise _malformed("its Content-Type names no boundary")
        async for chunk in _body_chunks(request, limit, settings.body_timeout_s):
            parser.write(chunk)
            await asyncio.to_thread(target.flush, FLUSH)
        await asyncio.to_thread(target.flush, 0)
        if not target.is_complete:
            raise _malformed("it ends in the middle of a part")
    except FormParserError as error:
        target.discard()
        raise _malformed(str(error)[:200]) from None
    except BaseException:  # the client may hang up at any moment
        target.discard()
        raise
    return target.form


class MultipartTarget:
    """Receives the parts of one multipart form from a parser; never much in memory.

    The parser calls `begin_part`, `add_header_name`, ..., `end_part` for each part. A
    file's data is buffered until `flush` writes it, so that no callback waits for a
    disk.
    """

    def __init__(self, folder: Path):
        self.folder, self.form = folder, FormData()
        self.is_complete, self.n_parts = False, 0
        self.path: Path | None = None
        self.file: BinaryIO | None = None
        self.buffer: list[bytes] = []
        self.n_buffered = 0

    def begin_part(self) -> None:
        """A part begins."""
        self.n_parts += 1
        if self.n_parts > MAX_FIELDS:
            raise _malformed(f"it has more than {MAX_FIELDS} parts")
        self.headers: dict[bytes, bytes] = {}
        self.header_name, self.header_value = b"", b""
        self.n_header_bytes = 0
        self.name, self.path, self.value = "", None, bytearray()

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
            raise _malformed(f"the headers of a part exceed {MAX_PART_HEADERS} bytes")

    def end_header(self) -> None:
        """Store the header that has ended."""
        self.headers[self.header_name.lower()] = self.header_value
        self.header_name, self.header_value = b"", b""

    def end_headers(self) -> None:
        """Read the field's name; open a file if the part is one."""
        try:
            header = PartHeader(self.headers)
        except ValueError as error:  # of a charset that is none, in a name or value
            raise _malformed(f"headers of a part: {str(error)[:80]}") from None
        self.name, self.charset = header.name, header.charset
        if not header.is_utf8 and not self.name.isascii():
            raise _malformed("a field's name is not UTF-8")
        if not 0 < len(self.name) <= MAX_NAME:
            raise _malformed(f"a part needs a name of 1 to {MAX_NAME} characters")
        if self.name in self.form.values or self.name in self.form.files:
            raise _malformed(f"it gives {self.name!a} twice")
        if header.encoding not in ("", "7bit", "8bit", "binary"):
            what = f"part {self.name!a} has Content-Transfer-Encoding"
            raise _malformed(f"{what}: {header.encoding[:40]!a}; send its bytes as is")
        if header.file_name is not None:
            self._open_file(header.file_name)

    def add_data(self, data: bytes, start: int, end: int) -> None:
        """Append to the part's value or file."""
        if self.path is not None:
            self.buffer.append(data[start:end])
            self.n_buffered += end - start
        elif len(self.value) + end - start > MAX_VALUE:
            detail = f"The value of {self.name!a} is larger than {MAX_VALUE} bytes."
            raise CallRefused(413, detail, "Send files as files, with a file name.")
        else:
            self.value += data[start:end]

    def end_part(self) -> None:
        """Store the value, or close the file."""
        if self.path is None or self.file is None:
            what = f"the value of {self.name!a}"
            value = _decode(bytes(self.value), what, self.charset)
            self.form.values[self.name] = value
        else:
            self.flush(0)
            with durable_files.name_errors(self.path):
                self.file.close()
                n_bytes = self.path.stat().st_size
            self._add_file(Upload(self.path, n_bytes, self.file_name))

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
        if len(self.form.files) >= MAX_FILES:
            raise _malformed(f"it has more than {MAX_FILES} files")
        self.file_name = _harmless(client_name)
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
        raise _malformed(wrong) from None
    except (LookupError, ValueError):  # NUL in its name
        raise _malformed(f"{what} is in an unknown charset; send UTF-8") from None
    return text
