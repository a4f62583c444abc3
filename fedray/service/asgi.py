"""Builds the service's ASGI application: routes, live page, /docs, error handlers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi_offline import FastAPIOffline
from ray.exceptions import RayError
from starlette.exceptions import HTTPException

from fedray.errors import CallRefused, FedrayError
from fedray.service import federation_actor, schemas, store
from fedray.service.auth import AuthMiddleware
from fedray.service.responses import error_response, json_response
from fedray.service.routes import Routes, check_query
from fedray.service.sandbox import Sandbox
from fedray.service.settings import Settings
from fedray.service.store import TRAINING

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
TITLE = "fedray: the Model Fusion API"


def build(settings: Settings) -> AuthMiddleware:
    """Make the application; Ray must be connected where it is called."""
    sandbox = Sandbox()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_resume_trainings, settings.folder)
        warming_up = asyncio.create_task(sandbox.warm_up())
        yield
        warming_up.cancel()
        await sandbox.close()

    app = FastAPIOffline(
        title=TITLE, description=schemas.ABOUT, redoc_url=None, lifespan=lifespan
    )
    _add_routes(app, Routes(settings, sandbox))
    for path, name in PAGE_FILES.items():
        app.add_api_route(path, _file_sender(PAGE / name), include_in_schema=False)
    for kind in (FedrayError, RayError, Exception):
        app.add_exception_handler(kind, _handle_error)
    app.add_exception_handler(HTTPException, _handle_http_error)
    app.add_exception_handler(RequestValidationError, _handle_invalid_value)
    return AuthMiddleware(app, settings, error_response)


def _resume_trainings(root: Path) -> None:
    """Start the actor of every training under way; it continues by itself."""
    store.upload_folder(root)
    for state in store.list_states(root):
        if state.state == TRAINING:
            federation_actor.get_or_start(root / state.id)


def _add_routes(app: FastAPI, calls: Routes) -> None:
    routes = (
        ("POST", "/start-aggregator", calls.start_aggregator, schemas.START_AGGREGATOR),
        ("POST", "/start-party", calls.start_party, schemas.START_PARTY),
        ("POST", "/stop-party", calls.stop_party, schemas.STOP_PARTY),
        ("POST", "/train", calls.train, schemas.TRAIN),
        ("POST", "/stop", calls.stop, schemas.STOP),
        ("GET", "/aggregators", calls.list_aggregators, schemas.LIST),
        ("GET", "/aggregators/{id}", calls.get_aggregator, schemas.STATUS),
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


async def _check_health() -> Response:
    """The service is up."""
    return json_response({"status": "ok"})


def _file_sender(path: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(path)

    return send


async def _handle_error(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _handle_invalid_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
    return error_response(
        CallRefused(422, detail, "GET /docs lists what each call takes.")
    )


async def _handle_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "GET /docs lists the calls."
    return error_response(CallRefused(error.status_code, f"{error.detail}.", hint))
