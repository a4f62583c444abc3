"""Request bodies: JSON and forms, read as they arrive, within the service's limits."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from fedray.errors import CallRefused, ConfigError
from fedray.service.disk import Disk
from fedray.service.json_text import read_json, value_problem
from fedray.service.settings import Settings
from fedray.service.uploads import FLUSH, FormData, MultipartTarget, malformed
from fedray.service.usage import Claim

MEMORY_STEP = 64 << 10  # bytes of memory counted at once
STEP = 8 << 20  # bytes of disk reserved at once for a body of unknown length
SMALL_BODY = 64 << 10  # bytes of memory that naming a federation and party may take
JSON_FACTOR = 24  # bytes of memory that a byte of JSON may take, as [] or {}
EXAMPLE = 'Send an object like {"aggregator_id": "..."}.'


class BodyReader:
    """Reads the body of one call, counting what it takes of memory and disk.

    Parameters
    ----------
    request : the call; its claim counts what the body takes.
    settings : with the limits of a body.
    disk : where files land; None: the call takes none, and none that comes is stored.
    """

    def __init__(self, request: Request, settings: Settings, disk: Disk | None = None):
        self.request, self.settings, self.disk = request, settings, disk
        self.claim: Claim = request.scope["claim"]
        self.n_written = 0

    async def read(self) -> FormData:
        """The form; what it takes stays counted until the call ends.

        Raises
        ------
        CallRefused
            400 if it is malformed, 408 if it comes too slowly, 413 if it is too large,
            415 if it is neither JSON nor a form, 429 or 507 if a limit is reached.
        """
        header = self.request.headers.get("content-type", "")
        kind, options = parse_options_header(header.encode("latin-1", "replace"))
        if kind == b"multipart/form-data":
            return await self._read_multipart(options.get(b"boundary"))
        if kind not in (b"application/json", b"application/x-www-form-urlencoded", b""):
            what = kind[:80].decode("latin-1")
            detail = f"A body of type {what!r} is not understood."
            hint = "Send application/json, or a form as multipart/form-data or "
            raise CallRefused(415, detail, hint + "urlencoded.")
        body, limit = bytearray(), self.settings.max_body
        async for chunk in read_chunks(self.request, self.settings, limit):
            self._count_memory(len(body) + len(chunk))
            body += chunk
        most = self.settings.max_fields
        if kind == b"application/x-www-form-urlencoded":
            return FormData(_parse_urlencoded(bytes(body), most))
        self._count_memory(len(body) * JSON_FACTOR)
        return FormData(parse_json(bytes(body), most))

    async def _read_multipart(self, boundary: bytes | None) -> FormData:
        folder = await asyncio.to_thread(self.disk.upload_folder) if self.disk else None
        target = MultipartTarget(folder, self.settings)
        limit = self.settings.max_upload
        try:
            parser = target.make_parser(boundary or b"", limit)
            if not boundary:
                raise malformed("its Content-Type names no boundary")
            n_bytes = 0
            async for chunk in read_chunks(self.request, self.settings, limit):
                n_bytes += len(chunk)
                await self._reserve_disk(n_bytes)
                parser.write(chunk)
                self._count_memory(target.n_memory)
                await asyncio.to_thread(target.flush, FLUSH)
            await asyncio.to_thread(target.flush, 0)
            if not target.is_complete:
                raise malformed("it ends in the middle of a part")
        except FormParserError as error:
            target.discard()
            raise malformed(str(error)[:200]) from None
        except BaseException:  # the client may hang up at any moment
            target.discard()
            raise
        self.claim.reduce_to(disk=target.n_written, unwritten=0)
        return target.form

    async def _reserve_disk(self, n_bytes: int) -> None:
        """Reserve disk for a body before it is written: all of it, or a step ahead."""
        if self.disk is None:
            return
        if n_bytes > self.claim.amounts["disk"]:
            declared = int(self.request.headers.get("content-length", 0))
            ahead = math.ceil(n_bytes / STEP) * STEP
            await self.disk.reserve(self.claim, declared or ahead)
        if n_bytes - self.n_written >= STEP:
            self.claim.remove(unwritten=n_bytes - self.n_written)
            self.n_written = n_bytes

    def _count_memory(self, n_bytes: int) -> None:
        """Count memory that the body takes, in steps; that of a stop if it is much."""
        if n_bytes > SMALL_BODY:
            self.claim.is_checked = True
        n_steps = math.ceil(n_bytes / MEMORY_STEP)
        self.claim.raise_to(bytes_in_flight=n_steps * MEMORY_STEP)


async def read_chunks(
    request: Request, settings: Settings, limit: int
) -> AsyncIterator[bytes]:
    """Chunks of a body; its declared length is checked first, then what arrives.

    limit : bytes of the whole body.

    Raises
    ------
    CallRefused
        400 if it ends early, 408 if it comes too slowly, 413 if it is too large.
    """
    timeout_s = settings.body_timeout_s
    _check_declared_length(request, limit)
    n_bytes, started = 0, time.monotonic()
    stream = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                chunk = await anext(stream)
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
        if overtime_s > n_bytes / settings.min_body_rate:
            raise _body_too_slow()
        if chunk:
            yield chunk


def _check_declared_length(request: Request, limit: int) -> None:
    declared = request.headers.get("content-length")
    if declared is not None and not re.fullmatch(r"[0-9]{1,4000}", declared):
        raise CallRefused(400, "Content-Length is no number.", "Send it as bytes.")
    if int(declared or 0) > limit:
        raise _body_too_large(limit)


def _body_too_large(limit: int) -> CallRefused:
    return CallRefused(413, f"The body is larger than {limit} bytes.", "Send less.")


def _body_too_slow() -> CallRefused:
    return CallRefused(408, "The body comes too slowly.", "Send it again, faster.")


def parse_json(body: bytes, most: int) -> dict[str, Any]:
    """The object of a JSON body, of at most so many keys.

    Raises
    ------
    CallRefused, ConfigError
        If it is no such object, or has a value that no answer could repeat.
    """
    try:
        orjson.loads(body or b"{}")  # strict: neither NaN nor stray surrogates
        values = read_json(body or b"{}")
    except ValueError as error:
        detail = f"The body is not JSON: {str(error)[:200]}."
        raise CallRefused(400, detail, EXAMPLE) from None
    if not isinstance(values, dict):
        detail = f"The body is JSON, but a {type(values).__name__} and not an object."
        raise CallRefused(400, detail, EXAMPLE)
    if len(values) > most:
        raise CallRefused(400, f"It has more than {most} keys.", "Send fewer.")
    problems = [value_problem(name, value) for name, value in values.items()]
    if problems := list(filter(None, problems)):
        raise ConfigError(problems)
    return values


def _parse_urlencoded(body: bytes, most: int) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode(), True, strict_parsing=bool(body), max_num_fields=most
        )
    except ValueError as error:  # UnicodeDecodeError among them
        raise malformed(str(error)[:200]) from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise malformed("it gives a field twice")
    return values
