"""Answers of 400 and above: the service's JSON, with what an edge needs beside it."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from fedray.edges.protocol import MIN_VERSION, OFFSET_HEADER, PROTOCOL
from fedray.errors import CallRefused, EdgeMessageError
from fedray.service.responses import error_response, json_response


class EdgeRefused(CallRefused):
    """A call of an edge was refused; `headers` and `more` (of the body) say details."""

    def __init__(
        self,
        status: int,
        detail: str,
        hint: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(status, detail, hint)
        self.args = (status, detail, hint, headers, more)
        self.headers, self.more = dict(headers or {}), dict(more or {})


def refusal_response(error: Exception, scope: Mapping[str, Any]) -> Response:
    """The answer to a call that failed."""
    if isinstance(error, EdgeMessageError):
        hint = "docs/edge-protocol.md and /edge/v1/openapi.json say what it has to be."
        error = CallRefused(422, f"{error}.", hint)
    response = error_response(error, scope)
    if isinstance(error, EdgeRefused):
        if error.more:
            plain = json.loads(bytes(response.body)) | error.more
            response = json_response(plain, error.status)
        response.headers.update(error.headers)
    return response


def not_authenticated() -> EdgeRefused:
    """401: no token, one of nobody, or a revoked one; the same answer to all."""
    detail = "The token is unknown or was revoked."
    hint = "Ask who runs the service for an invitation, and enrol with it."
    return EdgeRefused(401, detail, hint, {"www-authenticate": "Bearer"})


def too_old(protocol: int, version: str = "?") -> EdgeRefused:
    """426: this service does not speak with the edge's version."""
    who = "service" if protocol > PROTOCOL else "edge"
    speaks = f"protocol {PROTOCOL} with fedray {MIN_VERSION} and newer"
    detail = f"This service speaks {speaks}; the edge has {protocol}, {version}."
    more = {"min_version": MIN_VERSION, "protocol": PROTOCOL}
    headers = {"upgrade": f"fedray/{MIN_VERSION}"}
    return EdgeRefused(426, detail, f"Update fedray at the {who}.", headers, more)


def has_ended(reason: str) -> EdgeRefused:
    """410: there is nothing to do in this run any more."""
    detail, hint = f"The run has ended: {reason}.", "There is nothing left to do."
    return EdgeRefused(410, detail, hint, more={"reason": reason})


def come_again(detail: str, after_s: int, status: int = 503) -> EdgeRefused:
    """503 or 429: the same call is answered later."""
    hint = f"Call again in {after_s} s."
    return EdgeRefused(status, detail, hint, {"retry-after": str(after_s)})


def belongs_at(offset: int, detail: str, status: int = 409) -> EdgeRefused:
    """409: the file is complete up to `offset`, and goes on there."""
    hint = f"Send the bytes from {offset} on."
    return EdgeRefused(status, detail, hint, {OFFSET_HEADER: str(offset)})
