"""Answers in JSON: what goes well, and everything that does not, in one form."""

import asyncio
import os
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from ray.exceptions import RayError, RayTaskError
from starlette.responses import Response, StreamingResponse

from fedray.errors import CallRefused, ConfigError, FedrayError
from fedray.service import store as states

CHUNK = 1 << 20  # bytes of a file that are in memory at once
BUSY = "Try again in a moment; look at the service's log if it stays so."


def answer(value: Any, status: int = 200) -> Response:
    """Plain data as JSON; NaN becomes null, as JSON has none."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def refusal(error: Exception) -> Response:
    """The answer to a call that went wrong: ``{"error", "detail", "hint"}``."""
    status, detail, hint = _told(error)
    word = HTTPStatus(status).phrase.lower()
    plain = {"error": word, "detail": detail, "hint": hint}
    if isinstance(error, ConfigError):
        plain["problems"] = error.problems
    return answer(plain, status)


def cause_of(error: Exception) -> Exception:
    """What an actor raised, out of what Ray wrapped around it."""
    return error.cause if isinstance(error, RayTaskError) else error


def with_model(folder: Path, head: dict[str, Any]) -> Response:
    """`head` together with the model in `folder`, which is never whole in memory.

    Without a model `global_model` is null.
    """
    begin = orjson.dumps(head)[:-1]
    try:
        file = (folder / states.ANSWER).open("rb")
    except FileNotFoundError:
        return answer(head | {"global_model": None, "global_model_info": None})
    file.seek(1)  # past its brace
    size = len(begin) + 1 + os.fstat(file.fileno()).st_size - 1

    async def parts() -> AsyncIterator[bytes]:
        with file:
            yield begin + b","
            while part := await asyncio.to_thread(file.read, CHUNK):
                yield part

    length = {"content-length": str(size)}
    return StreamingResponse(parts(), headers=length, media_type="application/json")


def history(folder: Path) -> orjson.Fragment:
    """Whole lines of a federation's history.jsonl, as a list, unread."""
    try:
        lines = (folder / "history.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        lines = []
    return orjson.Fragment(b"[" + b",".join(lines) + b"]")


def _told(error: Exception) -> tuple[int, str, str]:
    error = cause_of(error)
    if isinstance(error, CallRefused):
        return error.status, error.detail, error.hint
    if isinstance(error, ConfigError):
        return 422, str(error), "GET /docs lists the fields; mend them all at once."
    if isinstance(error, RayError):
        return 503, "The federation's actor does not answer.", BUSY
    if isinstance(error, FedrayError):
        return 500, f"{type(error).__name__} in the service.", BUSY
    return 500, "Something went wrong in the service.", BUSY
