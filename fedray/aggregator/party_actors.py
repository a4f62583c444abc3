"""Handles of the party actors, calls of them, their nodes and declared samples."""

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle, ActorMethod
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from fedray import policy
from fedray.aggregator.data_changes import DataChanges
from fedray.config.edges import POPULATION
from fedray.errors import PartyError
from fedray.messages import PartyInfo, Report
from fedray.placement import ActorPool, StoredObject, actor_of_pool

POLL_S = 0.25  # how soon a stop is noticed
Caller = TypeVar("Caller")


@dataclass(frozen=True, eq=False)
class WorkItem:
    """The parties that one actor trains in a round.

    parties : ascending places in the config.
    is_single : the actor's pool has one party, whose update comes as the party made it.
    """

    actor: str
    node: str  # on which it is placed; it may have been restarted on another
    parties: np.ndarray
    is_single: bool


class LentParty:
    """A party's actor in a process that trains for many runs: `party.PartyHost`.

    It is called as an actor of `PartyGroup` is. Each call brings what the process needs
    to make the party's group, should it not have it.

    key : of the run and the group.
    read_plan : gets the group's plan from the object store.
    """

    def __init__(self, host: ActorHandle, key: str, read_plan: StoredObject):
        self.host, self.key, self.read_plan = host, key, read_plan

    @property
    def __ray_ready__(self) -> ActorMethod:
        return self.host.__ray_ready__

    def __getattr__(self, method: str) -> "LentMethod":
        if method.startswith("__"):
            raise AttributeError(method)
        return LentMethod(self.host.call, (self.key, self.read_plan, method))


@dataclass(frozen=True)
class LentMethod:
    """A method of a `LentParty`, called as a method of an actor is."""

    method: Any  # ActorMethod
    first: tuple[Any, ...]

    def options(self, **options: Any) -> "LentMethod":
        """The method with options of Ray."""
        return replace(self, method=self.method.options(**options))

    def remote(self, *arguments: Any) -> Any:
        """Call it; nothing is waited for."""
        return self.method.remote(*self.first, *arguments)


PartyHandle = ActorHandle | LentParty
Lent = Mapping[str, LentParty] | None  # actors by name; None: a run has its own


class ActorCall:
    """A call of a party's actor, made once more if the actor could not be reached.

    Ray says so while the actor's node is lost but not yet declared dead, which takes
    longer (13 s by default) than Ray's own retries of a call. Then the actor is waited
    for, which Ray restarts, and is asked again: trained twice gives the same update.

    refs : what the call returns.
    """

    def __init__(
        self, actor: PartyHandle, method: str, *arguments: Any, n_returns: int = 1
    ):
        ask = getattr(actor, method).options(num_returns=n_returns)
        self._actor, self._ask = actor, partial(ask.remote, *arguments)
        self._ready_ref: ObjectRef | None = None  # while the actor is waited for
        self._may_retry = True
        self.refs: tuple[ObjectRef, ...] = self._send()

    @property
    def pending_ref(self) -> ObjectRef:
        """What is waited for now."""
        return self._ready_ref or self.refs[0]

    def retry_after(self, answer: Any) -> bool:
        """Go on with another `pending_ref` if the actor could not be reached.

        answer : what `pending_ref` gave.

        Returns
        -------
        Whether the call goes on; if not, this is its answer.
        """
        if self._ready_ref is not None:
            self._ready_ref = None
            if isinstance(answer, RayError):
                return False  # the actor is gone for good
            self.refs = self._send()
            return True
        if self._may_retry and isinstance(answer, ActorUnavailableError):
            self._may_retry = False
            ready: ActorMethod = self._actor.__ray_ready__
            self._ready_ref = ready.options(max_task_retries=-1).remote()
            return True
        return False

    def _send(self) -> tuple[ObjectRef, ...]:
        refs = self._ask()
        return tuple(refs) if isinstance(refs, list) else (refs,)


class FrozenSource(Protocol):
    """Tensors that travel once to each actor: `FrozenTensors`."""

    def ref_of(self, actor: str) -> ObjectRef | None:
        """What an actor gets beside what travels every round; None: nothing."""

    def strays(self, moved: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Actors at which something moved that does not travel, and what."""


class PartyActors:
    """All party actors of a run, and what they said when they joined or reported.

    run : the run's name; here : Ray node id of the aggregator.
    pools : where parties are placed, in config order.
    actors : handles by name. Ray restarts an actor that dies under the same handle.
    nodes, processes : by actor, as of its last answer; only of those that answered.
    stop : set when the run is to end: nothing is waited for any more.
    data_changes : what they say of the data that they have loaded.
    frozen : tensors that travel once, or None; `moved`: those that did move, by actor.
    """

    def __init__(
        self,
        run: str,
        here: str,
        pools: list[ActorPool],
        actors: Mapping[str, PartyHandle],
        data_changes: DataChanges,
    ):
        self.run, self.here = run, here
        self.pools = list(pools)
        self.actors: dict[str, PartyHandle] = dict(actors)
        self.nodes: dict[str, str] = {}
        self.processes: dict[str, str] = {}
        self.data_changes = data_changes
        self.working: dict[str, float] = {}  # share of a training that is done
        self.stop = threading.Event()
        self.frozen: FrozenSource | None = None  # what travels once; None: nothing
        self.moved: dict[str, tuple[str, ...]] = {}  # frozen, but not at this actor
        self.n_frozen_bytes = 0  # that went to actors, and no round counts yet
        self.run_id = ""  # under which parties keep what is theirs
        self.identities: dict[str, bytes] = {}  # by actor, where updates are masked
        self._n_test: dict[str, int] = {}  # by actor
        self._edges: dict[str, int] = {}  # by name: places of those outside the cluster
        for pool in pools:
            self._note_edges(pool)
        ends = [pool.parties.stop for pool in pools]
        self._n_train = np.zeros(max(ends, default=0), np.int64)  # 0: not declared yet

    def place(self, pool: ActorPool, actor: ActorHandle) -> None:
        """Add a party that joins while the run goes on."""
        self.pools.append(pool)
        self.actors[pool.actors[0]] = actor
        self._note_edges(pool)
        n_new = max(0, pool.parties.stop - len(self._n_train))
        self._n_train = np.concatenate([self._n_train, np.zeros(n_new, np.int64)])

    def _note_edges(self, pool: ActorPool) -> None:
        if pool.kind:
            self._edges |= dict.fromkeys(pool.actors, pool.parties.start)

    def call(
        self, name: str, method: str, *arguments: Any, n_returns: int = 1
    ) -> ActorCall:
        """Call a method of an actor; nothing is waited for."""
        method, *arguments = self.with_frozen(name, method, *arguments)
        whole = method, *arguments
        if name in self._edges:
            whole = "for_edge", self._edges[name], name, *whole
        return ActorCall(self.actors[name], *whole, n_returns=n_returns)

    def with_frozen(self, name: str, method: str, *arguments: Any) -> Any:
        """Method and arguments of a call of an actor, with what travels once, if any.

        All calls carry it: an actor may have been restarted since the last one.
        """
        frozen_ref = self.frozen.ref_of(name) if self.frozen else None
        if frozen_ref is None:
            return method, *arguments
        # as an argument of its own, which Ray resolves once on each node
        return "with_frozen", frozen_ref, method, *arguments

    def remove(self, name: str) -> None:
        """Kill the actor of a party that has left, if it still has one."""
        if name in self.actors:
            actor = self.actors.pop(name)
            if self._edges.pop(name, None) is not None:
                actor.leave.remote(name)  # it stands for others too
            elif not isinstance(actor, LentParty):  # others go on using that
                ray.kill(actor)
            self.pools = [pool for pool in self.pools if name not in pool.actors]
            for by_actor in (self.nodes, self.processes, self._n_test, self.working):
                by_actor.pop(name, None)

    def record_contact(self, name: str, answer: PartyInfo | Report) -> bool:
        """Record node, process and counts of an actor; was it restarted since?

        The sample counts of its first answer are what its parties have declared.
        """
        self.working.pop(name, None)
        self.n_frozen_bytes += answer.n_frozen_bytes
        process = self.processes.get(name, answer.process)
        self.nodes[name], self.processes[name] = answer.node, answer.process
        self.data_changes.note(name, answer.data, answer.process != process)
        if isinstance(answer, PartyInfo):
            self._n_test[name], self.moved[name] = answer.n_test, answer.moved
            self.identities[name] = answer.identity
            pool = next(pool for pool in self.pools if name in pool.actors)
            self._n_train[pool.parties] = answer.n_train
        else:
            # edges of a population are bounded one by one where they are combined
            is_new = self._n_train[answer.parties] == 0
            is_new &= answer.parties < POPULATION
            self._n_train[answer.parties[is_new]] = answer.n_samples[is_new]
        return answer.process != process

    def declared_samples(self, parties: np.ndarray) -> np.ndarray:
        """Training samples that parties have declared, (parties,); 0: not yet."""
        return self._n_train[parties]

    def slowest(self, n_most: int) -> dict[str, float]:
        """Share of the training done, of the `n_most` actors furthest behind."""
        shares = sorted(self.working.copy().items(), key=lambda item: item[1])
        return dict(shares[:n_most])

    def restart(self, name: str, calls: Iterable[ActorCall]) -> None:
        """Kill an actor that hangs; Ray starts it again on its node.

        calls : all of its calls that are under way: Ray would repeat those that are not
            cancelled.
        """
        for call in calls:
            ray.cancel(call.pending_ref)
        actor = self.actors[name]
        handle = actor.host if isinstance(actor, LentParty) else actor
        ray.kill(handle, no_restart=False)

    def assign(self, places: np.ndarray) -> list[WorkItem]:
        """Split chosen parties over their pools' actors by samples, in config order."""
        items = []
        for pool in self.pools:
            ends = np.searchsorted(places, [pool.parties.start, pool.parties.stop])
            own = places[slice(*ends)]
            sizes = np.maximum(1, self._n_train[own])
            shares = policy.split_by_load(sizes, len(pool.actors))
            for name, share in zip(pool.actors, shares, strict=True):
                if len(own[share]):
                    is_single = len(pool.parties) == 1
                    item = WorkItem(name, pool.placement.node_id, own[share], is_single)
                    items.append(item)
        return items

    def has_tests(self) -> bool:
        """Whether a party may have test samples, as far as actors have said."""
        return any(self._n_test.get(name, 1) for name in self.actors)

    def with_tests(
        self, parties: np.ndarray | None = None
    ) -> Iterator[tuple[str, tuple[int, int], np.ndarray | None]]:
        """Actors that may have test samples; which of their pool's shares is whose.

        parties : those whose samples are wanted; None: all.
        """
        for pool in self.pools:
            own = None
            if parties is not None:
                own = parties[np.isin(parties, np.array(pool.parties))]
                if not len(own):
                    continue
            for i, name in enumerate(pool.actors):
                if self._n_test.get(name, 1):
                    yield name, (i, len(pool.actors)), own


def with_rate(learning_rate: float | None, method: str, *arguments: Any) -> Any:
    """Method and arguments of a call that trains, with the rate to go by, if any."""
    if learning_rate is None:
        return method, *arguments
    return "with_learning_rate", learning_rate, method, *arguments


def find_actors(
    run: str, pools: list[ActorPool], lent: Lent
) -> tuple[bool, tuple[list[ActorPool], Mapping[str, PartyHandle]]]:
    """Sites and their actors by name: those that are lent to a run, or its own.

    Before them, whether the calling aggregator has been restarted in a run of its own.
    """
    if lent is not None:
        return False, (pools, lent)
    is_restarted = ray.get_runtime_context().was_current_actor_reconstructed
    return is_restarted, reachable_actors(run, pools, is_restarted)


def reachable_actors(
    run: str, pools: list[ActorPool], may_be_missing: bool
) -> tuple[list[ActorPool], dict[str, ActorHandle]]:
    """Sites whose actors are alive, and these actors by name.

    may_be_missing : leave out pools whose actors were ended; otherwise ValueError.
    """
    reachable: list[ActorPool] = []
    actors: dict[str, ActorHandle] = {}
    for pool in pools:
        try:
            names = {n: actor_of_pool(run, pool, n) for n in pool.actors}
            actors |= {n: ray.get_actor(actor) for n, actor in names.items()}
        except ValueError:
            if not may_be_missing:
                raise
            continue
        reachable.append(pool)
    return reachable, actors


def wait_for_answers(
    calls: dict[ActorCall, Caller], until: float, stop: threading.Event
) -> Iterator[tuple[Caller, Any]]:
    """Yield (caller, answer or error) as each call ends, and take it out of `calls`.

    Ends when all have answered, when `stop` is set, or at `until` (monotonic clock):
    what has arrived by then still counts, however long the consumer took meanwhile.
    """
    while ended := wait_for_one(calls, until, stop):
        call, answer = ended
        yield calls.pop(call), answer


def wait_for_one(
    calls: Collection[ActorCall], until: float, stop: threading.Event
) -> tuple[ActorCall, Any] | None:
    """The first of these calls to end, and what it returned or its error.

    None at `until`, when `stop` is set, or if there are no calls.
    """
    pending = {call.pending_ref: call for call in calls}
    while pending and not stop.is_set():
        rest_s = max(0.0, until - time.monotonic())
        timeout_s = min(POLL_S, rest_s)
        done, _ = ray.wait(list(pending), timeout=timeout_s, fetch_local=False)
        if done:
            call, answer = pending.pop(done[0]), _answer_of(done[0])
            if not call.retry_after(answer):
                return call, answer
            pending[call.pending_ref] = call
        elif not rest_s:
            return None
    return None


def _answer_of(ref: ObjectRef) -> Any:
    """What a call that has ended returned, or the error that it ended with."""
    try:
        return ray.get(ref)
    except RayError as error:
        return error


LOST_PROCESS = (
    "its process ended, or its node cannot be reached (out of memory, killed, or its "
    "own code calls exit)"
)


def reason(error: Exception) -> str:
    """One line about a call that failed."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, PartyError):
        return cause.why
    if isinstance(cause, RayActorError):
        return LOST_PROCESS
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"
