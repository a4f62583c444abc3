"""What guards Serve's own HTTP front: headers of bounded size, in bounded time.

Serve's proxy takes whichever parser uvicorn finds, and the faster one reads headers
without end. Its processes call `guard` if their environment says so when the cluster is
started; ``fedray serve`` sees to that for the cluster it starts by itself.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEAD_S = 20.0  # for the headers of a request, once its connection is there


class Front(H11Protocol):
    """One connection; h11 gives up on headers of more than 64 kB."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected, and has so long to say what it wants."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self.timer is None:
            self.timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _forget(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def guard() -> list:
    """Let this process's uvicorn use `Front`; adds no middleware."""
    auto.AutoHTTPProtocol = Front
    return []


NAME = f"{__name__}:{guard.__name__}"
