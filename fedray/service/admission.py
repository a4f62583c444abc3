"""Admission of calls: each is counted by its client, and its answer while it is sent.

`Admission` is plain ASGI, between authentication and the application. An answer is
handed on in pieces, each once the one before is on its way, so that what a client does
not read is not held in memory; the call lasts, and counts, until it is read.
"""

from fedray.errors import LimitReached
from fedray.service.auth import ASGIApp, Message, Receive, Send
from fedray.service.responses import PIECE
from fedray.service.usage import Claim, Usage

HEALTH = "/health"  # counted by nobody: it is answered whatever else goes on
STOP_PATHS = ("/stop", "/stop-party")  # they free what others wait for


class Admission:
    """Runs `app` for calls that the limits allow; finds `scope["claim"]` for them.

    Parameters
    ----------
    app : the ASGI application.
    usage : of the service.
    """

    def __init__(self, app: ASGIApp, usage: Usage):
        self.app, self.usage = app, usage

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one call.

        Raises
        ------
        LimitReached
            Before anything of an answer was sent.
        """
        if scope["type"] != "http" or scope["path"] == HEALTH:
            await self.app(scope, receive, send)
            return
        is_stop = scope["path"] in STOP_PATHS
        claim = self.usage.claim(
            scope["client_id"], calls=not is_stop, stop_calls=is_stop
        )
        with claim:
            claim.is_checked, scope["claim"] = not is_stop, claim
            answer = Answer(send, claim)
            try:
                await self.app(scope, receive, answer.send)
            except Exception:
                if answer.error is None:
                    raise
            if answer.error is not None:
                raise answer.error


class Answer:
    """One answer on its way: counted as in flight before anything of it is sent.

    Parameters
    ----------
    send : takes the messages.
    claim : of the call.
    """

    def __init__(self, send: Send, claim: Claim):
        self.raw_send, self.claim = send, claim
        self.start: Message | None = None
        self.error: LimitReached | None = None  # why it was not sent

    async def send(self, message: Message) -> None:
        """Hand a message on.

        Raises
        ------
        OSError
            If a limit does not allow the answer, as if the client had hung up.
        """
        if message["type"] == "http.response.start":
            self.start = message
            return
        body = message.get("body", b"")
        if self.start is not None:
            self._count(len(body), message.get("more_body", False))
            start, self.start = self.start, None
            await self.raw_send(start)
        if len(body) <= PIECE // 4:  # less than waits in the connection's own buffer
            await self.raw_send(message)
            return
        for begin in range(0, len(body), PIECE):
            piece = body[begin : begin + PIECE]
            await self.raw_send({**message, "body": piece, "more_body": True})
        if not message.get("more_body", False):
            await self.raw_send({**message, "body": b""})

    def _count(self, n_bytes: int, is_more: bool) -> None:
        try:
            self.claim.add(bytes_in_flight=max(n_bytes, PIECE) if is_more else n_bytes)
        except LimitReached as error:
            self.error = error
            raise OSError("a limit does not allow this answer") from None
