"""The body of a call: JSON or a form, read as it comes, within limits.

Files go to the disk while they arrive, under names that the service makes.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from fedray.errors import CallRefused
from fedray.service.settings import Settings
from fedray.service.uploads import MAX_FIELDS, Body, Form, malformed

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
