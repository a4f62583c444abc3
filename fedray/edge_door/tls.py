"""TLS of the edges' door: certificates that are renewed, handshakes that are bounded.

A handshake is counted from the first byte on: uvicorn and asyncio would let thousands
of connections that never finish theirs hold files for a minute each.
"""

import asyncio
import contextlib
import logging
import ssl
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

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

    Parameters
    ----------
    table : of handshakes.
    make_inner : makes the HTTP protocol.
    """

    def __init__(self, table: Handshakes, make_inner: Callable[[], asyncio.Protocol]):
        self.table, self.make_inner = table, make_inner
        self.transport: asyncio.Transport | None = None
        self.early = bytearray()  # that came with the end of the handshake
        self.has_ended = False
        self.task: asyncio.Task | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.pause_reading()  # all bytes are the handshake's
        self.table.add(self)
        self.task = asyncio.ensure_future(self._shake_hands(transport))

    async def _shake_hands(self, raw: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                raw,
                self,
                self.table.certificate.context(),
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except (OSError, ssl.SSLError):  # no TLS, given up, too slow
            raw.abort()
            return
        finally:
            self.table.remove(self)
        if transport is not None and not self.has_ended:
            inner = self.make_inner()
            inner.connection_made(transport)
            transport.set_protocol(inner)
            if self.early:
                inner.data_received(bytes(self.early))

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the HTTP protocol is there: one record at most."""
        self.early += data

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone before it had a connection."""
        self.has_ended = True
        self.table.remove(self)

    def abort(self) -> None:
        """Give way to a newer connection."""
        self.table.remove(self)
        if self.transport is not None:
            self.transport.abort()


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
