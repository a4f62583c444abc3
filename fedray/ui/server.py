"""Serves the page of runs to this machine: whoever has the printed link sees it."""

import asyncio
import contextlib
import hmac
import logging
import secrets
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from fedray.errors import CallRefused, FedrayError, describe_error
from fedray.runs_page import PAGE_FILES, model_files, unless_seen
from fedray.service.auth import (
    ASGIApp,
    Message,
    Receive,
    Send,
    add_security_headers,
    check_host,
    check_loopback,
)
from fedray.service.json_text import write_json
from fedray.service.listening import BACKLOG, listen
from fedray.ui import comparing
from fedray.ui.run_index import RunIndex, default_folders
from fedray.untrusted_text import escape_line

HOST = "127.0.0.1"
MAX_CALLS = 100  # at once
STOP_S = 90  # `fedray stop` waits for 60
REPORT = "report.html"
LOG = logging.getLogger("fedray")
Call = Callable[[Request], Awaitable[Response]]


def serve(folders: Sequence[Path], port: int, allow_stop: bool) -> None:
    """Serve the page of all runs below some folders until Ctrl-C.

    folders : none: those of this user's runs, of the service, and of what is alive.

    Raises
    ------
    ClusterError
        If it cannot listen at this port.
    """
    index = RunIndex(folders or default_folders(), is_whole_machine=not folders)
    token = secrets.token_urlsafe(24)
    with listen(HOST, port) as sock:
        url = f"http://{HOST}:{sock.getsockname()[1]}/?token={token}"
        app = build(index, token, allow_stop)
        where = ", ".join(escape_line(str(folder)) for folder in index.folders)
        print(f"runs in {where}\nopen {url}\nCtrl-C ends it; no run ends with it")
        sys.stdout.flush()
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            backlog=BACKLOG,
            limit_concurrency=MAX_CALLS,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run([sock])


def build(index: RunIndex, token: str, allow_stop: bool = False) -> ASGIApp:
    """The application, which lets in whoever has the token.

    allow_stop : runs may be stopped by it.
    """
    calls = Calls(index, allow_stop)
    routes = [Route(path, _sender(file)) for path, file in PAGE_FILES.items()]
    routes += [
        Route("/runs", calls.list_runs),
        Route("/runs/{id}", calls.get_run),
        Route("/runs/{id}/report", calls.get_report),
        Route("/runs/{id}/models/{name}", calls.get_model),
        Route("/runs/{id}/stop", calls.stop, methods=["POST"]),
        Route("/compare", calls.compare),
        Route("/compare.{form}", calls.get_file),
    ]
    handlers = dict.fromkeys((CallRefused, FedrayError, OSError, Exception), _refuse)
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token)


async def _refuse(request: Request, error: Exception) -> Response:
    return error_answer(error)


class Guard:
    """Lets in calls of this machine that have the token; answers errors as JSON."""

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one call."""
        if scope["type"] != "http":
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_security_headers(scope["path"], message)
            await send(message)

        try:
            answer = self._admit(Request(scope))
        except CallRefused as error:
            answer = error_answer(error)
            if scope["path"] == "/":  # for whoever opens it
                answer = PlainTextResponse(f"{error.detail}\n{error.hint}\n", 403)
        with contextlib.suppress(Exception):  # it was answered, and logged
            await (answer or self.app)(scope, receive, send_protected)

    def _admit(self, request: Request) -> Response | None:
        """None for a call that has the token; else where it gets it.

        Raises
        ------
        CallRefused
            403 for all others.
        """
        try:
            check_host(request.scope)
            check_loopback(request.scope)
        except CallRefused as error:
            what = "This page answers to its own machine alone, as 127.0.0.1."
            how = "From elsewhere: ssh -L PORT:127.0.0.1:PORT, then the printed link."
            raise CallRefused(error.status, what, how) from None
        port = (request.scope.get("server") or (HOST, 0))[1]
        cookie = f"fedray-ui-{port}"
        if request.url.path == "/" and self._is_token(
            request.query_params.get("token")
        ):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(cookie, self.token, httponly=True, samesite="lax")
            return answer
        if self._is_token(_cookies(request).get(cookie)):
            return None
        what = "This page needs the token of the link that fedray ui printed."
        raise CallRefused(403, what, "Open that link; each start has another token.")

    def _is_token(self, text: str | None) -> bool:
        own = self.token.encode()
        return text is not None and hmac.compare_digest(
            text.encode("utf-8", "replace"), own
        )


def _cookies(request: Request) -> dict[str, str]:
    try:
        jar = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return {}
    return {name: one.value for name, one in jar.items()}


def error_answer(error: Exception) -> Response:
    """What a call that failed is answered."""
    if isinstance(error, CallRefused):
        status, detail, hint = error.status, error.detail, error.hint
    elif isinstance(error, FedrayError | OSError):
        status, detail, hint = 422, describe_error(error), ""
    else:
        LOG.exception("a call failed", exc_info=error)
        status, detail, hint = 500, "Something went wrong in fedray ui.", ""
    plain = {"error": status, "detail": detail, "hint": hint}
    return Response(write_json(plain), status, media_type="application/json")


class Calls:
    """A method for each call of the page."""

    def __init__(self, index: RunIndex, allow_stop: bool):
        self.index, self.allow_stop = index, allow_stop
        self.lock = threading.Lock()  # held by whoever reads folders
        self.stopping: set[str] = set()

    async def list_runs(self, request: Request) -> Response:
        """All runs, and what could not be looked at."""

        def answer() -> dict[str, Any]:
            self.index.refresh()
            return {
                "runs": self.index.entries(),
                "notes": self.index.notes,
                "n_unread": len(self.index.unread),
                "folders": [str(folder) for folder in self.index.folders],
                "may_stop": self.allow_stop,
            }

        return await self._answer(request, answer)

    async def get_run(self, request: Request) -> Response:
        """One run with its curves and parties."""
        key = request.path_params["id"]

        def answer() -> dict[str, Any]:
            self._find(key)
            return {"run": self.index.detail(key), "may_stop": self.allow_stop}

        return await self._answer(request, answer)

    async def compare(self, request: Request) -> Response:
        """Several runs compared."""

        def answer() -> dict[str, Any]:
            folders = self._folders(request)
            return comparing.answer(folders, request.query_params)

        return await self._answer(request, answer)

    async def get_file(self, request: Request) -> Response:
        """A comparison as the file that `fedray compare` writes."""
        form = request.path_params["form"]

        def write() -> str:
            with self.lock:
                folders = self._folders(request)
            return comparing.file(form, folders, request.query_params)

        text = await asyncio.to_thread(write)
        name = {"latex": "comparison.tex"}.get(form, f"comparison.{form}")
        head = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(text, media_type="application/octet-stream", headers=head)

    async def get_report(self, request: Request) -> Response:
        """A run's report.html."""
        file = (await self._folder(request)) / REPORT
        if not file.is_file() or file.is_symlink():
            raise CallRefused(
                404, "This run has no report.", "It is written at its end."
            )
        return FileResponse(file, media_type="text/html")

    async def get_model(self, request: Request) -> Response:
        """A file of a run's model."""
        folder, name = await self._folder(request), request.path_params["name"]
        files = {file.name: file for file in model_files(folder)}
        if name not in files:
            raise CallRefused(404, "This run has no such model.", "")
        kind = "application/octet-stream"
        return FileResponse(files[name], filename=name, media_type=kind)

    async def stop(self, request: Request) -> Response:
        """Stop a run as `fedray stop` does."""
        if not self.allow_stop:
            how = "Start it with --allow-stop, or use `fedray stop`."
            raise CallRefused(403, "This fedray ui stops no run.", how)
        key, folder = request.path_params["id"], await self._folder(request)
        if key in self.stopping:
            raise CallRefused(409, "This run is being stopped.", "")
        self.stopping.add(key)
        try:
            done = await asyncio.to_thread(_stop_run, folder)
        finally:
            self.stopping.discard(key)
        lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        message = "\n".join(lines[-5:])
        if done.returncode:
            raise CallRefused(409, message, "")
        return _json({"message": message})

    async def _answer(
        self, request: Request, make: Callable[[], dict[str, Any]]
    ) -> Response:
        """The answer that `make` makes, in a thread; short if the page has it."""

        def answer() -> bytes:
            with self.lock:
                whole = make()
            return write_json(unless_seen(whole, request.query_params.get("seen", "")))

        body = await asyncio.to_thread(answer)
        return Response(body, media_type="application/json")

    def _find(self, key: str) -> Path:
        if key not in self.index.runs:
            self.index.refresh()
        if key not in self.index.runs:
            what = "There is no such run here, or no more."
            raise CallRefused(404, what, "The list has all that there are.")
        return self.index.runs[key].folder

    async def _folder(self, request: Request) -> Path:
        def find() -> Path:
            with self.lock:
                return self._find(request.path_params["id"])

        return await asyncio.to_thread(find)

    def _folders(self, request: Request) -> dict[str, tuple[Path, str]]:
        """Folders and names of the runs that a call names, by their ids."""
        keys = dict.fromkeys(request.query_params.getlist("run"))
        comparing.check_count(len(keys))
        return {key: (self._find(key), self.index.runs[key].name) for key in keys}


def _stop_run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedray", "stop", str(folder)]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=STOP_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        what = f"fedray stop has not ended within {STOP_S} s"
        return subprocess.CompletedProcess(command, 1, "", what)


def _json(value: dict[str, Any]) -> Response:
    return Response(write_json(value), media_type="application/json")


def _sender(file: Path) -> Call:
    async def send(request: Request) -> Response:
        return FileResponse(file)

    return send
