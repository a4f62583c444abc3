"""What every call passes first: who may call, and what every answer must carry.

A plain ASGI middleware: it never touches a body.
"""

import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from fedray.errors import CallRefused
from fedray.service import keys
from fedray.service.responses import refusal
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

    def __init__(self, app: Callable, settings: Settings):
        self.app, self.settings = app, settings
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
                _protect(scope["path"], MutableHeaders(scope=message))
            await send(message)

        try:
            scope["client_id"] = self._admit(scope, Headers(scope=scope))
            await self.app(scope, receive, sending)
        except Exception as error:
            if begun:
                raise
            if not isinstance(error, CallRefused):
                LOG.exception("a call to %s failed", scope["path"])
            await refusal(error)(scope, receive, sending)

    def _admit(self, scope: dict, headers: Headers) -> str | None:
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
            _be_near(scope, headers)
            return None
        path = scope["path"]
        if path in OPEN or path.startswith(OPEN_BELOW):
            return None
        given = headers.getlist(ID), headers.getlist(SECRET)
        if any(len(values) > 1 for values in given):
            told = f"{ID} or {SECRET} is given more than once."
            raise CallRefused(401, told, "Send each of them once.")
        client, secret = ("".join(values) for values in given)
        fits = len(client) <= MAX_KEY and len(secret) <= MAX_KEY
        if not fits or not keys.matches(self._keys(), client, secret):
            told = "No such client, or another secret."
            raise CallRefused(401, told, f"Send the headers {ID} and {SECRET}.")
        return client

    def _keys(self) -> dict[str, str]:
        """The keys, read again when their file has changed."""
        changed = Path(self.settings.api_keys).expanduser().stat().st_mtime_ns
        if changed != self.changed:
            self.known = keys.read(self.settings.api_keys)
            self.changed = changed
        return self.known


def _be_near(scope: dict, headers: Headers) -> None:
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
    host = urlsplit(f"//{headers.get('host', '')}").hostname
    if host not in LOOPBACK and not (host or "").endswith(".localhost"):
        told = "Without keys the service answers to localhost and 127.0.0.1 only."
        raise CallRefused(403, told, hint)
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        told = "Another site's page may not call this service."
        raise CallRefused(403, told, hint)


def _protect(path: str, headers: Any) -> None:
    """What keeps a browser from being turned against its user."""
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers.setdefault("cache-control", "no-store")
    policy = SWAGGER if path == "/docs" else OWN
    headers["content-security-policy"] = policy + NOTHING_ELSE
