"""What a party group holds for its actor's life: a model, and its parties' samples."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fedray import data, models, policy
from fedray.config import FederationConfig
from fedray.errors import DataError, FedrayError, PartyError
from fedray.fusion import attacks
from fedray.models import Blueprint, Model, PartySlice, ScoredModel
from fedray.weights import Weights


@dataclass(frozen=True)
class GroupPlan:
    """What an actor needs to know to start. Small; travels by value.

    parties : places in the config of the parties that this actor can train.
    """

    name: str
    parties: range
    config: FederationConfig
    blueprint: Blueprint
    handler: data.HandlerSource
    run: str = ""  # the federation's, which updates carry


class Loaded(NamedTuple):
    """The model, and all samples; a party's are those at its places, not a copy."""

    model: Model
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    places: np.ndarray  # of every party's training samples, one party after another
    starts: np.ndarray  # (parties + 1,) within `places`
    n_train: np.ndarray  # (parties,) what weighs each
    tests: np.ndarray  # (parties + 1,) where each one's test samples start

    def form(self, config: FederationConfig) -> tuple[tuple[int, ...], int]:
        """Shape of a sample and number of classes, of an ensemble's member."""
        if not config.has_member_models or not isinstance(self.model, ScoredModel):
            return (), 0
        x, _ = self.train
        told = self.model.probabilities(x[:1].cpu().numpy())
        return tuple(x.shape[1:]), told.shape[1]

    def score(
        self,
        weights: Weights,
        part: tuple[int, int] = (0, 1),
        parties: np.ndarray | None = None,
    ) -> tuple[int, float | None, float | None]:
        """Test samples, and loss and accuracy of weights on them.

        part : (i, n) takes the i-th of n equal parts.
        parties : whose samples, by their places within the group; None: everyone's.
        """
        x, y = self.test
        places = np.arange(len(x))
        if parties is not None:
            spans = [np.arange(*self.tests[i : i + 2]) for i in parties]
            places = np.concatenate([places[:0], *spans])
        i, n = part
        start, stop = len(places) * i // n, len(places) * (i + 1) // n
        rows = slice(start, stop) if parties is None else places[start:stop]
        x, y = x[rows], y[rows]
        if not len(x) or not isinstance(self.model, ScoredModel):
            return 0, None, None
        self.model.load(weights)
        return len(x), *self.model.evaluate(x, y)


def load(plan: GroupPlan, device: str) -> Loaded:
    """Read the data and make the model."""
    samples, pieces = _poisoned(plan, *read(plan))
    adapter = models.named(plan.blueprint.model_type)
    model = adapter.make(plan.blueprint, plan.config, device)
    lengths = [len(piece) for piece in pieces]
    real = plan.config.partition is None
    return Loaded(
        model,
        model.ready(samples.x_train, samples.y_train),
        model.ready(samples.x_test, samples.y_test),
        np.concatenate(pieces),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array([samples.n_train] if real else lengths),
        _starts_of_tests(plan, len(samples.x_test)),
    )


def parts_of(
    plan: GroupPlan, loaded: Loaded, round: int, parties: np.ndarray
) -> list[PartySlice]:
    """What each of these parties trains in a round, (K,) places in the config."""
    parts = []
    for party in parties:
        i = party - plan.parties.start
        rows = loaded.places[loaded.starts[i] : loaded.starts[i + 1]]
        name = plan.config.party_name(party)
        seed = policy.seed_for(plan.config.seed, round, name)
        parts.append(PartySlice(rows, seed, name, round))
    return parts


def _starts_of_tests(plan: GroupPlan, n_tests: int) -> np.ndarray:
    """Where each party's test samples start, and the last one's end.

    `data.partition_test` gives first parties one more; of some in a row likewise.
    """
    n_parties = len(plan.parties)
    lengths = [len(own) for own in np.array_split(np.arange(n_tests), n_parties)]
    return np.concatenate([[0], np.cumsum(lengths)])


def read(plan: GroupPlan) -> tuple[data.Samples | data.Documents, list[np.ndarray]]:
    """All samples of this group's parties, and each party's places in them.

    Foreign errors keep their message here, as it may quote data.
    """
    try:
        samples, pieces = _samples(plan)
        adapter = models.named(plan.config.model_type)
        if samples.is_text != adapter.takes_documents:
            got = "documents" if samples.is_text else "arrays"
            needed = f"what model_type: {plan.config.model_type} trains on"
            raise DataError(plan.name, f"{got} from the data_handler", needed)
        return samples, pieces
    except FedrayError:
        raise
    except Exception as error:
        traceback.print_exc()  # to this actor's own log on its own node
        message = "its message is in this party's log only, since it may quote data"
        kind, place = type(error).__name__, place_of(error)
        raise PartyError(plan.name, "reading", kind, message, place) from None


def _samples(plan: GroupPlan) -> tuple[data.Samples, list[np.ndarray]]:
    """All samples of this group's parties, and each party's places in them."""
    config, parties = plan.config, plan.parties
    if config.partition is None:
        party = config.parties[parties.start]
        path = (
            data.resolve_in_root(party.data, party.data_root)
            if party.data_root
            else party.data
        )
        samples = data.load(plan.handler, path)
        return samples, [np.arange(len(samples.x_train))]
    whole = data.load(plan.handler, config.partition.source)
    n_parties, seed = config.num_parties, config.seed
    return data.partition_samples(whole, parties, n_parties, config.partition, seed)


def _poisoned(
    plan: GroupPlan, samples: data.Samples, pieces: list[np.ndarray]
) -> tuple[data.Samples, list[np.ndarray]]:
    """For an attack on labels: hostile parties get flipped copies of their samples.

    Copies, since the parties of an actor may share samples.
    """
    attack = plan.config.attack
    if attack is None or attack.kind not in attacks.ON_LABELS:
        return samples, pieces
    hostile = {plan.config.party_place(name) for name in attack.parties}
    pieces, x, y = list(pieces), [samples.x_train], [samples.y_train]
    n_rows = len(samples.x_train)
    for k, party in enumerate(plan.parties):
        if party in hostile:
            mine = pieces[k]
            x.append(samples.x_train[mine])
            y.append(attacks.flipped(samples.y_train[mine], attack.n_classes))
            pieces[k] = np.arange(n_rows, n_rows + len(mine))
            n_rows += len(mine)
    whole = replace(samples, x_train=np.concatenate(x), y_train=np.concatenate(y))
    return whole, pieces


@contextmanager
def told(party: str, stage: str) -> Iterator[None]:
    """Reduce what goes wrong to type, message and place before it travels."""
    try:
        yield
    except PartyError:
        raise
    except Exception as error:
        place = "" if isinstance(error, FedrayError) else place_of(error)
        kind, message = type(error).__name__, str(error)[:2000]
        raise PartyError(party, stage, kind, message, place) from None


def place_of(error: Exception) -> str:
    """File and line where an error was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
