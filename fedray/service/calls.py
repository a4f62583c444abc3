"""The calls of the REST service, as an ASGI application."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi_offline import FastAPIOffline
from ray.exceptions import RayActorError
from starlette.exceptions import HTTPException

from fedray.errors import CallRefused
from fedray.service import actor, allowed, body, shapes, training
from fedray.service import state as states
from fedray.service.answers import answer, cause_of, history, refusal, with_model
from fedray.service.asking import Examiners
from fedray.service.gate import Gate
from fedray.service.joining import party_of
from fedray.service.settings import Settings
from fedray.service.state import FAILED, STOPPED, TRAINED, TRAINING, State

PAGE = Path(__file__).with_name("page")
PROGRESS_S = 1.0  # for what an actor says of the round under way
STOP_S = actor.STOP_S + 15
TITLE = "fedray: the Model Fusion API"


def build(settings: Settings) -> Gate:
    """The application; Ray must be connected by the time it is called."""
    examiners = Examiners()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        states.incoming(settings.folder)
        for state in states.all_of(settings.folder):
            if state.state == TRAINING:  # its actor goes on by itself
                await asyncio.to_thread(actor.reach, settings.folder / state.id)
        warming = asyncio.create_task(examiners.warm())
        yield
        warming.cancel()
        await examiners.close()

    app = FastAPIOffline(
        title=TITLE, description=shapes.ABOUT, redoc_url=None, lifespan=lifespan
    )
    app.state.service = Calls(settings, examiners)
    for path, method, call, words in ROUTES:
        app.add_api_route(
            path, call, methods=[method], openapi_extra=words, response_model=None
        )
    for name in ("page.js", "page.css"):
        app.add_api_route(f"/{name}", _file(PAGE / name), include_in_schema=False)
    app.add_api_route("/", _file(PAGE / "page.html"), include_in_schema=False)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _other_refusal)
    app.add_exception_handler(CallRefused, lambda _, error: refusal(error))
    return Gate(app, settings)


class Calls:
    """What the calls share: settings, examiners, and who may see which federation."""

    def __init__(self, settings: Settings, examiners: Examiners):
        self.settings, self.examiners = settings, examiners
        self.root = settings.folder
        self.starting = asyncio.Lock()

    async def read(self, request: Request) -> body.Body:
        """The call's body, its files in the folder of uploads under way."""
        folder = states.incoming(self.root)
        return await body.read(request, folder, self.settings.max_upload)

    def found(self, request: Request, id: Any) -> tuple[Path, State]:
        """The federation that a client asks for, if it is its own.

        Raises
        ------
        CallRefused
            404 if there is none, or another client has it: the same answer.
        """
        hint = "GET /aggregators lists your own; POST /start-aggregator makes one."
        if id in (None, ""):
            raise CallRefused(422, "aggregator_id is missing.", hint)
        if isinstance(id, str) and states.ID.fullmatch(id):
            state = states.load(self.root / id)
            if state and state.owner == request.scope["client_id"]:
                return self.root / id, state
        raise CallRefused(404, "There is no such aggregator.", hint)


def _service(request: Request) -> Calls:
    return request.app.state.service


async def start_aggregator(request: Request) -> Response:
    """Make a federation from settings and an initial model.

    Answers its id and how many parties have yet to join.
    """
    service = _service(request)
    came = await service.read(request)
    try:
        return await _start(service, request.scope["client_id"], came)
    finally:
        came.discard()


async def _start(service: Calls, owner: str | None, came: body.Body) -> Response:
    settings = allowed.read(came.values, service.settings.max_parties)
    odd = sorted(set(came.files) - set(allowed.FILES))
    if odd:
        raise CallRefused(422, f"Unknown file {odd[0]!r}.", "Upload model_file only.")
    upload = came.files.get("model_file")
    model = str(upload.path) if upload else None
    parties = allowed.unjoined(settings, [])
    config = allowed.with_parties(settings, model, parties)
    await service.examiners.examine(config, states.incoming(service.root))
    state = State(states.new_id(), owner, settings, len(parties))
    async with service.starting:
        alive = [s for s in states.all_of(service.root) if s.state != STOPPED]
        if len(alive) >= service.settings.max_open:
            told = f"{len(alive)} federations are open, more are not kept."
            raise CallRefused(429, told, "POST /stop for those that are done.")
        folder = states.create(service.root, state, upload.path if upload else None)
        await asyncio.to_thread(actor.reach, folder)
    plain = {"aggregator_id": state.id, "remaining_parties": state.n_remaining}
    return answer(plain)


async def start_party(request: Request) -> Response:
    """Join a party: its data as an upload, or where it lies on a labelled node.

    Uploaded data leaves the party's hands: it lies on the service's disk. Data that
    must not move is named by `data_path` and `labels`.
    """
    service = _service(request)
    came = await service.read(request)
    try:
        folder, state = service.found(request, came.values.get("aggregator_id"))
        actor.check_open(state)
        party, examined = await party_of(came, folder, service.settings)
        if examined:
            place = len(state.parties)
            listed = [*state.parties, {"name": f"party-{place}", **party}]
            parties = allowed.unjoined(state.settings, listed)
            config = allowed.with_parties(state.settings, state.model_file, parties)
            await service.examiners.examine(config, folder, place)
    except BaseException:
        came.discard()
        raise
    return await _join(folder, party, came)


async def _join(folder: Path, party: dict[str, Any], came: body.Body) -> Response:
    try:
        call = secrets.token_hex(8)
        handle = await asyncio.to_thread(actor.reach, folder)
        name, n_remaining = await handle.join.remote(party, call)
    except Exception as error:
        came.discard()
        raise cause_of(error) from None
    said = "all have joined: POST /train" if not n_remaining else "yet to join"
    message = f"{name} has joined; {n_remaining} {said}"
    if not n_remaining:
        message = f"{name} has joined; {said}"
    return answer(
        {"party_id": name, "remaining_parties": n_remaining, "message": message}
    )


async def train(request: Request, wait: bool = True) -> Response:
    """Train to the last round; answers the global model.

    With ``?wait=false`` the answer comes at once, and GET /aggregators/{id} tells more.
    A client that hangs up does not stop the training.
    """
    service = _service(request)
    came = await service.read(request)
    folder, state = service.found(request, came.values.get("aggregator_id"))
    actor.check_ready(state)
    handle = await asyncio.to_thread(actor.reach, folder)
    try:
        await handle.train.remote(secrets.token_hex(8))
    except Exception as error:
        raise cause_of(error) from None
    if not wait:
        return answer({"aggregator_id": state.id, "status": TRAINING}, 202)
    with contextlib.suppress(RayActorError):  # stopped meanwhile: the folder tells
        await handle.ended.remote()
    return _ended(folder)


def _ended(folder: Path) -> Response:
    state = states.load(folder)
    if state.state == TRAINED:
        head = {"aggregator_id": state.id, "history": history(folder)}
        return with_model(folder, head)
    if state.state == FAILED:
        raise CallRefused(**state.error)
    hint = "POST /stop answers the model of the last round done."
    raise CallRefused(409, f"This federation is {state.state}.", hint)


async def stop(request: Request) -> Response:
    """End a federation, its aggregator and parties; answers the model there is.

    A second stop answers the same.
    """
    service = _service(request)
    came = await service.read(request)
    folder, state = service.found(request, came.values.get("aggregator_id"))
    if state.state != STOPPED:
        handle = await asyncio.to_thread(actor.reach, folder)
        with contextlib.suppress(RayActorError):
            await asyncio.wait_for(handle.stop.remote(), STOP_S)
        state = states.load(folder)
    await asyncio.to_thread(actor.end, state.id)
    return with_model(folder, {"aggregator_id": state.id, "status": state.state})


async def aggregators(request: Request) -> Response:
    """Your federations, oldest first."""
    service, owner = _service(request), request.scope["client_id"]
    all_of = await asyncio.to_thread(lambda: [*states.all_of(service.root)])
    told = [shapes.short(state) for state in all_of if state.owner == owner]
    return answer({"aggregators": told})


async def aggregator(request: Request, id: str) -> Response:
    """State, round, metrics, parties and history of one federation."""
    folder, state = _service(request).found(request, id)
    live = {}
    if state.state == TRAINING:
        handle = await asyncio.to_thread(actor.reach, folder)
        with contextlib.suppress(RayActorError, TimeoutError):
            live = await asyncio.wait_for(handle.progress.remote(), PROGRESS_S)
        state = states.load(folder)
    told = await asyncio.to_thread(history, folder)
    return answer(shapes.whole(state, live) | {"history": told})


async def weights(request: Request, id: str) -> Response:
    """The global model as a file of its framework."""
    folder, state = _service(request).found(request, id)
    model = training.model_of(folder)
    if model is None or state.state == TRAINING:
        hint = "POST /train first; GET /aggregators/{id} tells how far it is."
        raise CallRefused(409, f"No model yet: this federation is {state.state}.", hint)
    return FileResponse(
        model, filename=model.name, media_type="application/octet-stream"
    )


async def health() -> Response:
    """The service is there."""
    return answer({"status": "ok"})


def _file(path: Path) -> Any:
    async def send() -> Response:
        return FileResponse(path)

    return send


async def _other_refusal(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals in the form of all others."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
        return refusal(CallRefused(422, told, "GET /docs lists what each call takes."))
    hint = "GET /docs lists the calls."
    return refusal(CallRefused(error.status_code, f"{error.detail}.", hint))


ROUTES = (
    ("/start-aggregator", "POST", start_aggregator, shapes.START_AGGREGATOR),
    ("/start-party", "POST", start_party, shapes.START_PARTY),
    ("/train", "POST", train, shapes.TRAIN),
    ("/stop", "POST", stop, shapes.STOP),
    ("/aggregators", "GET", aggregators, shapes.LIST),
    ("/aggregators/{id}", "GET", aggregator, shapes.STATUS),
    ("/aggregators/{id}/weights", "GET", weights, shapes.WEIGHTS),
    ("/health", "GET", health, shapes.HEALTH),
)
