"""Tensors that travel once: put into the object store, and decided on at joining.

Layers that stay at their party travel once too, as all parties start from them.
Frozen tensors that no party's first step of training moves go to each actor once. Those
that a step does move, such as a batch norm's means, travel every round with what
trains. What is decided stands in the run's folder: a resumed run goes on by it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ray
from ray import ObjectRef

from fedray.aggregator.startup import AggregatorPlan
from fedray.checkpoint import (
    FrozenRecord,
    RunFolder,
    forget_frozen,
    read_frozen,
    read_record,
    write_frozen,
    write_remedy,
)
from fedray.errors import RunFolderError
from fedray.weights import Schema, Weights

MOVES = (
    "its training moves frozen tensors that nobody's did when the run began, so they "
    "do not travel"
)


class Start(NamedTuple):
    """What a model starts from.

    weights : those that travel every round whatever is decided.
    frozen_ref : the others, as parties get them once; None: there are none.
    """

    weights: Weights
    frozen_ref: ObjectRef | None = None


Starts = Mapping[str | None, Start]  # by member; None: of all without an entry


def put_starts(
    plan: AggregatorPlan, initial: Mapping[str | None, Weights]
) -> tuple[AggregatorPlan, ObjectRef]:
    """Put the weights that a run starts from into the object store.

    Frozen ones are taken from the run's folder where rounds are done. Of a run that
    began when everything travelled everything goes on travelling.

    Raises
    ------
    RunFolderError
        If the folder has lost what it kept.
    """
    folder, starts = Path(plan.folder), dict[str | None, Start]()
    has_begun = RunFolder(folder).is_started()
    if not has_begun:
        forget_frozen(folder)
    for key, weights in initial.items():
        blueprint = plan.blueprint_of(key)
        record = read_record(folder, key) if has_begun else None
        if has_begun and record is None:
            blueprint = blueprint.sent_whole()
            plan = plan.with_blueprint(key, blueprint)
        if record is not None and record.fixed:
            frozen = read_frozen(folder, key)
        else:
            names = (*blueprint.frozen, *blueprint.personal) if record is None else ()
            frozen = {name: weights[name] for name in names}
        every = {name: weights[name] for name in blueprint.round_schema(frozen)}
        starts[key] = Start(every, ray.put(frozen) if frozen else None)
    return plan, ray.put(starts)


class FrozenTensors:
    """Which tensors of each model travel once, where they lie, and who needs them."""

    def __init__(self, plan: AggregatorPlan, starts: Starts):
        self._plan, self._starts = plan, starts
        self._folder = Path(plan.folder)
        self._fixed: dict[str | None, tuple[str, ...]] = {}  # of those decided
        for key in starts:
            record = read_record(self._folder, key)
            if record is not None:
                self._fixed[key] = record.fixed
            elif plan.blueprint_of(key).travels_whole:
                self._fixed[key] = ()

    @property
    def are_decided(self) -> bool:
        """Whether it is known of every model what travels."""
        return len(self._fixed) == len(self._starts)

    def schema(self, group: str | None) -> Schema:
        """What travels every round, of a model that is decided on."""
        key = self._key(group)
        return self._plan.blueprint_of(key).round_schema(self._fixed[key])

    def initial(self, group: str | None) -> Weights:
        """Weights that a model's first round starts from, as far as they travel."""
        start = self._starts[self._key(group)]
        schema = self.schema(group)
        if start.weights.keys() == schema.keys():
            return start.weights
        weights = {**self._frozen(self._key(group)), **start.weights}
        return {name: weights[name] for name in schema}

    def ref_of(self, actor: str) -> ObjectRef | None:
        """What an actor gets beside what travels every round; None: nothing."""
        key = self._key(actor)
        is_needed = key not in self._fixed or self._fixed[key]
        return self._starts[key].frozen_ref if is_needed else None

    def decide(self, moved: Mapping[str, tuple[str, ...]]) -> None:
        """Decide from what moved at each actor, and write it to the run's folder.

        Raises
        ------
        RunFolderError
            If the disk refuses.
        """
        for key in self._starts.keys() - self._fixed.keys():
            blueprint = self._plan.blueprint_of(key)
            actors = moved if key is None else [key]
            names = {name for actor in actors for name in moved.get(actor, ())}
            fixed = tuple(name for name in blueprint.frozen if name not in names)
            fixed += blueprint.personal
            record = FrozenRecord(tuple(blueprint.schema), blueprint.tied, fixed)
            try:
                write_frozen(self._folder, key, record, self._frozen(key))
            except OSError as error:
                reason = f"cannot write {error.filename}: {error.strerror}"
                remedy = write_remedy(error)
                raise RunFolderError(str(self._folder), reason, remedy) from None
            self._fixed[key] = fixed

    def strays(self, moved: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Actors at which something moved that does not travel, and what."""
        reasons = {}
        for actor, names in moved.items():
            fixed = set(self._fixed.get(self._key(actor), ()))
            if stray := [name for name in names if name in fixed]:
                reasons[actor] = f"{MOVES}: {', '.join(stray[:5])}"
        return reasons

    def _frozen(self, key: str | None) -> Weights:
        frozen_ref = self._starts[key].frozen_ref
        return {} if frozen_ref is None else ray.get(frozen_ref)

    def _key(self, group: str | None) -> str | None:
        return group if group in self._starts else None
