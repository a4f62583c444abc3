"""A live model that is an object of the user's own class: any framework, any loop."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedray import nested
from fedray.config import FederationConfig, rate_function
from fedray.errors import DataError, MetricError, ModelClassError
from fedray.messages import PartyScores, Scores
from fedray.models.base import (
    Blueprint,
    PartySlice,
    Prediction,
    ProgressCallback,
    no_progress,
)
from fedray.models.custom.model_object import ModelObject, TrainingContext
from fedray.models.custom.object_weights import (
    WeightsForm,
    describe_names,
    unlike,
)
from fedray.nested import Anything, Arrays
from fedray.user_code import Source
from fedray.weights import Weights, non_finite

EVALUATE = "evaluate()"
MAX_SAMPLES = 1 << 53  # the last count that a float64 holds exactly
SEEDS = 2**31  # numpy, scikit-learn, XGBoost and JAX take seeds below
TOLERANCE = 0.05  # of what a class keeps in fewer bits
SUM_TOLERANCE = 1e-3  # of a row of probabilities from 1


class CustomPlan(NamedTuple):
    """What a party makes the object from.

    form : how get_weights() gives weights, and set_weights() takes them.
    seed : that the object is made under.
    """

    source: Source
    form: WeightsForm
    seed: int


@dataclass(frozen=True, eq=False)
class OwnSamples:
    """A part of a party's data, as the class gets it.

    data : what the handler gave; of parties cut from one data set a pair (x, y).
    n_samples : None: it has no length.
    """

    data: Any
    n_samples: int | None

    def __len__(self) -> int:
        return 1 if self.n_samples is None else self.n_samples

    def take(self, rows: np.ndarray | slice) -> "OwnSamples":
        """The samples at these places; what cannot be cut stays whole."""
        if not isinstance(self.data, Arrays):
            return self
        x, y = nested.take(self.data.x, rows), nested.take(self.data.y, rows)
        return OwnSamples(Arrays(x, y), nested.length(x))

    def describe(self) -> tuple[str, str]:
        """Nothing: parties' samples may be unlike."""
        return "", ""

    def first(self) -> Any:
        """Inputs of the first sample, where there is an array of them."""
        x = self.data[0] if isinstance(self.data, tuple) and self.data else None
        return x[:1] if isinstance(x, np.ndarray) and x.ndim else None


class CustomModel:
    """The object of an actor's life, and what it is told.

    takes_batch_statistics : no: its batches are its own.
    """

    takes_batch_statistics = False
    metrics: Any = None

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.config = blueprint.settle(config)
        self.device = device
        self.on_progress: ProgressCallback = no_progress
        self.notes: dict[str, str] = {}
        self.schema = blueprint.schema
        plan: CustomPlan = blueprint.plan
        self.object = ModelObject(plan.source, plan.seed, plan.form)
        self.name = self.object.name

    def ready(self, part: Arrays | Anything) -> OwnSamples:
        """The part of the data as it is."""
        data = part.data if isinstance(part, Anything) else part
        return OwnSamples(data, part.n_samples)

    def weights(self) -> Weights:
        """Arrays of the object as it is now."""
        return self.object.get_weights(self.schema)

    def load(self, weights: Weights) -> None:
        """Give the object copies of these weights."""
        self.object.set_weights(weights)

    def train_each(
        self, weights: Weights, parts: Sequence[PartySlice], samples: Any
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part, one after another, from `weights` or its own."""
        for part in parts:
            loss = self._train(weights, part, samples)
            arrays = self.object.get_weights(self.schema, f"after round {part.round}")
            yield np.array([loss]), {name: a[None] for name, a in arrays.items()}

    def _train(self, weights: Weights, part: PartySlice, samples: Any) -> float:
        start = weights if part.start is None else part.start
        self.object.set_weights(start)
        context = self._context(
            weights, part.seed, part.round, part.party, part.learning_rate
        )
        loss = self.object.train(samples.take(part.rows).data, context)
        return np.nan if loss is None else loss

    def _context(
        self,
        weights: Weights,
        seed: int,
        round: int,
        party: str = "",
        learning_rate: float | None = None,
    ) -> TrainingContext:
        config, n_steps = self.config, self.config.local_steps
        rate_at = rate_function(config, max(1, round), n_steps or 1, learning_rate)
        return TrainingContext(
            round=round,
            epochs=config.epochs,
            steps=n_steps,
            learning_rate=rate_at(0),
            rate_at=rate_at,
            seed=seed % SEEDS,
            device=self.device,
            global_weights=self.object.in_own_form(weights, copies=False),
            progress=self._progress,
            party=party,
        )

    def _progress(self, share: float) -> None:
        self.on_progress(min(1.0, max(0.0, float(share))))

    def batch_sizes(self, n_samples: int) -> list[int]:
        """One batch of all samples: the class makes its own."""
        return [n_samples]

    def count_steps(self, n_samples: int) -> int:
        """As the class is told; without local_steps it is a count of passes."""
        return self.config.local_steps or self.config.epochs

    @contextlib.contextmanager
    def undo(self, weights: Weights) -> Iterator[None]:
        """Load `weights` afterwards; what else the object keeps is its own."""
        try:
            yield
        finally:
            self.load(weights)

    def probe(self, source: str, samples: Any) -> None:
        """Any data fits, as far as can be known."""

    def try_training(
        self, source: str, weights: Weights, samples: Any, sizes: list[int]
    ) -> list[float]:
        """Look whether set_weights() and get_weights() fit together; nothing trains.

        How long a training takes only its author knows: `fedray check` trains.
        """
        self.load(weights)
        different = unlike(self.weights(), weights, TOLERANCE)
        if different:
            names = describe_names(different, len(weights))
            got = f"other numbers in {names} than set_weights() was given before"
            needed = "what was set, under the same names"
            raise ModelClassError(self.name, "get_weights()", got, needed)
        return []

    def try_evaluation(self, source: str, samples: Any) -> None:
        """Evaluate all test samples, as every round does."""
        self.evaluate(samples)

    def compare_trainings(
        self, weights: Weights, part: PartySlice, samples: Any
    ) -> str:
        """Train twice from the same weights; which tensors differ, if any.

        Raises
        ------
        ModelClassError
            If a training gives what cannot be used.
        """
        self._train(weights, part, samples)
        trained = self.object.get_weights(self.schema, "after training")
        if name := non_finite(trained):
            got = f"NaN or infinity in {name!r} after training"
            needed = "finite numbers: lower learning_rate, or look at train()"
            raise ModelClassError(self.name, "get_weights()", got, needed)
        first = {name: array.copy() for name, array in trained.items()}
        self._train(weights, part, samples)
        second = self.object.get_weights(self.schema, "after training")
        different = unlike(first, second)
        return describe_names(different, len(first)) if different else ""

    def evaluate(
        self,
        samples: OwnSamples,
        starts: np.ndarray | None = None,
        round: int = 0,
    ) -> Scores:
        """Numbers that evaluate() of the class gives: of all, then of each party."""
        scores = self._measure(samples, round)
        counts = np.array([scores.n_samples]) if starts is None else np.diff(starts)
        by_party = PartyScores.zeros(counts)
        rows = np.flatnonzero(counts)
        for row in rows.tolist():
            own = scores
            if len(rows) > 1 and starts is not None:
                rows_of_one = slice(*starts[row : row + 2])
                own = self._measure(samples.take(rows_of_one), round)
            n_samples, loss, accuracy = own[:3]
            by_party.n_samples[row] = n_samples
            if loss is not None:
                by_party.loss[row] = loss * n_samples
                by_party.loss_weight[row] = n_samples
            if accuracy is not None:
                by_party.right[row] = accuracy * n_samples
                by_party.answers[row] = n_samples
        states = self._measure_metrics(samples) if self.metrics else {}
        return scores._replace(by_party=by_party, states=states)

    def _measure_metrics(self, samples: OwnSamples) -> dict[str, np.ndarray]:
        """Sums for the config's metrics, of what predict() of the class gives."""
        data, sums = samples.data, self.metrics.sums()
        if not isinstance(data, tuple) or len(data) != 2 or data[1] is None:
            kind = type(data).__name__
            got = f"test data that is no pair of inputs and targets, but a {kind}"
            needed = "a data handler whose test data is (x, y)"
            raise MetricError(self.metrics.label, got, needed)
        output = self.predict(data[0])
        sums.read_arrays(output, data[1])
        return sums.states()

    def _measure(self, samples: OwnSamples, round: int) -> Scores:
        """What one call of evaluate() gives."""
        context = self._context(self.weights(), self.config.seed, round)
        numbers = self.object.evaluate(samples.data, context)
        n_samples = numbers.pop("n_samples", samples.n_samples)
        if n_samples is None:
            needed = "it, since the test data has no length"
            raise ModelClassError(self.name, EVALUATE, "no n_samples", needed)
        if not (0 <= n_samples <= MAX_SAMPLES and n_samples == int(n_samples)):
            got, needed = f"n_samples {n_samples:g}", "a whole number from 0"
            raise ModelClassError(self.name, EVALUATE, got, needed)
        loss, accuracy = numbers.pop("loss", None), numbers.pop("accuracy", None)
        if accuracy is not None and not 0 <= accuracy <= 1:
            got, needed = f"accuracy {accuracy:g}", "a share from 0 to 1"
            raise ModelClassError(self.name, EVALUATE, got, needed)
        others = {name: n for name, n in numbers.items() if math.isfinite(n)}
        return Scores(int(n_samples), loss, accuracy, metrics=others)

    @property
    def predicts(self) -> Prediction:
        """Probabilities of classes in an ensemble; else what the class likes."""
        return "classes" if self.config.has_member_models else "values"

    def framework_model(self) -> Any:
        """The object of the user's class."""
        return self.object.object

    def predict(self, x: Any, source: str = "the samples") -> np.ndarray:
        """What predict() of the class gives for samples."""
        return self.object.predict(x)

    def probabilities(self, x: Any) -> np.ndarray:
        """Probabilities (N, C) float64 of samples: what predict() gives, checked.

        Raises
        ------
        DataError
            If they are no probabilities of classes.
        """
        answer = self.predict(x)
        owner, needed = f"predict() of {self.name}", "probabilities (N, classes)"
        if answer.ndim != 2 or answer.shape[:1] != (len(x),) or answer.shape[1] < 2:
            got = f"{answer.dtype}{list(answer.shape)} for {len(x)} samples"
            raise DataError(f"of {owner}", got, needed)
        answer = answer.astype(np.float64)
        if not (answer >= -SUM_TOLERANCE).all():
            raise DataError(f"of {owner}", "values below 0, or NaN", needed)
        if not (abs(answer.sum(1) - 1) <= SUM_TOLERANCE).all():
            raise DataError(f"of {owner}", "rows that do not sum to 1", needed)
        return answer
