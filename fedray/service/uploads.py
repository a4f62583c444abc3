"""What a multipart form brings: values into memory, files onto the disk."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from fedray.errors import CallRefused
from fedray.service.settings import Settings

MAX_FIELDS = 64  # of one call
MAX_FILES = 2
MAX_NAME = 128  # bytes of a field's name
MAX_VALUE = 64 << 10  # bytes of a field's value
SUFFIX = re.compile(r"(\.[a-z0-9]{1,10}){1,2}$")


@dataclass(frozen=True)
class Upload:
    """A file that has arrived; `path` is where it lies, under a name of our own."""

    path: Path
    n_bytes: int


@dataclass
class Body:
    """What came: values by name, files by name."""

    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """Where the files lie."""
        return [upload.path for upload in self.files.values()]

    def rename(self, name: str, ending: str) -> Path:
        """Give a file another ending; where it lies then."""
        upload = self.files[name]
        path = upload.path.with_suffix(ending)
        upload.path.rename(path)
        self.files[name] = Upload(path, upload.n_bytes)
        return path

    def discard(self) -> None:
        """Delete what was uploaded and nobody took over."""
        for upload in self.files.values():
            upload.path.unlink(missing_ok=True)


def malformed(why: str) -> CallRefused:
    """The answer to a form that cannot be read."""
    hint = "Send a form as `requests` and browsers do."
    return CallRefused(400, f"The form is malformed: {why}.", hint)


class Form:
    """Takes the parts of one form as a parser finds them; never much in memory.

    The parser calls `begin`, `take_header`, ..., `end` for each part; what belongs
    to a file is kept until `flush` writes it.
    """

    def __init__(self, folder: Path):
        self.folder, self.body = folder, Body()
        self.finished, self.n_parts = False, 0
        self.file: BinaryIO | None = None
        self.pending: list[bytes] = []
        self.n_pending = 0

    def begin(self) -> None:
        """A part begins."""
        self.n_parts += 1
        if self.n_parts > MAX_FIELDS:
            raise malformed(f"it has more than {MAX_FIELDS} parts")
        self.headers: dict[bytes, bytes] = {}
        self.header, self.header_value = b"", b""
        self.name, self.path, self.value = "", None, bytearray()

    def take_header(self, data: bytes, start: int, end: int) -> None:
        """Some of a header's name."""
        self.header += data[start:end]

    def take_header_value(self, data: bytes, start: int, end: int) -> None:
        """Some of a header's value."""
        self.header_value += data[start:end]

    def end_header(self) -> None:
        """A header is whole."""
        self.headers[self.header.lower()] = self.header_value
        self.header, self.header_value = b"", b""

    def end_headers(self) -> None:
        """What follows is the part itself: a value, or a file if it has a name."""
        given = self.headers.get(b"content-disposition")
        _, options = parse_options_header(given)
        self.name = _text(options.get(b"name", b""), "a field's name")
        if not 0 < len(self.name) <= MAX_NAME:
            raise malformed(f"a part needs a name of 1 to {MAX_NAME} characters")
        if self.name in self.body.values or self.name in self.body.files:
            raise malformed(f"it gives {self.name!a} twice")
        if options.get(b"filename"):
            self._open(options[b"filename"])

    def take(self, data: bytes, start: int, end: int) -> None:
        """Some of the part."""
        if self.path is not None:
            self.pending.append(data[start:end])
            self.n_pending += end - start
        elif len(self.value) + end - start > MAX_VALUE:
            told = f"The value of {self.name!a} is larger than {MAX_VALUE} bytes."
            raise CallRefused(413, told, "Send files as files, with a file name.")
        else:
            self.value += data[start:end]

    def end(self) -> None:
        """The part is whole."""
        if self.path is None:
            what = f"the value of {self.name!a}"
            self.body.values[self.name] = _text(bytes(self.value), what)
        else:
            self.flush(0)
            self.file.close()
            n_bytes = self.path.stat().st_size
            self.body.files[self.name] = Upload(self.path, n_bytes)

    def finish(self) -> None:
        """The form is whole."""
        self.finished = True

    def flush(self, least: int) -> None:
        """Write what is pending if that is more than `least` bytes."""
        if self.n_pending > least:
            self.file.write(b"".join(self.pending))
            self.pending, self.n_pending = [], 0

    def discard(self) -> None:
        """Delete all files, whole or not."""
        self.body.discard()
        if self.file is not None:
            self.file.close()
            Path(self.file.name).unlink(missing_ok=True)

    def _open(self, given: bytes) -> None:
        """A file of our own name; of the client's only a harmless ending is kept."""
        if len(self.body.files) >= MAX_FILES:
            raise malformed(f"it has more than {MAX_FILES} files")
        ending = SUFFIX.search(given[-64:].decode("latin-1").lower())
        name = secrets.token_hex(16) + (ending[0] if ending else "")
        self.path = self.folder / name
        self.file = self.path.open("xb")


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise malformed(f"{what} is not UTF-8") from None


MAX_PLAIN = 1 << 20  # bytes of a body without files
SLOWEST = 16 << 10  # bytes per second, once patience has ended
FLUSH = 1 << 20  # bytes written at once
EXAMPLE = 'Send an object like {"aggregator_id": "..."}.'


async def read(request: Request, folder: Path, settings: Settings) -> Body:
    """Read a call's body; its files land in `folder`.

    Raises
    ------
    CallRefused
        400 if it is malformed, 408 if it comes too slowly, 413 if it is too large,
        415 if it is neither JSON nor a form.
    """
    header = request.headers.get("content-type", "")
    kind, options = parse_options_header(header.encode("latin-1", "replace"))
    if kind == b"multipart/form-data":
        return await _multipart(request, folder, options.get(b"boundary"), settings)
    if kind not in (b"application/json", b"application/x-www-form-urlencoded", b""):
        told = f"A body of type {kind[:80].decode('latin-1')!r} is not understood."
        hint = "Send application/json, or a form as multipart/form-data or urlencoded."
        raise CallRefused(415, told, hint)
    whole = bytearray()
    async for part in _arriving(request, MAX_PLAIN, settings.patience_s):
        whole += part
    if kind == b"application/x-www-form-urlencoded":
        return Body(_urlencoded(bytes(whole)))
    return Body(_json(bytes(whole)))


def too_large(limit: int) -> CallRefused:
    """The answer to a body over `limit` bytes."""
    return CallRefused(413, f"The body is larger than {limit} bytes.", "Send less.")


async def _arriving(
    request: Request, limit: int, patience_s: float
) -> AsyncIterator[bytes]:
    """Parts of the body; what it declares is looked at first, then what comes."""
    declared = request.headers.get("content-length")
    if declared is not None and not re.fullmatch(r"[0-9]{1,18}", declared):
        raise CallRefused(400, "Content-Length is no number.", "Send it as bytes.")
    if int(declared or 0) > limit:
        raise too_large(limit)
    n_bytes, started = 0, time.monotonic()
    parts = request.stream().__aiter__()
    while True:
        try:
            part = await asyncio.wait_for(anext(parts), patience_s)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _slow() from None
        except ClientDisconnect:
            told = "The body ended before it was whole."
            raise CallRefused(400, told, "Send it again.") from None
        n_bytes += len(part)
        if n_bytes > limit:
            raise too_large(limit)
        late_s = time.monotonic() - started - 2 * patience_s
        if late_s > n_bytes / SLOWEST:
            raise _slow()
        if part:
            yield part


def _slow() -> CallRefused:
    return CallRefused(408, "The body comes too slowly.", "Send it again, faster.")


def _json(whole: bytes) -> dict[str, Any]:
    try:
        values = orjson.loads(whole or b"{}")
    except ValueError as error:
        told = f"The body is not JSON: {str(error)[:200]}."
        raise CallRefused(400, told, EXAMPLE) from None
    if not isinstance(values, dict):
        told = f"The body is JSON, but a {type(values).__name__} and not an object."
        raise CallRefused(400, told, EXAMPLE)
    if len(values) > MAX_FIELDS:
        raise CallRefused(400, f"It has more than {MAX_FIELDS} keys.", "Send fewer.")
    return values


def _urlencoded(whole: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            whole.decode(), True, strict_parsing=bool(whole), max_num_fields=MAX_FIELDS
        )
    except ValueError as error:  # UnicodeDecodeError among them
        raise malformed(str(error)[:200]) from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise malformed("it gives a field twice")
    return values


async def _multipart(
    request: Request, folder: Path, boundary: bytes | None, settings: Settings
) -> Body:
    form, limit = Form(folder), settings.max_upload
    try:
        parser = MultipartParser(boundary or b"", {
            "on_part_begin": form.begin,
            "on_header_field": form.take_header,
            "on_header_value": form.take_header_value,
            "on_header_end": form.end_header,
            "on_headers_finished": form.end_headers,
            "on_part_data": form.take,
            "on_part_end": form.end,
            "on_end": form.finish,
        }, limit)  # fmt: skip
        if not boundary:
            raise malformed("its Content-Type names no boundary")
        async for part in _arriving(request, limit, settings.patience_s):
            parser.write(part)
            await asyncio.to_thread(form.flush, FLUSH)
        await asyncio.to_thread(form.flush, 0)
        if not form.finished:
            raise malformed("it ends in the middle of a part")
    except FormParserError as error:
        form.discard()
        raise malformed(str(error)[:200]) from None
    except BaseException:  # the client may hang up at any moment
        form.discard()
        raise
    return form.body
