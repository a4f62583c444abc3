"""Updates made on one node are folded there, so that one model travels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef

from fedray import wire
from fedray.aggregator.crew import Part
from fedray.errors import TooFewUpdates
from fedray.fusion import Fusion, State, not_finite, refusal
from fedray.messages import Update
from fedray.placement import on_node
from fedray.weights import Schema, Weights


@dataclass(frozen=True)
class Terms:
    """What an update must be to count. Small; travels by value.

    needed : the global weights' schema.
    dtype : in which weights travel.
    """

    rule: Fusion
    needed: Schema
    dtype: str

    def opened(self, update: Any, base: Weights, is_single: bool) -> Update | str:
        """An update as it is folded, or why it must not count.

        base : the global weights; what travels in fewer bits is a difference to them.
        is_single : it comes from one party as that made it; one of several parties was
            checked party by party where it was combined.
        """
        if is_single:
            bad = refusal(update, wire.form(self.needed, self.dtype))
            if bad:
                return bad
        elif not isinstance(update, Update):
            return f"sent a {type(update).__name__}, not an Update"
        weights = wire.unpack(update.weights, self.needed, self.dtype, base)
        if weights is not update.weights or not is_single:
            bad = not_finite(weights)
            if bad:
                return bad
        return Update(weights, update.n_samples, update.n_parties)


@dataclass
class Chain:
    """One node's updates, folded there in config order as they come.

    refs : the weights as they were sent, and the rule's state if it admits.
    """

    run: str
    terms: Terms
    refs: tuple[ObjectRef, ObjectRef | None]
    parts: list[Part] = field(default_factory=list)
    partial_ref: ObjectRef | None = None
    refused_refs: list[ObjectRef] = field(default_factory=list)
    is_over: bool = False

    def fold(
        self, ready: Sequence[tuple[Part, ObjectRef]], node: str, is_last: bool
    ) -> None:
        """Fold what is ready into what is there; the last step packs the result."""
        self.is_over = is_last
        if not ready and self.terms.dtype == "float32":
            return
        self.parts += [part for part, _ in ready]
        task = fold_there.options(
            name=f"combine:{self.run}:{node[:8]}",
            num_returns=2,
            **on_node(node, soft=True),
        )
        singles = [int(p.parties[0]) if p.is_single else None for p, _ in ready]
        step = self.terms, singles, is_last
        words = *self.refs, self.partial_ref, *(ref for _, ref in ready)
        self.partial_ref, refused_ref = task.remote(step, *words)
        self.refused_refs.append(refused_ref)

    def result(self, timeout_s: float) -> tuple[Update | None, dict[int, str]]:
        """The one update that is left, packed, and who was refused and why."""
        refused: dict[int, str] = {}
        for found in ray.get(self.refused_refs, timeout=timeout_s):
            refused |= found
        return ray.get(self.partial_ref, timeout=timeout_s), refused


@ray.remote(num_cpus=0, max_retries=3)
def fold_there(
    step: tuple[Terms, list[int | None], bool],
    sent: Weights,
    state: State | None,
    partial: Update | None,
    *updates: Update | None,
) -> tuple[Update | None, dict[int, str]]:
    """Fold updates on the node that made them; say which were refused and why.

    step : the terms, the place of the party behind each update (None: of several,
        checked and admitted already), and whether this is the last step.
    """
    terms, singles, is_last = step
    refused: dict[int, str] = {}
    base = wire.unpack(sent, terms.needed, terms.dtype)

    def admitted() -> Iterator[Update]:
        if partial is not None:
            yield partial
        for party, update in zip(singles, updates, strict=True):
            opened = update and terms.opened(update, base, party is not None)
            if party is None and isinstance(opened, str):
                raise ValueError(opened)
            if isinstance(opened, str):
                refused[party] = opened
            elif opened is not None:
                is_new = party is not None
                yield terms.rule.admit(opened, base, state or {}) if is_new else opened

    try:
        update = terms.rule.combine(admitted())
    except TooFewUpdates:
        return None, refused
    packed = wire.pack(update.weights, terms.dtype, base) if is_last else update.weights
    return Update(packed, update.n_samples, update.n_parties), refused
