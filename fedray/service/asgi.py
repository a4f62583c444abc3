"""Builds the service's ASGI application: routes, live page, /docs, error handlers."""

import asyncio
import contextlib
import functools
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi_offline import FastAPIOffline
from ray.exceptions import RayError
from starlette.exceptions import HTTPException

from fedray.data.images import read_arrays
from fedray.errors import CallRefused, FedrayError
from fedray.runs_page import PAGE_FILES
from fedray.service import auth, schemas, store
from fedray.service.admission import Admission
from fedray.service.auth import AuthMiddleware
from fedray.service.responses import error_response, json_response
from fedray.service.routes import Routes, check_query
from fedray.service.sandbox import Sandbox
from fedray.service.scheduler import Scheduler
from fedray.service.settings import Settings
from fedray.service.sweep import Sweep
from fedray.service.usage import Usage

PAGE = Path(__file__).with_name("page")
FILES = PAGE_FILES | {
    "/docs.js": PAGE / "docs.js",
    "/examples/model.pt": PAGE / "model.pt",
}
TITLE = "fedray: the Model Fusion API"
STATIC = "/static-offline-docs"
N_EXAMPLE_TRAIN, N_EXAMPLE_TEST = 200, 100  # digits


def build(settings: Settings) -> AuthMiddleware:
    """Make the application; Ray must be connected where it is called."""
    sandbox, scheduler = Sandbox(Usage(settings)), Scheduler(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _give_each_call_a_thread(settings)
        await asyncio.to_thread(store.upload_folder, settings.folder)
        works = sandbox.warm_up(), Sweep(settings).run(), scheduler.run()
        tasks = [asyncio.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()
        await sandbox.close()
        calls.usage.close()

    app = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        static_url=STATIC,
        title=TITLE,
        description=schemas.ABOUT,
        lifespan=lifespan,
    )
    calls = Routes(settings, sandbox, scheduler)
    _add_routes(app, calls)
    _add_pages(app, calls)
    if settings.api_keys is not None:
        _describe_keys(app)
    _add_error_handlers(app)
    return AuthMiddleware(Admission(app, calls.usage), settings, error_response)


def _add_error_handlers(app: FastAPI) -> None:
    for kind in (FedrayError, RayError, Exception):
        app.add_exception_handler(kind, _handle_error)
    app.add_exception_handler(HTTPException, _handle_http_error)
    app.add_exception_handler(RequestValidationError, _handle_invalid_value)


def lifespan(app: AuthMiddleware) -> contextlib.AbstractAsyncContextManager:
    """What the application starts before its first call and ends after its last."""
    inner: Any = app
    while not hasattr(inner, "router"):  # past what wraps it
        inner = inner.app
    return inner.router.lifespan_context(inner)


def _give_each_call_a_thread(settings: Settings) -> None:
    """Let no call wait for a thread: those of one client may wait for a lock or node.

    Threads are started as they are needed.
    """
    threads = ThreadPoolExecutor(settings.max_calls + settings.max_stop_calls + 8)
    asyncio.get_running_loop().set_default_executor(threads)


def _add_routes(app: FastAPI, calls: Routes) -> None:
    routes = (
        ("POST", "/start-aggregator", calls.start_aggregator, schemas.START_AGGREGATOR),
        ("POST", "/start-party", calls.start_party, schemas.START_PARTY),
        ("POST", "/stop-party", calls.stop_party, schemas.STOP_PARTY),
        ("POST", "/train", calls.train, schemas.TRAIN),
        ("POST", "/stop", calls.stop, schemas.STOP),
        ("GET", "/aggregators", calls.list_aggregators, schemas.LIST),
        ("GET", "/aggregators/{id}", calls.get_aggregator, schemas.STATUS),
        ("GET", "/aggregators/{id}/edges", calls.get_edges, schemas.EDGES),
        ("GET", "/aggregators/{id}/weights", calls.get_weights, schemas.WEIGHTS),
        ("GET", "/health", _check_health, schemas.HEALTH),
    )
    for method, path, call, operation in routes:
        app.add_api_route(
            path,
            call,
            methods=[method],
            responses=operation["responses"],
            openapi_extra={k: v for k, v in operation.items() if k != "responses"},
            response_model=None,
            dependencies=[Depends(check_query)],
        )
    # load balancers ask so; of the other calls a body is the point
    app.add_api_route(
        "/health", _check_health, methods=["HEAD"], include_in_schema=False
    )


def _add_pages(app: FastAPI, calls: Routes) -> None:
    """The live page with what it shows, and /docs with its examples."""
    pages: dict[str, Callable] = {
        path: _file_sender(file) for path, file in FILES.items()
    }
    pages |= {"/docs": _send_docs, "/examples/digits.npz": _send_digits}
    pages["/aggregators/{id}/report"] = calls.get_report
    pages |= {"/runs": calls.list_runs, "/runs/{id}": calls.get_run}
    pages["/compare"] = calls.compare_runs
    for path, send in pages.items():
        app.add_api_route(path, send, include_in_schema=False)


async def _check_health() -> Response:
    """The service is up."""
    return json_response({"status": "ok"})


async def _send_docs() -> Response:
    """Swagger's page for trying the calls, with real ids and example files in it."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=TITLE,
        swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{STATIC}/favicon.png",
    )
    html = bytes(page.body).replace(
        b"</body>", b'<script src="/docs.js"></script></body>'
    )
    return HTMLResponse(html)


async def _send_digits() -> Response:
    return Response(
        await asyncio.to_thread(_digits), media_type="application/octet-stream"
    )


@functools.cache
def _digits() -> bytes:
    """A party's file for mnist_pytorch: a few of the shipped digits."""
    arrays = read_arrays("mnist")
    counts = {"train": N_EXAMPLE_TRAIN, "test": N_EXAMPLE_TEST}
    few = {key: array[: counts[key[2:]]] for key, array in arrays.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **few)  # type: ignore[arg-type]
    return file.getvalue()


def _describe_keys(app: FastAPI) -> None:
    """Let /docs ask for the two headers that every call needs."""
    plain = app.openapi
    schemes = {
        name: {"type": "apiKey", "in": "header", "name": name}
        for name in (auth.ID_HEADER, auth.SECRET_HEADER)
    }

    def describe() -> dict[str, Any]:
        described = plain()
        described.setdefault("components", {})["securitySchemes"] = schemes
        return described | {"security": [{name: [] for name in schemes}]}

    app.openapi = describe  # type: ignore[method-assign]


def _file_sender(path: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(path)

    return send


async def _handle_error(request: Request, error: Exception) -> Response:
    return error_response(error, request.scope)


async def _handle_invalid_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *name = map(str, first["loc"])
    needed = "true or false" if first["type"] == "bool_parsing" else first["msg"]
    what = f"{place} parameter {'.'.join(name)}"
    detail = f"{what}: got {str(first['input'])[:80]!r}; needed {needed}."
    wrong = CallRefused(422, detail, "GET /docs lists what each call takes.")
    return error_response(wrong, request.scope)


async def _handle_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    call = f"{request.method} {request.scope['path'][:80]}"
    details = {404: f"There is no call {call}.", 405: f"There is no call {call}."}
    detail = details.get(error.status_code, f"{error.detail}.")
    hint = "GET /docs lists the calls."
    return error_response(CallRefused(error.status_code, detail, hint), request.scope)
