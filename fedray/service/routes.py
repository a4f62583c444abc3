"""REST calls: one method for each route of the Model Fusion API."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Path as PathParameter
from fastapi import Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from fedray.checkpoint import BEST, LAST
from fedray.config import describe_unknown
from fedray.edges.listing import list_edges
from fedray.edges.registry import Registry
from fedray.edges.roster import Roster
from fedray.errors import CallRefused, ConfigError, LimitReached, format_count
from fedray.runs_page import ask, unless_seen
from fedray.service import (
    client_words,
    federation_actor,
    lifecycle,
    schemas,
    store,
)
from fedray.service.demands import check_demand
from fedray.service.disk import Disk
from fedray.service.hang_up import run_unless_gone
from fedray.service.lifecycle import run_to_end
from fedray.service.membership import check_fields, read_party
from fedray.service.page_answers import FederationPages, check_count
from fedray.service.privacy_requirement import check_requirements, read_requirements
from fedray.service.request_body import BodyReader
from fedray.service.responses import history_response, json_response, model_response
from fedray.service.sandbox import Sandbox
from fedray.service.scheduler import Scheduler
from fedray.service.settings import Settings
from fedray.service.store import (
    FAILED,
    QUEUED,
    STOPPED,
    TRAINED,
    TRAINING,
    State,
    check_can_join,
    check_can_leave,
    check_can_train,
)
from fedray.service.uploads import FormData

BEST_MODEL = "true: the best round's model, of a federation with keep_best"
LOG = logging.getLogger("fedray")
PathId = Annotated[
    str,
    PathParameter(
        description="the federation, as /start-aggregator answered it",
        openapi_examples={"id": {"value": schemas.EXAMPLE_ID}},
    ),
]


def check_query(request: Request) -> None:
    """Raise ConfigError for query parameters that the call does not have."""
    route = request.scope["route"]
    names = [parameter.alias for parameter in route.dependant.query_params]
    _check_names(request.query_params, names, "query parameter")
    for name in names:
        if len(request.query_params.getlist(name)) > 1:
            raise ConfigError([f"query parameter {name} is given more than once"])


class Routes:
    """A method for each call, and what they share: settings, sandbox, a lock."""

    def __init__(self, settings: Settings, sandbox: Sandbox, scheduler: Scheduler):
        self.settings, self.sandbox, self.scheduler = settings, sandbox, scheduler
        self.root = settings.folder
        self.usage = sandbox.usage
        self.disk = Disk(settings)
        self.requirements = read_requirements(settings.require_privacy)
        self.pages = FederationPages(self.root)

    async def start_aggregator(self, request: Request) -> Response:
        """Create a federation from settings and an initial model.

        Answers its id and how many parties have yet to join.
        """
        owner = request.scope["client_id"]
        async with self._form(request) as form:
            settings = schemas.read_settings(
                form.values, self.settings.max_parties, form.files
            )
            self._require_privacy(settings)
            upload = form.files.get("model_file")
            model = upload.path if upload else None
            parties = schemas.add_placeholders(settings, [])
            model_file = str(model) if model else None
            config = schemas.whole_config(settings, model_file, parties)
            check = self.sandbox.check(config, form.words, owner)
            sizes = await run_unless_gone(request, check)
            state = State(store.make_id(), owner, settings, len(parties))
            state.files, state.model_bytes = form.words, sizes.get("model_bytes", {})
            check_demand(state, self.settings)
            await run_to_end(asyncio.to_thread(self._create, state, model))
        remaining = {"remaining_parties": state.n_remaining}
        return json_response({"aggregator_id": state.id} | remaining)

    async def start_party(self, request: Request) -> Response:
        """Join a party: its data as an upload, or where it lies on a labelled node.

        Uploaded data leaves the party's hands: it lies on the service's disk. Data that
        must not move is named by `data_path` and `labels`.
        """
        async with self._form(request) as form:
            if not form.values.get("aggregator_id"):
                check_fields(form)
            folder, state = self._find(request, form.values.get("aggregator_id"))
            check_can_join(state, self.settings.max_parties)
            party, is_to_check = await read_party(form, self.settings, state.owner)
            if is_to_check:
                check = self._check_data(state, party, form.words)
                party |= await run_unless_gone(request, check)
            async with self._holding_room(folder, party):
                most = self.settings.max_parties
                joining = lifecycle.join(folder, party, form, most)
                name, n_remaining = await run_to_end(joining)
        next_step = (
            f"{n_remaining} more to come" if n_remaining else "all have: POST /train"
        )
        if state.is_in_training:
            next_step = "it takes part from the next round on"
        message = f"{name} has joined; {next_step}"
        answer = {"remaining_parties": n_remaining, "message": message}
        if party.get("edge"):
            (invitation,) = await asyncio.to_thread(Registry(folder).invite, name)
            answer["invitation"] = invitation
        return json_response({"party_id": name} | answer)

    async def stop_party(self, request: Request) -> Response:
        """Remove a party: no round after the one under way asks it for anything.

        Before the training another party can join in its place.
        """
        values = await self._small_form(request, schemas.PARTY_ID["properties"])
        folder, state = self._find(request, values.get("aggregator_id"))
        party = values.get("party_id")
        party = "" if party is None else str(party)
        check_can_leave(state, party)
        last_round, n_remaining = await run_to_end(lifecycle.leave(folder, party))
        if state.party(party).get("edge"):
            await asyncio.to_thread(Registry(folder).shut_out, party)
        message = f"{party} has left; no round after {last_round} asks for it"
        remaining = {"remaining_parties": n_remaining, "message": message}
        return json_response({"party_id": party} | remaining)

    async def train(
        self,
        request: Request,
        wait: Annotated[bool, Query(description="false: answer at once")] = True,
    ) -> Response:
        """Train to the last round; answers the global model.

        With ``?wait=false`` the answer comes at once; GET /aggregators/{id} has the
        progress. A client that hangs up does not stop the training.
        """
        folder, state = await self._find_named(request)
        check_can_train(state)
        self._require_privacy(state.settings)
        await run_to_end(self.scheduler.train(folder))
        if not wait:
            is_queued = store.read(folder).state == QUEUED
            status = QUEUED if is_queued else TRAINING
            return json_response({"aggregator_id": state.id, "status": status}, 202)
        with request.scope["claim"].without(calls=1):
            await _while_connected(request, lifecycle.wait_until_ended(folder))
        return await _training_response(folder)

    async def stop(self, request: Request) -> Response:
        """End a federation, its aggregator and parties; answers its newest model.

        A second stop answers the same.
        """
        folder, state = await self._find_named(request)
        await run_to_end(lifecycle.stop(folder))
        head = {"aggregator_id": state.id, "status": STOPPED}
        return await model_response(folder, head)

    async def list_aggregators(self, request: Request) -> Response:
        """Your federations, oldest first."""
        owner = request.scope["client_id"]
        states = await asyncio.to_thread(lambda: [*store.list_states(self.root)])
        own = []
        for state in states:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # edited by hand
                own += [schemas.summarize(state)] if state.owner == owner else []
        return json_response({"aggregators": own})

    async def get_aggregator(self, request: Request, id: PathId) -> Response:
        """State, round, metrics, parties and history of one federation."""
        folder, state, live = await self._find_live(request, id)
        return await history_response(
            folder, schemas.describe(state, live), state.words
        )

    async def get_edges(self, request: Request, id: PathId) -> Response:
        """Parties outside the cluster that have enrolled: state, when last seen."""
        folder, state = self._find(request, id)
        edges = await asyncio.to_thread(lambda: list_edges(Roster(folder)))
        return json_response({"aggregator_id": state.id, "edges": edges})

    async def get_weights(
        self,
        request: Request,
        id: PathId,
        best: Annotated[bool, Query(description=BEST_MODEL)] = False,
    ) -> Response:
        """The global model as a file of its framework."""
        folder, state = self._find(request, id)
        if best and not state.settings.get("keep_best"):
            detail = "No best model: this federation was started without keep_best."
            raise CallRefused(404, detail, "Leave best out for the last model.")
        model = federation_actor.find_model_file(folder, BEST if best else LAST)
        if model is None or state.is_in_training:
            detail = f"No model yet: this federation is {state.state}."
            hint = "POST /train first; GET /aggregators/{id} has its progress."
            raise CallRefused(409, detail, hint)
        media_type = "application/octet-stream"
        return FileResponse(model, filename=model.name, media_type=media_type)

    async def get_report(self, request: Request, id: PathId) -> Response:
        """The report of a training that has ended, as a page."""
        folder, state = self._find(request, id)
        page = await asyncio.to_thread(
            federation_actor.client_report, folder, state.words
        )
        if page is None or state.is_in_training:
            detail = f"No report yet: this federation is {state.state}."
            hint = "POST /train first; GET /aggregators/{id} has its progress."
            raise CallRefused(409, detail, hint)
        return HTMLResponse(page)

    async def list_runs(self, request: Request) -> Response:
        """Your federations for the live page, newest first."""
        owner = request.scope["client_id"]

        def entries() -> list[dict[str, Any]]:
            states = [s for s in store.list_states(self.root) if s.owner == owner]
            return [self._page_entry(state) for state in reversed(states)]

        runs = [entry for entry in await asyncio.to_thread(entries) if entry]
        answer = {"runs": runs, "is_service": True}
        return json_response(unless_seen(answer, request.query_params.get("seen", "")))

    def _page_entry(self, state: State) -> dict[str, Any]:
        with contextlib.suppress(ValueError, TypeError, KeyError), self.pages.lock:
            return self.pages.entry(state)
        return {}  # edited by hand

    async def get_run(self, request: Request, id: PathId) -> Response:
        """One of your federations for the live page."""
        _, state, live = await self._find_live(request, id)

        def detail() -> dict[str, Any]:
            with self.pages.lock:
                return self.pages.detail(state, live)

        answer = {"run": await asyncio.to_thread(detail)}
        return json_response(unless_seen(answer, request.query_params.get("seen", "")))

    async def compare_runs(self, request: Request) -> Response:
        """Several of your federations compared, for the live page."""
        ids = request.query_params.getlist("run")
        check_count(ids)
        states = [self._find(request, id)[1] for id in ids]
        question = ask(request.query_params)
        answer = await asyncio.to_thread(self.pages.compare, states, question)
        return json_response(answer)

    def _require_privacy(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError if the operator requires more privacy."""
        if self.requirements:
            config = schemas.config_alone(settings)
            check_requirements(self.requirements, config)

    def _create(self, state: State, model: Path | None) -> None:
        with store.lock(self.root):  # two calls do not find the same last place
            self._check_open_limit(state.owner)
            store.create(self.root, state, model)

    @contextlib.asynccontextmanager
    async def _form(self, request: Request) -> AsyncIterator[FormData]:
        """The call's form; uploads that were not claimed are deleted at the end."""
        form = await BodyReader(request, self.settings, self.disk).read()
        try:
            yield form
        finally:
            form.discard()

    async def _small_form(
        self, request: Request, names: Iterable[str]
    ) -> dict[str, Any]:
        """Values of a call that has these fields and no files; it needs no disk."""
        form = await BodyReader(request, self.settings).read()
        _check_names(form.names, names, "field")
        return form.values

    async def _find_named(self, request: Request) -> tuple[Path, State]:
        """The federation of a body that has aggregator_id and nothing else."""
        names = schemas.AGGREGATOR_ID["properties"]
        values = await self._small_form(request, names)
        return self._find(request, values.get("aggregator_id"))

    async def _find_live(
        self, request: Request, id: Any
    ) -> tuple[Path, State, dict[str, Any]]:
        """As `_find`, and how far the training under way is; empty if there is none."""
        folder, state = self._find(request, id)
        live: dict[str, Any] = {}
        if state.state == TRAINING:
            live = await lifecycle.progress(folder)
            state = store.read(folder)
            live = client_words.hide_paths_in_data(live, state.words, folder)
        return folder, state, live

    def _find(self, request: Request, id: Any) -> tuple[Path, State]:
        """Folder and state of the client's own federation of this id.

        Raises
        ------
        CallRefused
            404 if there is none, or another client has it: the same answer.
        """
        if id is None or id == "":
            hint = store.no_such_aggregator().hint
            raise CallRefused(422, "aggregator_id is missing.", hint)
        if isinstance(id, str) and store.ID.fullmatch(id):
            folder = self.root / id
            try:
                state = store.load(folder)
            except (ValueError, OSError):  # damaged: nobody knows whose it is
                LOG.exception("%s cannot be read", folder / store.FILE)
                state = None
            if state and state.owner == request.scope["client_id"]:
                store.note_call(folder)
                return folder, state
        raise store.no_such_aggregator()

    async def _check_data(
        self, state: State, party: dict[str, Any], files: dict[str, str]
    ) -> dict[str, Any]:
        """Read a joining party's data with the model, in the sandbox.

        Returns
        -------
        What it takes of memory, by `schemas.MEMORY_FIELDS`.
        """
        listed = [*state.parties, state.name_party(party)]
        parties = schemas.add_placeholders(state.settings, listed)
        config = schemas.whole_config(state.settings, state.model_file, parties)
        words = state.words | files
        place = len(state.parties)
        sizes = await self.sandbox.check(config, words, state.owner, place)
        return {key: sizes[key] for key in schemas.MEMORY_FIELDS if key in sizes}

    @contextlib.asynccontextmanager
    async def _holding_room(
        self, folder: Path, party: dict[str, Any]
    ) -> AsyncIterator[None]:
        """See that a training with one more party has room, and will have its turn."""
        state = await asyncio.to_thread(store.read, folder)
        joining = dataclasses.replace(state, parties=[*state.parties, party])
        if state.is_in_training:
            joining.num_parties += 1
        check_demand(joining, self.settings)
        async with contextlib.AsyncExitStack() as stack:
            if state.state == TRAINING:
                await stack.enter_async_context(self.scheduler.joining(state, party))
            yield

    def _check_open_limit(self, owner: str | None) -> None:
        """Limit the federations that are not stopped, of the client and of all."""
        states = [s for s in store.list_states(self.root) if s.state != STOPPED]
        n_open = sum(state.owner == owner for state in states)
        if n_open >= self.settings.max_open:
            yours = "of your federations"
            are_open = format_count(n_open, f"{yours} is open", f"{yours} are open")
            detail = f"{are_open}, the most of this service."
            hint = "POST /stop for those that are done."
            raise LimitReached("max_open", detail, hint, retry_after_s=60)
        if len(states) >= self.settings.max_federations:
            detail = "The service has as many federations as it takes."
            hint = "Try again once others are stopped."
            raise LimitReached("max_federations", detail, hint, retry_after_s=60)


def _check_names(names: Iterable[str], choices: Iterable[str], what: str) -> None:
    """Raise ConfigError for names that are none of `choices`."""
    choices = list(choices)
    wrong = [name[:80] for name in names if name not in choices]
    if wrong and not choices:
        raise ConfigError([f"unknown {what} {n!r}: this call has none" for n in wrong])
    problems = [describe_unknown(what, name, choices) for name in wrong]
    if "wait" in wrong and what == "field":
        problems[wrong.index("wait")] = "wait goes into the query: /train?wait=false"
    if problems:
        raise ConfigError(problems)


async def _training_response(folder: Path) -> Response:
    """The answer to /train once the training has ended."""
    state = store.read(folder)
    if state.state == TRAINED:
        head = {"aggregator_id": state.id}
        return await model_response(folder, head, state.words)
    if state.state == FAILED and state.error:
        raise CallRefused(**state.error)
    hint = "POST /stop answers the model of the last round done."
    raise CallRefused(409, f"This federation is {state.state}.", hint)


async def _while_connected(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Await work that a hang-up ends: nobody is there for the answer.

    Raises
    ------
    CallRefused
        If the client has hung up.
    """
    working = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({working, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallRefused(400, "The connection has ended.", "Call again.")
        await working
    finally:
        working.cancel()
        hang_up.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
