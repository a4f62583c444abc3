"""JSON responses: results, models streamed from disk, and one format of errors."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from ray.exceptions import RayError, RayTaskError
from starlette.responses import Response, StreamingResponse

from fedray.errors import CallRefused, ConfigError, FedrayError, LimitReached
from fedray.service import client_words, store
from fedray.service.json_text import write_json
from fedray.service.limit_log import LimitLog

HISTORY = "history.jsonl"
PIECE = 256 << 10  # bytes of an answer that are in memory at once
LIMITS = LimitLog()  # one for all calls of a process
# of a line of a history: paths, addresses, names of machines, halves of pairs
SUSPECT = re.compile(rb'/|\\ud|": "[^"]*: ')
LOG = logging.getLogger("fedray")
RETRY = "Try again in a moment; look at the service's log if it stays so."


def json_response(value: Any, status: int = 200) -> Response:
    """Plain data as JSON; NaN becomes null, as JSON has none."""
    return Response(write_json(value), status, media_type="application/json")


def error_response(error: Exception, scope: Mapping[str, Any]) -> Response:
    """The answer to a call that failed: ``{"error", "detail", "hint"}``.

    A limit that was reached is named in it as ``limit``, logged and counted.

    scope : of the call, as ASGI has it.
    """
    error = unwrap(error)
    if isinstance(error, OSError) and error.errno in store.NO_ROOM:
        LOG.error("cannot write %s: %s", error.filename, error.strerror)
        detail = f"The service's disk refuses: {error.strerror}."
        error = LimitReached("min_free_disk", detail, RETRY, 507, 60)
    if isinstance(error, ConfigError):
        error = client_words.without_paths(error)
    status, detail, hint = _status_and_text(error)
    phrase = HTTPStatus(status).phrase.lower()
    plain: dict[str, Any] = {"error": phrase, "detail": detail, "hint": hint}
    if isinstance(error, ConfigError):
        plain["problems"] = error.problems
    if not isinstance(error, LimitReached):
        return json_response(plain, status)
    call = f"{scope['method']} {scope['path']}"
    LIMITS.record(scope.get("client_id"), call, error.limit)
    response = json_response(plain | {"limit": error.limit}, status)
    if error.retry_after_s:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


def unwrap(error: Exception) -> Exception:
    """The error that an actor raised, out of Ray's wrapper."""
    return error.cause if isinstance(error, RayTaskError) else error


async def model_response(
    folder: Path, head: dict[str, Any], words: Mapping[str, str] | None = None
) -> Response:
    """`head`, the rounds if wanted, and the model in `folder`.

    Nothing of it is whole in memory. Without a model, `global_model` is null.

    words : with the rounds; what the client calls its files, by what they are here.
    """
    start = write_json(head)[:-1]
    history: Iterator[bytes] = iter(())
    if words is not None:
        history = itertools.chain([b',"history":'], history_pieces(folder, words))
    try:
        file = (folder / store.ANSWER).open("rb")
    except FileNotFoundError:
        end = b',"global_model":null,"global_model_info":null}'
        return await _json_stream(itertools.chain([start], history, [end]))
    n_bytes = len(start) + os.fstat(file.fileno()).st_size
    file.seek(1)  # past its brace, for which there is a comma
    parts = itertools.chain([start], history, [b","], _file_pieces(file))
    return await _json_stream(parts, n_bytes if words is None else None)


async def history_response(
    folder: Path, head: dict[str, Any], words: Mapping[str, str]
) -> Response:
    """`head` and the rounds of a federation, which are not whole in memory.

    words : as `model_response` has them.
    """
    start = write_json(head)[:-1] + b',"history":'
    history = history_pieces(folder, words)
    return await _json_stream(itertools.chain([start], history, [b"}"]))


def history_pieces(folder: Path, words: Mapping[str, str]) -> Iterator[bytes]:
    """The complete lines of a federation's history.jsonl as a JSON list.

    A line is only parsed if it may have a path in it, as errors of a party do.
    """
    separator = b"["
    with contextlib.suppress(FileNotFoundError), open(folder / HISTORY, "rb") as file:
        for line in file:
            if line[:1] == b"{" and line.endswith(b"}\n"):
                yield separator + _client_line(line[:-1], words, folder)
                separator = b","
    yield b"]" if separator == b"," else b"[]"


def _client_line(line: bytes, words: Mapping[str, str], folder: Path) -> bytes:
    if not SUSPECT.search(line):
        return line
    plain = json.loads(line)
    return write_json(client_words.hide_paths_in_data(plain, words, folder))


def _file_pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece


async def _json_stream(parts: Iterator[bytes], n_bytes: int | None = None) -> Response:
    """Parts of a JSON text as an answer; with its length if that is known, or short."""
    pieces = _join_pieces(parts)
    first = await asyncio.to_thread(next, pieces)
    second: bytes | None = await asyncio.to_thread(next, pieces, None)
    if second is None:
        return Response(first, media_type="application/json")

    async def chunks() -> AsyncIterator[bytes]:
        yield first
        yield second
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    length = {} if n_bytes is None else {"content-length": str(n_bytes)}
    return StreamingResponse(chunks(), headers=length, media_type="application/json")


def _join_pieces(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of about `PIECE`."""
    waiting, n_bytes = [], 0
    for part in parts:
        waiting.append(part)
        n_bytes += len(part)
        if n_bytes >= PIECE:
            yield b"".join(waiting)
            waiting, n_bytes = [], 0
    yield b"".join(waiting)


def _status_and_text(error: Exception) -> tuple[int, str, str]:
    """HTTP status, detail and hint of an error."""
    if isinstance(error, CallRefused):
        return error.status, error.detail, error.hint
    if isinstance(error, ConfigError):
        hint = "Correct them all at once; GET /docs lists what each call takes."
        return 422, str(error), hint
    if isinstance(error, RayError):
        return 503, "The federation's actor does not answer.", RETRY
    if isinstance(error, FedrayError):
        return 500, client_words.translate(error.summary, {}), RETRY
    if isinstance(error, OSError) and error.filename:
        LOG.error("cannot write or read %s: %s", error.filename, error.strerror)
        return 500, f"The service's disk refuses: {error.strerror}.", RETRY
    return 500, "Something went wrong in the service.", RETRY
