"""Updates made on one node are folded there, so that one model travels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray import ObjectRef

from fedray import fusion
from fedray.aggregator.party_actors import Part
from fedray.errors import TooFewUpdates
from fedray.fusion import ExpectedUpdate, FusionRule, RoundContext, State
from fedray.messages import Rejection, Update
from fedray.placement import node_affinity
from fedray.weights import Schema, Weights, encoding

Ready = tuple[Part, ExpectedUpdate | None, ObjectRef]  # an update that may be folded


@dataclass(frozen=True)
class Terms:
    """What an update must be to count. Small; travels by value.

    needed : the global weights' schema.
    dtype : in which weights travel.
    max_norm : how far a party may move its weights; None: not looked at.
    """

    rule: FusionRule
    needed: Schema
    dtype: str
    max_norm: float | None = None

    def opened(
        self, update: Any, base: Weights, due: ExpectedUpdate | None
    ) -> Update | str:
        """An update as it is folded, or why it must not count.

        base : the global weights; what travels in fewer bits is a difference to them.
        due : what it must say if it comes from one party as that made it; None: it is
            of several, checked party by party where they were combined.
        """
        if due:
            bad = fusion.rejection_reason(
                update, encoding.form(self.needed, self.dtype), due
            )
            if bad:
                return bad
        elif not isinstance(update, Update):
            return f"sent a {type(update).__name__}, not an Update"
        weights = encoding.unpack(update.weights, self.needed, self.dtype, base)
        bad = None
        if weights is not update.weights or not due:
            bad = fusion.non_finite_reason(weights)
        if due and not bad:
            bad = fusion.exceeds_norm(weights, base, self.max_norm)
        return bad or replace(update, weights=weights)


@dataclass
class Chain:
    """One node's updates, folded there in config order as they come.

    refs : the weights as they were sent, and the rule's state if it needs context.
    """

    run: str
    terms: Terms
    refs: tuple[ObjectRef, ObjectRef | None]
    parts: list[Part] = field(default_factory=list)
    partial_ref: ObjectRef | None = None
    refused_refs: list[ObjectRef] = field(default_factory=list)
    is_over: bool = False

    def fold(self, ready: Sequence[Ready], node: str, is_last: bool) -> None:
        """Fold what is ready into what is there; the last step packs the result."""
        self.is_over = is_last
        if not ready and self.terms.dtype == "float32":
            return
        self.parts += [part for part, _, _ in ready]
        task = fold_there.options(
            name=f"combine:{self.run}:{node[:8]}",
            num_returns=2,
            **node_affinity(node, soft=True),
        )
        step = self.terms, [due for _, due, _ in ready], is_last
        words = *self.refs, self.partial_ref, *(ref for _, _, ref in ready)
        self.partial_ref, refused_ref = task.remote(step, *words)
        self.refused_refs.append(refused_ref)

    def result(self, timeout_s: float) -> tuple[Update | None, dict[int, Rejection]]:
        """The one update that is left, packed, and who was refused and why."""
        refused: dict[int, Rejection] = {}
        for found in ray.get(self.refused_refs, timeout=timeout_s):
            refused |= found
        return ray.get(self.partial_ref, timeout=timeout_s), refused


@ray.remote(num_cpus=0, max_retries=3)
def fold_there(
    step: tuple[Terms, list[ExpectedUpdate | None], bool],
    sent: Weights,
    state: State | None,
    partial: Update | None,
    *updates: Update | None,
) -> tuple[Update | None, dict[int, Rejection]]:
    """Fold updates on the node that made them; say which were refused and why.

    step : the terms, what each update must say (None: it is of several parties, checked
        and admitted already), and whether this is the last step.
    """
    terms, dues, is_last = step
    refused: dict[int, Rejection] = {}
    base = encoding.unpack(sent, terms.needed, terms.dtype)

    def additive_updates() -> Iterator[Update]:
        if partial is not None:
            yield partial
        for due, update in zip(dues, updates, strict=True):
            opened = update
            if due or update is not None:
                opened = terms.opened(update, base, due)
            if due is None and isinstance(opened, str):
                raise ValueError(opened)
            if isinstance(opened, str):
                refused[due.origin.party] = Rejection.parse(opened)
            elif opened is not None:
                yield (
                    terms.rule.to_additive(opened, base, state or {}) if due else opened
                )

    try:
        context = RoundContext(weights=base, state=state or {})
        update = fusion.combine(terms.rule, additive_updates(), context)
    except TooFewUpdates:
        return None, refused
    packed = (
        encoding.pack(update.weights, terms.dtype, base) if is_last else update.weights
    )
    return Update(packed, update.n_samples, update.n_parties), refused
