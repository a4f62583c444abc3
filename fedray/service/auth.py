"""Authentication: API keys, loopback-only access without keys, security headers.

`AuthMiddleware` is plain ASGI and never reads a body. An API key is a line of a file: a
client id and a hash of its secret. A secret is 256 random bits, which no dictionary
holds, so one SHA-256 protects it as well as a slow hash; a slow hash before every call
would let strangers keep the service busy. This module imports no web framework, so that
``fedray keys`` works without the extra `serve`.
"""

import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.errors import CallRefused, ConfigError
from fedray.service.settings import LOOPBACK, Settings
from fedray.untrusted_text import escape_line

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

ID_HEADER, SECRET_HEADER = "x-ibm-client-id", "x-ibm-client-secret"
MAX_CREDENTIAL = 256  # characters of an id or a secret
PUBLIC_PATHS = (
    *("/", "/page.js", "/curves.js", "/page.css", "/docs", "/docs.js"),
    *("/openapi.json", "/health", "/examples/model.pt", "/examples/digits.npz"),
)
PUBLIC_PREFIX = "/static-offline-docs/"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; "
)
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
COMMON_POLICY = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HOST = re.compile(  # a name or IPv4 address, or an IPv6 address; a port
    r"(?:([\w.~!$&'()*+,;=%-]*)|\[([0-9A-Fa-f:.]+(?:%25[\w.~-]+)?)\])(?::[0-9]{0,5})?"
)
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY_LINE = re.compile(rf"({CLIENT_NAME.pattern}) sha256:([0-9a-f]{{64}})")
FILE_HEAD = (
    "# fedray API keys: client and hash of its secret; add more with fedray keys\n"
)
LOG = logging.getLogger("fedray")


class AuthMiddleware:
    """Authenticates calls before `app`, which finds the client as scope["client_id"].

    Parameters
    ----------
    app : the ASGI application.
    settings : of the service; without `api_keys` only loopback is served.
    error_response : makes the answer to a call that raised.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        error_response: Callable[[Exception, Message], ASGIApp],
    ):
        self.app, self.settings = app, settings
        self.error_response = error_response
        self.hashes: dict[str, str] | None = None
        self.file_version: tuple[int, ...] | None = ()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one call; every error in it is answered in JSON."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def send_protected(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                add_security_headers(scope["path"], message)
            await send(message)

        try:
            scope["client_id"] = self._authenticate(scope)
            await self.app(scope, receive, send_protected)
        except Exception as error:
            if not isinstance(error, CallRefused):
                LOG.exception("call to %s failed", escape_line(scope["path"][:80]))
            if has_started:
                raise
            await self.error_response(error, scope)(scope, receive, send_protected)

    def _authenticate(self, scope: Message) -> str | None:
        """Client id of the call; None where the service has no keys.

        Raises
        ------
        CallRefused
            401 without a valid key, 403 from another machine or site where the service
            has no keys, 431 for headers that are too large.
        """
        _check_header_size(scope, self.settings.max_headers)
        check_host(scope)
        if self.settings.api_keys is None:
            check_loopback(scope)
            return None
        path = scope["path"]
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            return None
        ids = _header_values(scope, ID_HEADER)
        client_secrets = _header_values(scope, SECRET_HEADER)
        if len(ids) > 1 or len(client_secrets) > 1:
            detail = f"{ID_HEADER} or {SECRET_HEADER} is given more than once."
            raise CallRefused(401, detail, "Send each of them once.")
        client, secret = "".join(ids), "".join(client_secrets)
        is_short = len(client) <= MAX_CREDENTIAL and len(secret) <= MAX_CREDENTIAL
        hashes = self._current_hashes(self.settings.api_keys)
        if not is_short or not secret_matches(hashes, client, secret):
            detail = "Unknown client id, or a secret that is not its own."
            hint = f"Send the headers {ID_HEADER} and {SECRET_HEADER}."
            raise CallRefused(401, detail, hint)
        return client

    def _current_hashes(self, file: str) -> dict[str, str]:
        """Hashes by client, read again when the key file has changed.

        Raises
        ------
        CallRefused
            503 if the file cannot be read; the log says why, once.
        """
        version = _version(Path(file).expanduser())
        if version != self.file_version:
            self.hashes, self.file_version = None, version
            try:
                self.hashes = read_keys(file)
            except ConfigError as error:
                LOG.error("nobody is let in: %s", escape_line(str(error)))
        if self.hashes is None:
            detail = "The service cannot read its keys."
            raise CallRefused(503, detail, "Its operator finds the reason in the log.")
        return self.hashes


def _version(path: Path) -> tuple[int, ...] | None:
    """What is another if the file is; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _check_header_size(scope: Message, most: int) -> None:
    n_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
    if n_bytes > most:
        detail = f"The headers have {n_bytes} bytes."
        raise CallRefused(431, detail, f"At most {most} are read.")


def check_loopback(scope: Message) -> None:
    """Refuse calls from other machines and from pages of other sites.

    A page of another site could otherwise make the user's browser call the service;
    with a DNS name that it points at this machine, it could even read the answers.
    """
    hint = "Start with --api-keys FILE to serve others (see `fedray keys`)."
    address = (scope.get("client") or ("127.0.0.1",))[0]
    try:
        is_local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_local = True  # a name that only an in-process client has
    if not is_local:
        raise CallRefused(403, "Without keys only this machine may call.", hint)
    host = "".join(_header_values(scope, "host"))
    name = HOST.sub(r"\1\2", host).lower()
    if name not in LOOPBACK and not name.endswith(".localhost"):
        detail = "Without keys the service answers to localhost and 127.0.0.1 only."
        raise CallRefused(403, detail, hint)
    if any(
        origin.partition("://")[2] != host for origin in _header_values(scope, "origin")
    ):
        detail = "Another site's page may not call this service."
        raise CallRefused(403, detail, hint)


def check_host(scope: Message) -> None:
    """Refuse a Host header that no address has: addresses are made of it.

    Raises
    ------
    CallRefused
        400 if it is malformed, or there are several.
    """
    hosts = _header_values(scope, "host")
    if len(hosts) > 1 or not all(map(HOST.fullmatch, hosts)):
        detail = f"The header Host is no address: got {', '.join(hosts)[:80]!r}."
        raise CallRefused(400, detail, "Send one of the form NAME or NAME:PORT.")


def _header_values(scope: Message, name: str) -> list[str]:
    """Values of a header, in the order in which they were sent."""
    key = name.encode()
    return [value.decode("latin-1") for k, value in scope["headers"] if k == key]


def add_security_headers(path: str, message: Message) -> None:
    """Forbid browsers to sniff types, to cache, and to load or embed other sites."""
    policy = DOCS_POLICY if path == "/docs" else PAGE_POLICY
    policy = (REPORT_POLICY if path.endswith("/report") else policy) + COMMON_POLICY
    added = {
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"content-security-policy": policy.encode(),
    }
    others = [pair for pair in message["headers"] if pair[0] not in added]
    if b"cache-control" not in dict(others):
        added[b"cache-control"] = b"no-store"
    message["headers"] = [*others, *added.items()]


def add_key(path: str | Path, client: str | None = None) -> tuple[str, str]:
    """Make a secret for a client and write its hash; returns (client id, secret).

    Parameters
    ----------
    path : the key file; made if it is not there.
    client : its id; None: a random one.

    Raises
    ------
    ConfigError
        If the client has a key already, its id is not allowed, or the file cannot be
        used.
    """
    path = Path(path).expanduser()
    client = client or f"client-{secrets.token_hex(8)}"
    if not CLIENT_NAME.fullmatch(client):
        raise ConfigError([f"client {client!r} must match {CLIENT_NAME.pattern}"])
    hashes = read_keys(path) if path.exists() else {}
    if client in hashes:
        raise ConfigError([f"client {client!r} has a key in {path} already"])
    secret = secrets.token_urlsafe(32)
    _write_keys(path, hashes | {client: _hash(secret)})
    return client, secret


def remove_key(path: str | Path, client: str) -> None:
    """Remove a client's key from the file.

    Raises
    ------
    ConfigError
        If it has none.
    """
    path = Path(path).expanduser()
    hashes = read_keys(path)
    if client not in hashes:
        raise ConfigError([f"no client {client!r} in {path}; it has {sorted(hashes)}"])
    _write_keys(path, {name: own for name, own in hashes.items() if name != client})


def read_keys(path: str | Path) -> dict[str, str]:
    """Read a key file: hash of the secret by client id.

    Raises
    ------
    ConfigError
        If the file cannot be read, or has a line that is no key.
    """
    path = Path(path).expanduser()
    try:
        if path.exists() and not path.is_file():  # a pipe could be waited for, for ever
            raise ConfigError([f"cannot read keys {path}: it is no file"])
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError([f"cannot read keys {path}: {error}"]) from None
    hashes = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = KEY_LINE.fullmatch(line.strip())
        if not match:
            needed = "a client and sha256:<hash>, as `fedray keys add` writes it"
            raise ConfigError([f"keys {path} line {number} is not {needed}"])
        hashes[match[1]] = match[2]
    return hashes


def secret_matches(hashes: dict[str, str], client: str, secret: str) -> bool:
    """Is this the client's secret? Takes the same time whatever is wrong."""
    own = hashes.get(client, "0" * 64)
    return hmac.compare_digest(own, _hash(secret)) and client in hashes


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _write_keys(path: Path, hashes: dict[str, str]) -> None:
    """Replace the key file as a whole; only its owner can read it."""
    lines = [f"{name} sha256:{own}\n" for name, own in hashes.items()]
    try:
        durable_files.write_text(path, "".join([FILE_HEAD, *lines]), mode=0o600)
    except OSError as error:
        raise ConfigError([f"cannot write keys {path}: {error.strerror}"]) from None
