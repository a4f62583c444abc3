"""Combines updates on the node that made them, so that one model travels per node."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import ray
from ray import ObjectRef

from fedray.aggregator.party_actors import WorkItem
from fedray.aggregator.validation import UpdateValidator
from fedray.errors import TooFewUpdates
from fedray.fusion import (
    Accumulator,
    ExpectedUpdate,
    FusionRule,
    RoundContext,
    State,
)
from fedray.messages import Rejection, Update
from fedray.placement import node_affinity, run_label
from fedray.weights import Weights, encoding


@dataclass(frozen=True, eq=False)
class ReadyUpdate:
    """A reported update that may be combined, and the metadata that it must have.

    expected : None: it stands for several parties, each checked by its actor.
    """

    item: WorkItem
    expected: ExpectedUpdate | None
    ref: ObjectRef


@dataclass(eq=False)
class NodeCombiner:
    """One node's updates, combined there in config order as they arrive.

    A chain of tasks: each combines what the one before gave with the next updates.

    rule, validator : by which updates are combined and checked.
    broadcast_ref, state_ref : weights as they were sent; the rule's state if needed.
    sender : as which the node encodes the one that is left.
    items : whose updates are combined so far.
    is_over : whether the last step has been submitted.
    """

    run: str
    rule: FusionRule
    validator: UpdateValidator
    broadcast_ref: ObjectRef
    state_ref: ObjectRef | None
    sender: encoding.Sender
    items: list[WorkItem] = field(default_factory=list)
    is_over: bool = False

    def __post_init__(self) -> None:
        self._partial_ref: ObjectRef | None = None
        self._refused_refs: list[ObjectRef] = []

    def add(self, ready: Sequence[ReadyUpdate], node: str, is_last: bool) -> None:
        """Submit a task that combines what is ready; the last one encodes the result.

        node : where it runs, unless that node is lost.
        """
        self.is_over = is_last
        if not ready and self.validator.wire_dtype == "float32":
            return  # nothing to encode
        self.items += [update.item for update in ready]
        task = combine_on_node.options(
            name=f"combine:{run_label(self.run)}:{node[:8]}",
            num_returns=2,
            **node_affinity(node, soft=True),
        )
        expected = [update.expected for update in ready]
        step = CombineStep(self.rule, self.validator, expected, is_last, self.sender)
        refs: list[ObjectRef] = task.remote(  # type: ignore[assignment]  # num_returns
            step,
            self.broadcast_ref,
            self.state_ref,
            self._partial_ref,
            *(update.ref for update in ready),
        )
        self._partial_ref = refs[0]
        self._refused_refs.append(refs[1])

    def result(self, timeout_s: float) -> tuple[Update | None, dict[int, Rejection]]:
        """The one update that is left, encoded, and whose were refused and why.

        Raises
        ------
        RayError
            If a task failed, or did not end in time.
        """
        refused: dict[int, Rejection] = {}
        for of_step in ray.get(self._refused_refs, timeout=timeout_s):
            refused |= of_step
        if self._partial_ref is None:
            return None, refused
        return ray.get(self._partial_ref, timeout=timeout_s), refused


@dataclass(frozen=True, eq=False)
class CombineStep:
    """What a task of the chain does; small, travels by value."""

    rule: FusionRule
    validator: UpdateValidator
    expected: list[ExpectedUpdate | None]  # for each update; None: of several parties
    is_last: bool
    sender: encoding.Sender | None = None  # as whom the last step encodes


@ray.remote(num_cpus=0, max_retries=3)
def combine_on_node(
    step: CombineStep,
    payload: Weights,
    state: State | None,
    partial: Update | None,
    *updates: Update | None,
) -> tuple[Update | None, dict[int, Rejection]]:
    """Combine updates on the node that made them; also which were refused, and why.

    payload : the global weights as they travelled.
    partial : what the task before gave; None for the first.
    updates : None where an actor refused all its parties.
    """
    validator = step.validator
    base = encoding.unpack(payload, validator.schema, validator.wire_dtype)
    context = RoundContext(weights=base, state=state or {})
    accumulator = step.rule.accumulator(context)
    if partial is not None:
        accumulator.add(partial)
    refused = _add_valid(step, context, accumulator, updates)
    try:
        combined = accumulator.result()
    except TooFewUpdates:
        return None, refused
    weights = combined.weights
    if step.is_last:
        weights = encoding.pack(weights, validator.wire_dtype, base, step.sender)
    return Update(weights, combined.n_samples, combined.n_parties), refused


def _add_valid(
    step: CombineStep,
    context: RoundContext,
    accumulator: Accumulator,
    updates: Sequence[Update | None],
) -> dict[int, Rejection]:
    """Add updates in their order; whose were left out, by place, and why."""
    refused: dict[int, Rejection] = {}
    base, state = context.weights, context.state
    for expected, raw in zip(step.expected, updates, strict=True):
        if raw is None and not expected:
            continue
        update = step.validator.validate(raw, base, expected)
        if isinstance(update, Rejection):
            if not expected:
                raise ValueError(update.detail)  # of all parties of an actor
            refused[expected.origin.party] = update
        elif expected:
            accumulator.add(step.rule.to_additive(update, base, state))
        else:
            accumulator.add(update)  # of several parties, additive already
    return refused
