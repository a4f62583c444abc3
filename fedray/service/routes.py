"""The calls of the REST service: what each of them does, one after another."""

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, Response
from ray.exceptions import RayActorError

from fedray.config import unknown
from fedray.errors import CallRefused, ConfigError
from fedray.service import (
    federation_actor,
    schemas,
    state_checks,
    uploads,
)
from fedray.service import store as states
from fedray.service.membership import party_of
from fedray.service.responses import answer, cause_of, history, with_model
from fedray.service.sandbox import Examiners
from fedray.service.settings import Settings
from fedray.service.store import FAILED, STOPPED, TRAINED, TRAINING, State
from fedray.service.uploads import Body

PROGRESS_S = 1.0  # for what an actor says of the round under way
STOP_S = federation_actor.STOP_S + 15


class Calls:
    """Settings, examiners, and a method for each call."""

    def __init__(self, settings: Settings, examiners: Examiners):
        self.settings, self.examiners = settings, examiners
        self.root = settings.folder
        self.starting = asyncio.Lock()

    async def start_aggregator(self, request: Request) -> Response:
        """Make a federation from settings and an initial model.

        Answers its id and how many parties have yet to join.
        """
        owner = request.scope["client_id"]
        async with self._body(request) as came:
            settings = schemas.read(came.values, self.settings.max_parties)
            _only(came.files, schemas.FILES, "file")
            upload = came.files.get("model_file")
            model = upload and upload.path
            parties = schemas.unjoined(settings, [])
            config = schemas.with_parties(settings, model and str(model), parties)
            await self.examiners.examine(config, states.incoming(self.root))
            state = State(states.new_id(), owner, settings, len(parties))
            async with self.starting:
                await asyncio.to_thread(self._check_room, owner)
                folder = states.create(self.root, state, model)
            await asyncio.to_thread(federation_actor.reach, folder)
        left = {"remaining_parties": state.n_remaining}
        return answer({"aggregator_id": state.id} | left)

    async def start_party(self, request: Request) -> Response:
        """Join a party: its data as an upload, or where it lies on a labelled node.

        Uploaded data leaves the party's hands: it lies on the service's disk. Data that
        must not move is named by `data_path` and `labels`.
        """
        async with self._body(request) as came:
            folder, state = self._found(request, came.values.get("aggregator_id"))
            state_checks.check_open(state)
            self._check_crowd(state)
            party, is_examined = await party_of(came, self.settings)
            if is_examined:
                place = len(state.parties)
                listed = [*state.parties, state.named(party)]
                parties = schemas.unjoined(state.settings, listed)
                config = schemas.with_parties(state.settings, state.model_file, parties)
                await self.examiners.examine(config, self.root, place)
            party = states.take_over(folder, party, came.paths)
            name, n_remaining = await _join(folder, party)
        said = f"{n_remaining} more to come" if n_remaining else "all have: POST /train"
        if state.state == TRAINING:
            said = "it takes part from the next round on"
        message = f"{name} has joined; {said}"
        left = {"remaining_parties": n_remaining, "message": message}
        return answer({"party_id": name} | left)

    async def stop_party(self, request: Request) -> Response:
        """Let a party go: no round after the one under way asks it for anything.

        Before the training another party can join for it.
        """
        async with self._body(request) as came:
            _only(came.values | came.files, ("aggregator_id", "party_id"), "field")
            folder, state = self._found(request, came.values.get("aggregator_id"))
            party = came.values.get("party_id")
            state_checks.check_leaving(state, party if isinstance(party, str) else "")
            handle = await asyncio.to_thread(federation_actor.reach, folder)
            try:
                last = await handle.leave.remote(party)
            except Exception as error:
                raise cause_of(error) from None
        left = {"remaining_parties": states.load(folder).n_remaining}
        message = f"{party} has left; no round after {last} asks for it"
        return answer({"party_id": party} | left | {"message": message})

    async def train(self, request: Request, wait: bool = True) -> Response:
        """Train to the last round; answers the global model.

        With ``?wait=false`` the answer comes at once, and GET /aggregators/{id} tells
        more. A client that hangs up does not stop the training.
        """
        folder, state = await self._named(request)
        state_checks.check_ready(state)
        handle = await asyncio.to_thread(federation_actor.reach, folder)
        try:
            await handle.train.remote(secrets.token_hex(8))
        except Exception as error:
            raise cause_of(error) from None
        if not wait:
            return answer({"aggregator_id": state.id, "status": TRAINING}, 202)
        with contextlib.suppress(RayActorError):  # stopped meanwhile: the folder tells
            await handle.ended.remote()
        return _ended(folder)

    async def stop(self, request: Request) -> Response:
        """End a federation, its aggregator and parties; answers the model there is.

        A second stop answers the same.
        """
        folder, state = await self._named(request)
        if state.state != STOPPED:
            handle = await asyncio.to_thread(federation_actor.reach, folder)
            with contextlib.suppress(RayActorError, TimeoutError):
                await asyncio.wait_for(handle.stop.remote(), STOP_S)
        await asyncio.to_thread(federation_actor.end, folder)
        return with_model(folder, {"aggregator_id": state.id, "status": STOPPED})

    async def aggregators(self, request: Request) -> Response:
        """Your federations, oldest first."""
        owner = request.scope["client_id"]
        all_of = await asyncio.to_thread(lambda: [*states.all_of(self.root)])
        told = [schemas.short(state) for state in all_of if state.owner == owner]
        return answer({"aggregators": told})

    async def aggregator(self, request: Request, id: str) -> Response:
        """State, round, metrics, parties and history of one federation."""
        folder, state = self._found(request, id)
        live = {}
        if state.state == TRAINING:
            handle = await asyncio.to_thread(federation_actor.reach, folder)
            with contextlib.suppress(RayActorError, TimeoutError):
                live = await asyncio.wait_for(handle.progress.remote(), PROGRESS_S)
            state = states.load(folder)
        told = await asyncio.to_thread(history, folder)
        return answer(schemas.whole(state, live) | {"history": told})

    async def weights(self, request: Request, id: str) -> Response:
        """The global model as a file of its framework."""
        folder, state = self._found(request, id)
        model = federation_actor.model_of(folder)
        if model is None or state.state == TRAINING:
            told = f"No model yet: this federation is {state.state}."
            hint = "POST /train first; GET /aggregators/{id} tells how far it is."
            raise CallRefused(409, told, hint)
        kind = "application/octet-stream"
        return FileResponse(model, filename=model.name, media_type=kind)

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[Body]:
        """The call's body; what it uploaded is deleted unless it was taken over."""
        folder = states.incoming(self.root)
        if shutil.disk_usage(folder).free < self.settings.max_upload:
            told = "The service's disk is nearly full."
            raise CallRefused(507, told, "Its operator must make room.")
        came = await uploads.read(request, folder, self.settings)
        try:
            yield came
        finally:
            came.discard()

    async def _named(self, request: Request) -> tuple[Path, State]:
        """The federation that a body names, and nothing else."""
        async with self._body(request) as came:
            _only(came.values | came.files, ("aggregator_id",), "field")
            return self._found(request, came.values.get("aggregator_id"))

    def _found(self, request: Request, id: Any) -> tuple[Path, State]:
        """The federation that a client asks for, if it is its own.

        Raises
        ------
        CallRefused
            404 if there is none, or another client has it: the same answer.
        """
        hint = "GET /aggregators lists your own; POST /start-aggregator makes one."
        if id is None or id == "":
            raise CallRefused(422, "aggregator_id is missing.", hint)
        if isinstance(id, str) and states.ID.fullmatch(id):
            state = states.load(self.root / id)
            if state and state.owner == request.scope["client_id"]:
                return self.root / id, state
        raise CallRefused(404, "There is no such aggregator.", hint)

    def _check_crowd(self, state: State) -> None:
        if state.state == TRAINING and state.num_parties >= self.settings.max_parties:
            told = f"{state.num_parties} parties have joined, more are not taken here."
            raise CallRefused(409, told, "POST /start-aggregator for another one.")

    def _check_room(self, owner: str | None) -> None:
        """Every federation that is not stopped has a process."""
        own = [one for one in states.all_of(self.root) if one.owner == owner]
        n_open = sum(one.state != STOPPED for one in own)
        if n_open >= self.settings.max_open:
            told = f"{n_open} of your federations are open, more are not kept."
            raise CallRefused(429, told, "POST /stop for those that are done.")


def _only(given: Any, known: tuple[str, ...], what: str) -> None:
    found = [unknown(what, name[:80], known) for name in given if name not in known]
    if found:
        raise ConfigError(found)


async def _join(folder: Path, party: dict[str, Any]) -> tuple[str, int]:
    handle = await asyncio.to_thread(federation_actor.reach, folder)
    joining = handle.join.remote(party, secrets.token_hex(8))
    try:
        return await joining
    except Exception as error:
        states.give_up(folder, party)
        raise cause_of(error) from None


def _ended(folder: Path) -> Response:
    state = states.load(folder)
    if state.state == TRAINED:
        head = {"aggregator_id": state.id, "history": history(folder)}
        return with_model(folder, head)
    if state.state == FAILED:
        raise CallRefused(**state.error)
    hint = "POST /stop answers the model of the last round done."
    raise CallRefused(409, f"This federation is {state.state}.", hint)
