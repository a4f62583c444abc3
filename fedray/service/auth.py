"""What every call passes first: who may call, and what every answer must carry.

A plain ASGI middleware: it never touches a body.
"""

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fedray.errors import CallRefused, ConfigError
from fedray.service.settings import LOOPBACK, Settings

ID, SECRET = "x-ibm-client-id", "x-ibm-client-secret"
MAX_KEY = 256  # characters
MAX_HEADERS = 32 << 10  # bytes of all of them
OPEN = ("/", "/page.js", "/page.css", "/docs", "/openapi.json", "/health")
OPEN_BELOW = "/static-offline-docs/"
LOG = logging.getLogger("fedray")
OWN = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
SWAGGER = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
)
NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Gate:
    """Lets calls through to `app` that may come in, as `scope["client_id"]`."""

    def __init__(self, app: Callable, settings: Settings, refusal: Callable):
        self.app, self.settings, self.refusal = app, settings, refusal
        self.known: dict[str, str] = {}
        self.changed = -1

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """One call; whatever goes wrong in it is answered in JSON."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message: dict) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                _protect(scope["path"], message)
            await send(message)

        try:
            scope["client_id"] = self._admit(scope)
            await self.app(scope, receive, sending)
        except Exception as error:
            if begun:
                raise
            if not isinstance(error, CallRefused):
                LOG.exception("a call to %s failed", scope["path"])
            await self.refusal(error)(scope, receive, sending)

    def _admit(self, scope: dict) -> str | None:
        """Client id of the call; None where the service has no keys.

        Raises
        ------
        CallRefused
            401 without a key that fits, 403 from elsewhere, 431 for huge headers.
        """
        n_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if n_bytes > MAX_HEADERS:
            told = f"The headers have {n_bytes} bytes."
            raise CallRefused(431, told, f"At most {MAX_HEADERS} are read.")
        if self.settings.api_keys is None:
            _be_near(scope)
            return None
        path = scope["path"]
        if path in OPEN or path.startswith(OPEN_BELOW):
            return None
        given = _values(scope, ID), _values(scope, SECRET)
        if any(len(values) > 1 for values in given):
            told = f"{ID} or {SECRET} is given more than once."
            raise CallRefused(401, told, "Send each of them once.")
        client, secret = ("".join(values) for values in given)
        fits = len(client) <= MAX_KEY and len(secret) <= MAX_KEY
        if not fits or not secret_matches(self._keys(), client, secret):
            told = "No such client, or another secret."
            raise CallRefused(401, told, f"Send the headers {ID} and {SECRET}.")
        return client

    def _keys(self) -> dict[str, str]:
        """The keys, read again when their file has changed."""
        changed = Path(self.settings.api_keys).expanduser().stat().st_mtime_ns
        if changed != self.changed:
            self.known = read_keys(self.settings.api_keys)
            self.changed = changed
        return self.known


def _be_near(scope: dict) -> None:
    """Without keys, only this machine may call, and no web page but our own.

    A page of another site could otherwise let the user's browser call for it; and
    through a name that it makes point here, even read the answers.
    """
    hint = "Start with --api-keys FILE to serve others (see `fedray keys`)."
    caller = (scope.get("client") or ("127.0.0.1",))[0]
    try:
        near = ipaddress.ip_address(caller).is_loopback
    except ValueError:
        near = True  # a name that only an in-process client has
    if not near:
        raise CallRefused(403, "Without keys only this machine may call.", hint)
    (own,) = _values(scope, "host")[:1] or [""]
    host = urlsplit(f"//{own}").hostname
    if host not in LOOPBACK and not (host or "").endswith(".localhost"):
        told = "Without keys the service answers to localhost and 127.0.0.1 only."
        raise CallRefused(403, told, hint)
    origin = _values(scope, "origin")[:1]
    if origin and urlsplit(origin[0]).netloc != own:
        told = "Another site's page may not call this service."
        raise CallRefused(403, told, hint)


def _values(scope: dict, name: str) -> list[str]:
    """Values of a header, in the order in which they were sent."""
    wanted = name.encode()
    return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]


def _protect(path: str, message: dict) -> None:
    """What keeps a browser from being turned against its user."""
    policy = (SWAGGER if path == "/docs" else OWN) + NOTHING_ELSE
    added = {
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"content-security-policy": policy.encode(),
    }
    given = [pair for pair in message["headers"] if pair[0] not in added]
    if b"cache-control" not in dict(given):
        added[b"cache-control"] = b"no-store"
    message["headers"] = [*given, *added.items()]


CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY_LINE = re.compile(rf"({CLIENT_NAME.pattern}) sha256:([0-9a-f]{{64}})")
FILE_HEAD = (
    "# fedray API keys: client and hash of its secret; add more with fedray keys\n"
)


def add_key(path: str | Path, client: str | None = None) -> tuple[str, str]:
    """Make a client's secret, keep its hash, and give (client, secret).

    Raises
    ------
    ConfigError
        If the client is there already, has no proper name, or the file cannot be used.
    """
    path = Path(path).expanduser()
    client = client or f"client-{secrets.token_hex(8)}"
    if not CLIENT_NAME.fullmatch(client):
        raise ConfigError([f"client {client!r} must match {CLIENT_NAME.pattern}"])
    known = read_keys(path) if path.exists() else {}
    if client in known:
        raise ConfigError([f"client {client!r} has a key in {path} already"])
    secret = secrets.token_urlsafe(32)
    _write_keys(path, known | {client: _hash(secret)})
    return client, secret


def remove_key(path: str | Path, client: str) -> None:
    """Take a client's key away.

    Raises
    ------
    ConfigError
        If it has none.
    """
    path = Path(path).expanduser()
    known = read_keys(path)
    if client not in known:
        raise ConfigError([f"no client {client!r} in {path}; it has {sorted(known)}"])
    _write_keys(path, {name: own for name, own in known.items() if name != client})


def read_keys(path: str | Path) -> dict[str, str]:
    """Hashes by client.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds anything else.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError([f"cannot read keys {path}: {error}"]) from None
    known = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = KEY_LINE.fullmatch(line.strip())
        if not found:
            needed = "a client and sha256:<hash>, as `fedray keys add` writes it"
            raise ConfigError([f"keys {path} line {number} is not {needed}"])
        known[found[1]] = found[2]
    return known


def secret_matches(known: dict[str, str], client: str, secret: str) -> bool:
    """Is this the client's secret? Takes the same time whatever is wrong."""
    own = known.get(client, "0" * 64)
    return hmac.compare_digest(own, _hash(secret)) and client in known


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _write_keys(path: Path, known: dict[str, str]) -> None:
    aside = path.with_name(path.name + ".part")
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(FILE_HEAD)
            file.writelines(f"{name} sha256:{own}\n" for name, own in known.items())
        os.replace(aside, path)
    except OSError as error:
        raise ConfigError([f"cannot write keys {path}: {error.strerror}"]) from None
