"""What a party group holds for its actor's life: a model, and its parties' samples."""

import traceback
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedray import data, models
from fedray.config import FederationConfig
from fedray.errors import FedrayError, PartyError
from fedray.models import Blueprint, Model
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


class Loaded(NamedTuple):
    """The model, and all samples; a party's are those at its places, not a copy."""

    model: Model
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    places: np.ndarray  # of every party's training samples, one party after another
    starts: np.ndarray  # (parties + 1,) within `places`
    n_train: np.ndarray  # (parties,) what weighs each
    tests: np.ndarray  # (parties + 1,) where each one's test samples start

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
        if not len(x):
            return 0, None, None
        self.model.load(weights)
        return len(x), *self.model.evaluate(x, y)


def load(plan: GroupPlan, device: str) -> Loaded:
    """Read the data and make the model."""
    samples, pieces, n_tests = _read(plan)
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
        np.concatenate([[0], np.cumsum(n_tests)]),
    )


def _read(plan: GroupPlan) -> tuple[data.Samples, list[np.ndarray], list[int]]:
    """Samples; foreign errors keep their message here, as it may quote data."""
    try:
        return _samples(plan)
    except FedrayError:
        raise
    except Exception as error:
        traceback.print_exc()  # to this actor's own log on its own node
        message = "its message is in this party's log only, since it may quote data"
        kind, place = type(error).__name__, place_of(error)
        raise PartyError(plan.name, "reading", kind, message, place) from None


def _samples(plan: GroupPlan) -> tuple[data.Samples, list[np.ndarray], list[int]]:
    """All samples of this actor's parties, their places in them, counts of tests."""
    config, parties = plan.config, plan.parties
    if config.partition is None:
        party = config.parties[parties.start]
        path = (
            data.inside(party.data, party.data_root) if party.data_root else party.data
        )
        samples = data.load(plan.handler, path)
        return samples, [np.arange(len(samples.x_train))], [samples.n_test]
    whole = data.load(plan.handler, config.partition.source)
    n_parties, seed = config.num_parties, config.seed
    tests = data.share_tests(whole.n_test, n_parties, seed)
    n_tests = [len(tests[party]) for party in parties]
    samples, pieces = data.share(whole, parties, n_parties, config.partition, seed)
    return samples, pieces, n_tests


def place_of(error: Exception) -> str:
    """File and line where an error was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
