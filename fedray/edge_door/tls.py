"""TLS of the edges' door: certificates that are renewed, handshakes that are bounded.

A handshake is counted from the first byte on: uvicorn and asyncio would let thousands
of connections that never finish theirs hold files for a minute each.
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError
from fedray.federation.host_checks import is_open_to_others

HANDSHAKE_S = 10.0
CLOSE_S = 5.0  # for a client to answer that the connection ends
MAX_HANDSHAKES = 512  # at a time; the oldest gives way to a new one
LOG = logging.getLogger("fedray")


class Certificate:
    """Certificate and key in PEM files, which are read again when they have changed.

    Raises
    ------
    ConfigError
        If they cannot be used.
    """

    def __init__(self, cert: str, key: str):
        self.cert, self.key = (Path(one).expanduser() for one in (cert, key))
        self._version = self._file_version()
        try:
            self._context = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError([f"--tls-cert, --tls-key: {_describe(error)}"]) from None
        if is_open_to_others(self.key):
            LOG.warning("other users of this machine can read %s: chmod 600", self.key)

    def context(self) -> ssl.SSLContext:
        """Settings of a handshake, by the files as they are now."""
        version = self._file_version()
        if version != self._version:
            self._version = version
            try:
                self._context = self._read()
                LOG.warning("the edges' door has a new certificate: %s", self.cert)
            except (OSError, ValueError) as error:
                text = "%s cannot be used, the certificate before goes on: %s"
                LOG.error(text, self.cert, _describe(error))
        return self._context

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.cert, self.key, password=_refuse_password)
        return context

    def _file_version(self) -> list[tuple[int, ...] | None]:
        return [_version(path) for path in (self.cert, self.key)]


class Handshakes:
    """Connections that have not finished their handshake, the oldest first."""

    def __init__(self, certificate: Certificate):
        self.certificate = certificate
        self.open: OrderedDict[TlsConnection, None] = OrderedDict()

    def add(self, connection: "TlsConnection") -> None:
        """Count a connection; the oldest gives way if there are too many."""
        self.open[connection] = None
        if len(self.open) > MAX_HANDSHAKES:
            next(iter(self.open)).abort()

    def remove(self, connection: "TlsConnection") -> None:
        """A handshake has ended, in whatever way."""
        self.open.pop(connection, None)


class TlsConnection(asyncio.Protocol):
    """Takes a connection through its handshake, then hands it to an HTTP protocol.

    It keeps the socket alone: no loop may read of a handshake before TLS is there, and
    uvloop, which Ray's actors have, reads whatever a protocol asks of it.

    Parameters
    ----------
    table : of handshakes.
    make_inner : makes the HTTP protocol.
    """

    def __init__(self, table: Handshakes, make_inner: Callable[[], asyncio.Protocol]):
        self.table, self.make_inner = table, make_inner
        self.task: asyncio.Task | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin the handshake."""
        own = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        transport.abort()  # closes its own handle, not the connection
        self.table.add(self)
        self.task = asyncio.ensure_future(self._shake_hands(own))
        self.task.add_done_callback(functools.partial(_close_if_given_up, own))

    async def _shake_hands(self, own: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            own.setblocking(False)
            await loop.connect_accepted_socket(
                self.make_inner,
                own,
                ssl=self.table.certificate.context(),
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except OSError:  # no TLS, too slow
            own.close()
        finally:
            self.table.remove(self)

    def abort(self) -> None:
        """Give way to a newer connection."""
        self.table.remove(self)
        if self.task is not None:
            self.task.cancel()


def _close_if_given_up(own: socket.socket, task: asyncio.Task) -> None:
    """Close the socket of a handshake that was cancelled, also before it had begun."""
    if task.cancelled():
        own.close()


def _version(path: Path) -> tuple[int, ...] | None:
    with contextlib.suppress(OSError):
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_ino, stat.st_size
    return None


def _describe(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"no certificate in PEM with the key that is its own ({reason})"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error)


def _refuse_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to type the password")
