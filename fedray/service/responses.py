"""JSON responses: results, models streamed from disk, and one format of errors."""

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from ray.exceptions import RayError, RayTaskError
from starlette.responses import Response, StreamingResponse

from fedray.errors import CallRefused, ConfigError, FedrayError, LimitReached
from fedray.service import client_words, store
from fedray.service.json_text import write_json
from fedray.service.limit_log import LimitLog

CHUNK = 1 << 20  # bytes of a file that are in memory at once
LIMITS = LimitLog()  # one for all calls of a process
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


def model_response(folder: Path, head: dict[str, Any]) -> Response:
    """`head` and the model in `folder`, streamed: it is never whole in memory.

    Without a model, `global_model` is null.
    """
    start = write_json(head)[:-1]
    try:
        file = (folder / store.ANSWER).open("rb")
    except FileNotFoundError:
        missing = {"global_model": None, "global_model_info": None}
        return json_response(head | missing)
    file.seek(1)  # past its brace
    n_bytes = len(start) + 1 + os.fstat(file.fileno()).st_size - 1

    async def chunks() -> AsyncIterator[bytes]:
        with file:
            yield start + b","
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk

    length = {"content-length": str(n_bytes)}
    return StreamingResponse(chunks(), headers=length, media_type="application/json")


def history_json(folder: Path) -> orjson.Fragment:
    """The complete lines of a federation's history.jsonl as a JSON list, not parsed.

    The federation's folder is cut off from the paths of a party's files.
    """
    try:
        history = (folder / "history.jsonl").read_bytes()
        lines = history.replace(f"{folder}/".encode(), b"").split(b"\n")[:-1]
    except FileNotFoundError:
        lines = []
    return orjson.Fragment(b"[" + b",".join(lines) + b"]")


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
        status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 500
        return status, f"The service's disk refuses: {error.strerror}.", RETRY
    return 500, "Something went wrong in the service.", RETRY
