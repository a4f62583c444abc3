"""Asking the parties, waiting for them, and getting updates in config order."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from fedray.aggregator.record import FUSED, LATE, RoundRecord
from fedray.errors import PartyError, TooFewUpdates
from fedray.fusion import Fusion, State, refusal
from fedray.messages import Report, Update
from fedray.placement import on_node
from fedray.weights import Schema, Weights, mismatch, n_bytes

POLL_S = 0.25  # how soon a stop is noticed
FETCH_S = 60.0  # for one update that is reported and must only travel


@dataclass
class Crew:
    """The parties, where each was last seen, and where the aggregator sits.

    seats : the nodes that the driver gave the parties; groups follow these.
    """

    run: str
    here: str
    parties: dict[str, ActorHandle]
    seats: dict[str, str]
    nodes: dict[str, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def restart(self, name: str, call: ObjectRef) -> None:
        """Kill a party that hangs; Ray starts it anew on its node."""
        ray.cancel(call)  # or Ray would run the hanging call again after the restart
        ray.kill(self.parties[name], no_restart=False)


class Broadcast:
    """One version of the global weights, put in the store once."""

    def __init__(self, weights: Weights):
        self.ref = ray.put(weights)
        self.weights: Weights = ray.get(self.ref)  # views of the store, not a copy
        self.reached: set[str] = set()

    def arrived(self, node: str, size: int) -> int:
        """Bytes that a node pulled: `size` for its first party, 0 for the others."""
        first = node not in self.reached
        self.reached.add(node)
        return size if first else 0


def answers(
    calls: dict[ObjectRef, str], until: float, stop: threading.Event
) -> Iterator[tuple[str, Any]]:
    """Yield (name, answer or error) as each call ends; takes them out of `calls`.

    Ends when all have answered, when `stop` is set, or at `until` (monotonic clock):
    what is there by then still counts, however long the caller was busy meanwhile.
    """
    while calls and not stop.is_set():
        left_s = max(0.0, until - time.monotonic())
        wait_s = min(POLL_S, left_s)
        done, _ = ray.wait(list(calls), timeout=wait_s, fetch_local=False)
        if not done and not left_s:
            return
        for ref in done:
            name = calls.pop(ref)
            try:
                answer = ray.get(ref)
            except RayError as error:
                answer = error
            yield name, answer


def reason(error: Exception) -> str:
    """One line about a call that failed."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, PartyError):
        return cause.why
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"


class Collection:
    """One round's updates: asks once, yields each as soon as its turn comes.

    A turn is one party, or all chosen parties of one node other than the aggregator's:
    those are combined there first, so that one model per node travels. Turns follow the
    config and the seats at the start, so that the same reporters give the same bits,
    also when a node is replaced.
    """

    def __init__(self, crew: Crew, rule: Fusion, record: RoundRecord, needed: Schema):
        self.crew, self.rule = crew, rule
        self.record, self.needed = record, needed
        self.calls: dict[ObjectRef, str] = {}
        self.updates: dict[str, ObjectRef] = {}
        self.combining: dict[int, tuple[list[str], ObjectRef]] = {}

    def ask(self, broadcast: Broadcast) -> None:
        """Ask every chosen party to train; nothing is waited for."""
        self.broadcast = broadcast
        for name in self.record.chosen:
            train = self.crew.parties[name].train.options(num_returns=2)
            report_ref, update_ref = train.remote(self.record.round, broadcast.ref)
            self.calls[report_ref], self.updates[name] = name, update_ref

    def arriving(
        self, weights: Weights, state: State, until: float
    ) -> Iterator[Update]:
        """Updates in config order, each dropped here once it is handed over."""
        state_ref = ray.put(state) if self.rule.admits else None
        turns, arrivals = self._turns(), answers(self.calls, until, self.crew.stop)
        for i, turn in enumerate(turns):
            while set(turn) & set(self.calls.values()):
                self._next(arrivals)
                self._combine_complete(turns, state_ref)
            if i in self.combining:
                update = self._combined(i)
            else:
                update = self._single(turn, weights, state)
            if update is not None:
                yield update
            del update

    def _turns(self) -> list[list[str]]:
        groups = defaultdict(list)
        for name in self.record.chosen:
            node = self.crew.seats[name]
            away = self.rule.associative and node != self.crew.here
            groups[node if away else name].append(name)
        return list(groups.values())

    def _next(self, arrivals: Iterator[tuple[str, Any]]) -> None:
        name, answer = next(arrivals, (None, None))
        if name is None:
            self._give_up()
        elif isinstance(answer, Report) and self._is_expected(answer, name):
            self.record.report(answer)
            self.crew.nodes[name] = answer.node
            arrived = self.broadcast.arrived(answer.node, answer.n_bytes)
            self.record.bytes_moved += arrived
        else:
            del self.updates[name]
            wrong = isinstance(answer, Exception) and reason(answer)
            self.record.settle(name, f"failed: {wrong or 'sent something else'}")

    def _is_expected(self, report: Report, name: str) -> bool:
        return (report.party, report.round) == (name, self.record.round)

    def _give_up(self) -> None:
        """Time is up: whoever has not reported is late, killed and started anew."""
        for ref, name in self.calls.items():
            del self.updates[name]
            self.record.settle(name, LATE)
            if not self.crew.stop.is_set():
                self.crew.restart(name, ref)
        self.calls.clear()

    def _combine_complete(self, turns: list[list[str]], state_ref: Any) -> None:
        """Start combining on each node whose chosen parties have all answered."""
        open_names = set(self.calls.values())
        for i, turn in enumerate(turns):
            if len(turn) < 2 or i in self.combining or not open_names.isdisjoint(turn):
                continue
            names = [name for name in turn if name in self.updates]
            if len(names) < 2:
                continue
            last = [name for name in self.record.reported if name in names][-1]
            node = self.crew.nodes[last]  # the others' node may be lost by now
            task = combine_there.options(
                name=f"combine:{self.crew.run}:{node[:8]}", **on_node(node, soft=True)
            )
            refs = [self.updates.pop(name) for name in names]
            admission = (self.rule, self.needed, names)
            result = task.remote(admission, self.broadcast.ref, state_ref, *refs)
            self.combining[i] = names, result

    def _combined(self, turn: int) -> Update | None:
        names, ref = self.combining.pop(turn)
        try:
            update, refused = ray.get(ref, timeout=FETCH_S)
        except RayError as error:
            for name in names:
                self.record.settle(name, f"failed: combining: {reason(error)}")
            return None
        for name in names:
            bad = refused.get(name)
            self.record.settle(name, f"refused: {bad}" if bad else FUSED)
        if update is not None:
            self.record.bytes_moved += n_bytes(update.weights)
        return update

    def _single(self, turn: list[str], weights: Weights, state: State) -> Update | None:
        names = [name for name in turn if name in self.updates]
        if not names:
            return None
        name = names[0]
        try:
            update = ray.get(self.updates.pop(name), timeout=FETCH_S)
        except RayError as error:
            self.record.settle(name, f"failed: update lost: {reason(error)}")
            return None
        different = mismatch(getattr(update, "weights", None), self.needed)
        if not different:
            self.record.bytes_moved += n_bytes(update.weights)
        bad = refusal(update, self.needed)
        self.record.settle(name, f"refused: {bad}" if bad else FUSED)
        if bad:
            return None
        return self.rule.admit(update, weights, state)


@ray.remote(num_cpus=0, max_retries=3)
def combine_there(
    admission: tuple[Fusion, Schema, list[str]],
    weights: Weights,
    state: State | None,
    *updates: Update,
) -> tuple[Update | None, dict[str, str]]:
    """Combine updates on the node that made them; say which were refused and why."""
    rule, needed, names = admission
    refused: dict[str, str] = {}

    def admitted() -> Iterator[Update]:
        for name, update in zip(names, updates, strict=True):
            bad = refusal(update, needed)
            if bad:
                refused[name] = bad
            else:
                yield rule.admit(update, weights, state or {})

    try:
        return rule.combine(admitted()), refused
    except TooFewUpdates:
        return None, refused
