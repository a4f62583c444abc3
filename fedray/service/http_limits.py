"""Limits on Serve's HTTP proxy: headers of bounded size, within bounded time.

Serve's proxy takes whichever parser uvicorn finds, and the faster one reads headers
without end. Its processes call `guard` if their environment says so when the cluster is
started; ``fedray serve`` sets that variable for the cluster that it starts by itself.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEADER_TIMEOUT_S = 20.0  # for the headers of a request, once its connection is open


class LimitedProtocol(H11Protocol):
    """One connection; closed if headers take too long. h11 refuses more than 64 kB."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer of the first request's headers."""
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the timer once headers are complete; start it for the next request."""
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _update_timer(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self.timer is None:
            self.timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def guard() -> list:
    """Make this process's uvicorn use `LimitedProtocol`; adds no middleware."""
    auto.AutoHTTPProtocol = LimitedProtocol
    return []


IMPORT_PATH = f"{__name__}:{guard.__name__}"
