"""The service as an ASGI application: routes, live page, /docs, one form of errors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi_offline import FastAPIOffline
from ray.exceptions import RayError
from starlette.exceptions import HTTPException

from fedray.errors import CallRefused, FedrayError
from fedray.service import federation_actor, schemas
from fedray.service import store as states
from fedray.service.auth import Gate
from fedray.service.responses import answer, refusal
from fedray.service.routes import Calls
from fedray.service.sandbox import Examiners
from fedray.service.settings import Settings
from fedray.service.store import TRAINING

PAGE = Path(__file__).with_name("page")
FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
TITLE = "fedray: the Model Fusion API"


def build(settings: Settings) -> Gate:
    """Make the application; Ray must be connected where it is called."""
    examiners = Examiners()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_go_on, settings.folder)
        warming = asyncio.create_task(examiners.warm())
        yield
        warming.cancel()
        await examiners.close()

    app = FastAPIOffline(
        title=TITLE, description=schemas.ABOUT, redoc_url=None, lifespan=lifespan
    )
    _add_calls(app, Calls(settings, examiners))
    for path, name in FILES.items():
        app.add_api_route(path, _file(PAGE / name), include_in_schema=False)
    for kind in (FedrayError, RayError, Exception):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(RequestValidationError, _refuse_value)
    return Gate(app, settings, refusal)


def _go_on(root: Path) -> None:
    """See that every training under way has its actor: it goes on by itself."""
    states.incoming(root)
    for state in states.all_of(root):
        if state.state == TRAINING:
            federation_actor.reach(root / state.id)


def _add_calls(app: FastAPI, calls: Calls) -> None:
    routes = (
        ("POST", "/start-aggregator", calls.start_aggregator, schemas.START_AGGREGATOR),
        ("POST", "/start-party", calls.start_party, schemas.START_PARTY),
        ("POST", "/stop-party", calls.stop_party, schemas.STOP_PARTY),
        ("POST", "/train", calls.train, schemas.TRAIN),
        ("POST", "/stop", calls.stop, schemas.STOP),
        ("GET", "/aggregators", calls.aggregators, schemas.LIST),
        ("GET", "/aggregators/{id}", calls.aggregator, schemas.STATUS),
        ("GET", "/aggregators/{id}/weights", calls.weights, schemas.WEIGHTS),
        ("GET", "/health", _health, schemas.HEALTH),
    )
    for method, path, call, words in routes:
        app.add_api_route(
            path, call, methods=[method], openapi_extra=words, response_model=None
        )


async def _health() -> Response:
    """The service is there."""
    return answer({"status": "ok"})


def _file(path: Path) -> Any:
    async def send() -> Response:
        return FileResponse(path)

    return send


async def _refuse(request: Request, error: Exception) -> Response:
    return refusal(error)


async def _refuse_value(request: Request, error: Exception) -> Response:
    first = error.errors()[0]
    told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
    return refusal(CallRefused(422, told, "GET /docs lists what each call takes."))


async def _refuse_http(request: Request, error: Exception) -> Response:
    hint = "GET /docs lists the calls."
    return refusal(CallRefused(error.status_code, f"{error.detail}.", hint))
