"""What a party keeps to itself: layers that stay with it, or a model of its own.

`personal` names layers of which each party has its own: they are trained with the
shared ones, and never travel (FedPer). With `ditto_lambda` a party trains a whole model
of its own beside the global one. Both are saved on the party's node before its report.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedray import policy
from fedray.config import FederationConfig
from fedray.messages import Scores
from fedray.models import Blueprint, PartySlice, PersonalModel
from fedray.party.loading import GroupPlan, LocalData
from fedray.party.state import (
    FINETUNED,
    STATE,
    PartyState,
    PartyStateStore,
    open_store,
)
from fedray.weights import Weights, size_of

CHUNK_BYTES = 256 << 20  # of parties' own arrays that are in memory at once


def split_by_bytes(n_parties: int, n_bytes: int) -> Iterator[slice]:
    """As many parties at a time as `CHUNK_BYTES` hold, of so many bytes each."""
    size = max(1, CHUNK_BYTES // max(1, n_bytes))
    for start in range(0, n_parties, size):
        yield slice(start, min(start + size, n_parties))


def own_model_folder(config: FederationConfig) -> str:
    """Folder of the parties' own models, within the run's in party_dir."""
    return FINETUNED if config.finetune_epochs else STATE


@dataclass
class OwnArrays:
    """Arrays of the parties of one training, as they are trained; see `PersonalState`.

    states : what each party starts from.
    trained : by name, one of each party.
    is_finite : of each party, whether all that it trained is.
    """

    states: list[PartyState]
    trained: dict[str, list[np.ndarray]] = field(default_factory=dict)
    is_finite: list[bool] = field(default_factory=list)

    def add(self, stack: Weights, are_shared_finite: np.ndarray) -> None:
        """Copy the next parties' arrays (S, *shape)."""
        is_finite = are_shared_finite.copy()
        for name, array in stack.items():
            copies = self.trained.setdefault(name, [])
            for i, own in enumerate(array):
                copies.append(own.copy())
                is_finite[i] &= bool(np.isfinite(own).all())
        self.is_finite += is_finite.tolist()


class PersonalState:
    """Own layers or models of an actor's parties, from round to round.

    initial : what own layers start from, where a party has none yet.
    notes : by party, what was lost; the caller reads and clears it.
    """

    def __init__(self, plan: GroupPlan):
        self.plan, self.config = plan, plan.config
        self.names = plan.blueprint.personal
        self.is_ditto = plan.config.ditto_lambda is not None
        self.is_kept = plan.trains and (bool(self.names) or self.is_ditto)
        self.initial: Weights = {}
        self.notes: dict[str, str] = {}
        self._stores: dict[str, PartyStateStore] = {}

    @property
    def store(self) -> PartyStateStore:
        """Where it is kept from round to round, on this node."""
        return self._open(STATE)

    @property
    def finetuned(self) -> PartyStateStore:
        """Where models that were trained on after the last round are kept."""
        return self._open(FINETUNED)

    def _open(self, name: str) -> PartyStateStore:
        if name not in self._stores:
            self._stores[name] = open_store(self.plan, name)
        return self._stores[name]

    @property
    def n_trainings(self) -> int:
        """How often a party is trained in a round."""
        return 2 if self.is_ditto else 1

    def check(self) -> None:
        """Raise DataError where what is kept could not be written."""
        if self.is_kept:
            self.store.check()
        if self.plan.trains and self.config.finetune_epochs:
            self.finetuned.check()

    def complete(self, weights: Weights) -> Weights:
        """Global weights, with what own layers start from."""
        return {**self.initial, **weights} if self.initial else weights

    def chunks(self, n_parties: int) -> Iterator[slice]:
        """Parties whose arrays are in memory at once: all, unless these are large."""
        if not self.config.has_own_models:
            return iter([slice(0, n_parties)] if n_parties else [])
        n_bytes = bytes_of(self.plan.blueprint, self.config)
        return split_by_bytes(n_parties, n_bytes)

    def recall(
        self,
        slices: Sequence[PartySlice],
        weights: Weights,
        stage: str = "",
    ) -> list[PartyState]:
        """What each party has from before its training; notes of what is missing.

        weights : of a whole model.
        stage : what notes call the training, if not by its round.
        """
        if not self.is_kept:
            return []
        parties, round = [part.party for part in slices], slices[0].round
        states = self.store.recall(parties, round)
        for i, state in enumerate(states):
            forms = {name: weights[name] for name in self.names or weights}
            if state.round and not _are_alike(state.arrays, forms):
                problem = f"what is there of round {state.round} is of another model"
                states[i] = state = PartyState({}, 0, problem)
            if round > 1:
                self._note(parties[i], round, state, stage or f"round {round}")
        return states

    @property
    def _words(self) -> tuple[str, str]:
        return ("model", "one") if self.is_ditto else ("layers", "ones")

    def _note(self, party: str, round: int, state: PartyState, stage: str) -> None:
        what, others = self._words
        if not state.round:
            why = state.problem or "none are in party_dir on its node"
            start = f"starts its own {what} from the global {others} in {stage}"
            self.notes[party] = f"{start}: {why}"
        elif state.problem or (
            state.round < round - 1 and self.config.party_fraction == 1
        ):
            why = f": {state.problem}" if state.problem else ""
            old = f"its own {what} of round {state.round}{why}"
            text = f"trained {stage} from {old}"
            self.notes[party] = text

    def starts(
        self, slices: Sequence[PartySlice], states: Sequence[PartyState]
    ) -> list[PartySlice]:
        """The same trainings, from each party's own layers."""
        if not self.names:
            return [*slices]
        return [
            part._replace(start={**(part.start or {}), **state.arrays})
            for part, state in zip(slices, states, strict=True)
        ]

    def own_trainings(
        self, slices: Sequence[PartySlice], states: Sequence[PartyState]
    ) -> list[PartySlice]:
        """Trainings of each party's own model, pulled toward the global one.

        Source: Ditto, Li et al. 2021, arXiv:2012.04221, Algorithm 1.
        """
        pull = self.config.ditto_lambda
        return [
            part._replace(
                start=state.arrays or None, pull=pull, rates=None, correction=None
            )
            for part, state in zip(slices, states, strict=True)
        ]

    def split(self, stack: Weights) -> tuple[Weights, Weights]:
        """Trained arrays (S, *shape) that are shared, and those that stay."""
        if self.is_ditto:  # whose training overwrites the stack
            return {name: array.copy() for name, array in stack.items()}, {}
        if not self.names:
            return stack, {}
        own = {name: stack[name] for name in self.names if name in stack}
        return {name: a for name, a in stack.items() if name not in own}, own

    def save(
        self,
        slices: Sequence[PartySlice],
        arrays: OwnArrays,
        since: int | None,
        store: PartyStateStore | None = None,
    ) -> None:
        """Write what was trained; on disk when this returns.

        What is not finite is not written: the party goes on from what it had.
        """
        fine = np.flatnonzero(arrays.is_finite).tolist()
        for i in np.flatnonzero(~np.array(arrays.is_finite, bool)).tolist():
            party, round = slices[i].party, slices[i].round
            what = self._words[0]
            self.notes[party] = f"keeps its own {what}: round {round} is not finite"
        if fine:
            parties = [slices[i].party for i in fine]
            own = {n: [each[i] for i in fine] for n, each in arrays.trained.items()}
            (store or self.store).save(slices[0].round, parties, own, since)

    def finetune(
        self,
        local_data: LocalData,
        weights: Weights,
        slices: Sequence[PartySlice],
        on_training: Callable[[int], None],
    ) -> None:
        """Train each party's own model on from the global one, and save it.

        By the config's learning rate, without its scheduler or pull.

        Parameters
        ----------
        weights : the global ones, of a whole model.
        slices : of the round after the last one.
        on_training : is told of each training that is done, how many parties it was of.
        """
        self.notes.clear()
        model, settings = local_data.model, self.config.finetune_epochs
        if not isinstance(model, PersonalModel):
            raise TypeError(f"{type(model).__name__} is not trained on")
        changes = {"epochs": settings, "local_steps": None, "scheduler": None}
        for which in self.chunks(len(slices)):
            parts, own = slices[which], OwnArrays([])
            states = self.recall(parts, weights, stage="finetune_epochs")
            parts = [part._replace(pull=0.0) for part in self.starts(parts, states)]
            with model.changed(**changes, personal_epochs=0):
                for losses, stack in model.train_each(weights, parts, local_data.train):
                    on_training(len(losses))
                    own.add(stack, np.ones(len(losses), bool))
            self._put_back(own, parts, weights)
            self.save(parts, own, None, self.finetuned)

    def _put_back(
        self, own: OwnArrays, parts: Sequence[PartySlice], weights: Weights
    ) -> None:
        """Replace what is not finite by what its training started from."""
        for i in np.flatnonzero(~np.array(own.is_finite, bool)).tolist():
            start = {**weights, **(parts[i].start or {})}
            for name, each in own.trained.items():
                each[i] = np.array(start[name])
            own.is_finite[i] = True
            why = "what finetune_epochs made of it is not finite"
            self.notes[parts[i].party] = f"keeps its own model of the last round: {why}"

    def score(
        self,
        data: LocalData,
        weights: Weights,
        part: tuple[int, int] = (0, 1),
        parties: np.ndarray | None = None,
        round: int = 0,
    ) -> Scores:
        """Score each party's own model on its own test samples, as `LocalData.score`.

        weights : the global ones, of a whole model.
        part : (i, n) takes the i-th of n equal parts of the parties.
        """
        tested = np.flatnonzero(np.diff(data.test_starts))
        if parties is not None:
            tested = np.intersect1d(parties, tested)
        (i, n), n_tested = part, len(tested)
        places = tested[n_tested * i // n : n_tested * (i + 1) // n]
        own_models = self.weights_of(self._names(places), weights, round)
        return _score_each(data, places, own_models, round)

    def score_last(
        self, data: LocalData, weights: Weights, places: np.ndarray, round: int
    ) -> Scores:
        """As `score`, once no round follows: models may have been trained on.

        places : of parties with test samples, within the group.
        """
        is_finetuned = bool(self.config.finetune_epochs)
        names = self._names(places)
        own_models = self.weights_of(names, weights, round, is_finetuned)
        return _score_each(data, places, own_models, round)

    def _names(self, places: np.ndarray) -> list[str]:
        first = self.plan.parties.start
        return [self.config.party_name(first + place) for place in places.tolist()]

    def weights_of(
        self,
        parties: Sequence[str],
        weights: Weights,
        round: int,
        is_finetuned: bool = False,
    ) -> Iterator[Weights]:
        """Each party's own model after a round: global weights with its own over them.

        weights : the global ones, of a whole model.
        """
        store, names = self.store, self.names or weights
        if is_finetuned:
            store, names, round = self.finetuned, weights, round + 1
        forms = {name: weights[name] for name in names}
        for which in self.chunks(len(parties)):
            for state in store.recall(parties[which], round + 1):
                is_there = state.round and _are_alike(state.arrays, forms)
                yield {**weights, **state.arrays} if is_there else weights


def bytes_kept(blueprint: Blueprint, config: FederationConfig) -> int:
    """Bytes that one party keeps on its node, of all rounds; 0 if it keeps nothing."""
    each = bytes_of(blueprint, config.with_changes(finetune_epochs=0))
    finetuned = bytes_of(blueprint, config) if config.finetune_epochs else 0
    return (config.n_repeatable_rounds + 1) * each + finetuned


def bytes_of(blueprint: Blueprint, config: FederationConfig) -> int:
    """Bytes that one party keeps after one round; 0 if it keeps nothing."""
    names: Sequence[str] = blueprint.personal
    if config.ditto_lambda is not None or config.finetune_epochs:
        names = [name for name in blueprint.schema if name not in blueprint.tied]
    return size_of({name: blueprint.schema[name] for name in names})


def _are_alike(arrays: Weights, needed: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays have these names, shapes and dtypes."""
    return arrays.keys() == needed.keys() and all(
        arrays[n].shape == needed[n].shape and arrays[n].dtype == needed[n].dtype
        for n in needed
    )


def _score_each(
    data: LocalData, places: np.ndarray, own_models: Iterator[Weights], round: int
) -> Scores:
    """Score each of these parties with weights of its own."""
    return policy.join_scores(
        [
            data.score(own, parties=np.array([place]), round=round)
            for place, own in zip(places.tolist(), own_models, strict=True)
        ]
    )
