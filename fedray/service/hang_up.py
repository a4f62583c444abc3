"""Ends the work of a call when its client has hung up."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request

from fedray.errors import CallRefused

T = TypeVar("T")


async def run_unless_gone(request: Request, work: Coroutine[None, None, T]) -> T:
    """Await work for a call whose body has been read; cancel it at a hang-up.

    A server need not cancel a call whose client is gone: uvicorn does not.

    Raises
    ------
    CallRefused
        If the client has hung up; nobody reads it.
    """
    task = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_wait_for_hang_up(request))
    try:
        await asyncio.wait([task, hang_up], return_when="FIRST_COMPLETED")
        if not task.done() and hang_up.exception() is not None:  # a server without it
            await asyncio.wait([task])
    finally:
        hang_up.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if task.cancelled():
        raise CallRefused(400, "The client has hung up.", "Call again.")
    return task.result()


async def _wait_for_hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
