"""One scikit-learn model inside a party: an estimator and the steps before it."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from fedray import user_code
from fedray.config import FederationConfig, rate_function
from fedray.errors import DataError, MetricError, TrialFailed, format_count
from fedray.messages import PartyScores, Scores
from fedray.models.base import (
    Blueprint,
    PartySlice,
    Prediction,
    ProgressCallback,
    batch_sizes,
    no_progress,
    train_one_by_one,
)
from fedray.models.sklearn import scores
from fedray.models.sklearn.estimators import (
    batch_size_of,
    has_classes,
    kind_of,
    set_learning_rate,
    takes_targets,
)
from fedray.models.sklearn.facts import Passes
from fedray.models.sklearn.plan import SklearnPlan, fitted_model, quiet
from fedray.models.sklearn.samples import (
    Rows,
    require_complete,
    to_arrays,
    to_rows,
    to_targets,
)
from fedray.models.sklearn.steps import transform
from fedray.models.sklearn.sums import LeastSquares
from fedray.nested import Nested, describe
from fedray.weights import Weights

MAX_CLASS = 1_000  # numbers of classes up to it have a column each
N_TRIED = 256  # samples of the step before round 1
EXPLOSIONS = (
    "overflow",
    "non-finite",
    "infinity",
    "NaN",
)  # words of scikit-learn's errors
SOURCE = "of this party"
T = TypeVar("T")


class SklearnModel:
    """An estimator for one actor's life, its weights overwritten in place."""

    device = "cpu"
    takes_batch_statistics = False
    metrics: Any = None

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.config = blueprint.settle(config)
        self.plan: SklearnPlan = blueprint.plan
        self.on_progress: ProgressCallback = no_progress
        self.notes: dict[str, str] = {}
        self.preparation, self.trainer = self.plan.preparation, self.plan.trainer()
        self._has_exploded = False

    @property
    def estimator(self) -> Any:
        """The fitted estimator, behind all steps."""
        if isinstance(self.trainer, LeastSquares):
            with quiet():
                self.trainer.solve()
        return self.trainer.estimator

    def ready(self, part: Any) -> Rows:
        """Rows behind the pipeline's steps, and targets."""
        part = to_arrays(part, SOURCE)
        x, example = self._prepare(part.x, SOURCE), _first_of(part.x)
        y = to_targets(part.y, self.trainer.estimator, len(x), SOURCE)
        return Rows(x, y, (describe(part.x), describe(part.y)), example)

    def probe(self, source: str, samples: Rows) -> None:
        """Raise DataError where these samples and targets do not fit this model."""
        estimator, x, y = self.trainer.estimator, samples.x, samples.y
        facts = self.plan.facts
        if facts is None:
            raise TypeError("the parties' statistics are not known yet")
        if x.shape[1] != facts.n_features:
            got = f"samples of {format_count(x.shape[1], 'column')}"
            raise DataError(source, got, f"{facts.n_features}, as the model has")
        if facts.classes is not None and not np.isin(y, facts.classes).all():
            got = "a label that neither a party nor model_file had before round 1"
            raise DataError(source, got, f"one of {len(facts.classes)} classes")
        n_targets, n_needed = y.size // max(len(y), 1), facts.n_targets or 1
        is_value = facts.classes is None and takes_targets(estimator)
        if is_value and len(y) and n_targets != n_needed:
            got = f"targets of {format_count(n_targets, 'column')}"
            raise DataError(source, got, f"{n_needed}, as the model gives")
        _check_range(estimator, x, y, source)

    def weights(self) -> Weights:
        """Arrays that travel; valid until it is trained or loaded."""
        weights = self.trainer.weights()
        if self._has_exploded:
            return {
                name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
                for name, array in weights.items()
            }
        return weights

    def load(self, weights: Weights) -> None:
        """Overwrite the estimator; `weights` are not kept."""
        self._has_exploded = False
        with quiet():
            self.trainer.load(weights)

    def train_each(
        self, weights: Weights, parts: Sequence[PartySlice], samples: Rows
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every party from `weights`, one after another."""
        yield from train_one_by_one(self, weights, parts, samples)

    def train(self, samples: Rows, part: PartySlice) -> float:
        """Train `epochs` passes; the loss on the same samples afterwards."""
        if part.start is not None:
            self.load(part.start)
        own = samples.take(part.rows)
        if self.config.scheduler is not None:
            rate_at = rate_function(self.config, part.round, 1, part.learning_rate)
            set_learning_rate(self.trainer.estimator, rate_at(0))
        self._fit(own, self.config.epochs, part.seed)
        loss = self._measure(scores.loss, own)
        self.on_progress(1.0)
        return math.nan if loss is None else loss

    def _fit(self, own: Rows, epochs: int, seed: int) -> None:
        size = batch_size_of(self.plan.estimator, self.config.batch_size)
        passes = Passes(epochs, size, seed, self.on_progress)
        with quiet(), explosions_passed():
            self.trainer.train(own.x, own.y, passes)
            return
        self._has_exploded = True

    def evaluate(
        self,
        samples: Rows,
        starts: np.ndarray | None = None,
        round: int = 0,
    ) -> Scores:
        """Mean loss over the samples; accuracy of classes."""
        cuts = np.array([0, len(samples)]) if starts is None else starts
        counts = np.diff(cuts)
        own = self._measure(scores.score, samples)
        if own is None:
            nothing = np.full(len(samples), np.nan)
            own = scores.SampleScores(math.nan, nothing, None)
        by_party = PartyScores.zeros(counts)
        by_party.loss[:] = _sum_spans(own.losses, cuts)
        by_party.loss_weight[:] = counts
        accuracy = None
        if own.is_right is not None:
            accuracy = float(own.is_right.mean())
            by_party.right[:] = _sum_spans(own.is_right, cuts)
            by_party.answers[:] = counts
        states = self._measure_metrics(samples) if self.metrics else {}
        return Scores(
            len(samples), own.loss, accuracy, by_party=by_party, states=states
        )

    def _measure_metrics(self, samples: Rows) -> dict[str, np.ndarray]:
        """Sums for the config's metrics; none where numbers have become too large."""
        sums, x = self.metrics.sums(), samples.x
        if self._has_exploded:
            return {}
        with quiet(), explosions_passed():
            output, answers = scores.answers(
                self.estimator, x, samples.y, self._n_columns
            )
            sums.add(answers)
            sums.call(output, samples.y, len(x))
            return sums.states()
        return {}

    def _measure(self, measure: Callable[..., T], own: Rows) -> T | None:
        """What a function of estimator, rows and targets gives; None: no numbers."""
        if self._has_exploded:
            return None
        with quiet(), explosions_passed():
            return measure(self.estimator, own.x, own.y)
        return None

    @property
    def predicts(self) -> Prediction:
        """Classes of classifiers; values of regressors, numbers of clusters."""
        return "classes" if has_classes(self.trainer.estimator) else "values"

    @property
    def classes(self) -> list[Any]:
        """What each column of `predict` stands for; empty where it gives values."""
        facts, labels = self.plan.facts, self.plan.labels
        if facts is None or facts.classes is None:
            return []
        if labels:
            return [labels[number] for number in facts.classes]
        return list(range(self._n_columns)) or facts.classes.tolist()

    @property
    def class_numbers(self) -> np.ndarray | None:
        """Labels that the columns of `predict` stand for; None: their own places."""
        facts = self.plan.facts
        is_by_place = facts is None or facts.classes is None or self._n_columns
        return None if is_by_place or facts is None else facts.classes

    def framework_model(self) -> Any:
        """The fitted estimator or pipeline, which is independent of this model."""
        weights = {name: np.array(array) for name, array in self.weights().items()}
        return fitted_model(self.plan, weights)

    def predict(self, x: Nested, source: str = "the samples") -> np.ndarray:
        """Of each class (N, C), values, or numbers of clusters, float64.

        An estimator without probabilities is sure of the class that it chooses.
        """
        return self._predict_rows(self._prepare(x, source))

    def _predict_rows(self, rows: np.ndarray) -> np.ndarray:
        """As `predict`, of rows behind the pipeline's steps."""
        estimator = self.estimator
        with quiet():
            if not has_classes(estimator):
                return np.asarray(estimator.predict(rows), np.float64)
            of_class = scores.probabilities(estimator, rows)
            if of_class is None:
                chosen = estimator.predict(rows)
                of_class = (chosen[:, None] == estimator.classes_).astype(np.float64)
        return self._by_number(of_class)

    def probabilities(self, x: Nested) -> np.ndarray:
        """Of each class (N, C) float64.

        Raises
        ------
        DataError
            If the estimator gives none.
        """
        rows = self._prepare(x, "the samples")
        with quiet():
            of_class = scores.probabilities(self.estimator, rows)
        if of_class is None:
            name = type(self.estimator).__name__
            loss = getattr(self.estimator, "loss", None)
            got = f"a {name}" + (f" with loss: {loss}" if loss else "")
            needed = "an estimator with predict_proba, such as loss: log_loss gives"
            raise DataError("for probabilities", got, needed)
        return self._by_number(of_class)

    @property
    def _n_columns(self) -> int:
        """Columns by class number; 0 where labels are no small numbers from 0."""
        facts = self.plan.facts
        if facts is None or facts.classes is None:
            return 0
        lowest, highest = int(facts.classes[0]), int(facts.classes[-1])
        return highest + 1 if lowest >= 0 and highest < MAX_CLASS else 0

    def _by_number(self, of_class: np.ndarray) -> np.ndarray:
        """Probabilities with a column for each class number, if these are few."""
        facts, n_columns = self.plan.facts, self._n_columns
        if facts is None or of_class.shape[1] == n_columns or not n_columns:
            return of_class
        by_number = np.zeros((len(of_class), n_columns))
        by_number[:, facts.classes] = of_class
        return by_number

    def _prepare(self, x: Nested, source: str) -> np.ndarray:
        raw = to_rows(x, source)
        facts, rows = self.plan.facts, raw
        if self.preparation != "passthrough" and len(raw):
            n_needed = _n_inputs(self.preparation)
            if n_needed not in (None, raw.shape[1]):
                got = f"samples of {format_count(raw.shape[1], 'column')}"
                raise DataError(source, got, f"{n_needed}, as the model has")
            with quiet():
                rows = transform(self.preparation, raw, source)
        elif facts is not None and not len(raw):
            rows = np.zeros((0, facts.n_features))
        require_complete(rows, raw, source)
        return rows

    def batch_sizes(self, n_samples: int) -> list[int]:
        """Sizes of the batches of one pass over this many samples."""
        if not kind_of(self.plan.estimator).has_batches:
            return [n_samples]
        size = batch_size_of(self.plan.estimator, self.config.batch_size)
        return batch_sizes(n_samples, size)

    def count_steps(self, n_samples: int) -> int:
        """Training steps of a party with this many samples in a round."""
        return self.config.epochs * len(self.batch_sizes(n_samples))

    @contextlib.contextmanager
    def undo(self, weights: Weights) -> Iterator[None]:
        """Load `weights` afterwards; an estimator draws from seeds of its own."""
        try:
            yield
        finally:
            self.load(weights)

    def try_training(
        self, source: str, weights: Weights, samples: Rows, sizes: list[int]
    ) -> list[float]:
        """Train a few samples once, and say what goes wrong."""
        losses = []
        for size in sizes:
            n_tried = min(size, N_TRIED)
            places = np.linspace(0, len(samples) - 1, n_tried).astype(np.int64)
            own = samples.take(np.unique(places))
            self.load(weights)
            what = f"a training step on {format_count(len(own), 'sample')}"
            with self._explained(source, what):
                self._fit(own, 1, self.config.seed)
                loss = self.evaluate(own).loss
                losses.append(math.nan if loss is None else loss)
        return losses

    def try_evaluation(self, source: str, samples: Rows) -> None:
        """Evaluate a few samples; or raise TrialFailed."""
        own = samples.take(slice(0, N_TRIED))
        what = f"an evaluation of {format_count(len(own), 'test sample')}"
        with self._explained(source, what):
            self.evaluate(own)

    @contextlib.contextmanager
    def _explained(self, source: str, what: str) -> Iterator[None]:
        try:
            yield
        except (MemoryError, MetricError):
            raise
        except Exception as error:  # estimators raise of every kind
            name = type(self.trainer.estimator).__name__
            reason = f"in {name}: {user_code.describe(error)}"
            remedy = "look at its parameters and at the samples it is given"
            raise TrialFailed(source, what, reason, remedy) from None


@contextlib.contextmanager
def explosions_passed() -> Iterator[None]:
    """Pass over an error of numbers that have become too large for the estimator."""
    try:
        yield
    except ValueError as error:
        if not any(word in str(error) for word in EXPLOSIONS):
            raise


def _sum_spans(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums (R,) of the values (N,) between places (R + 1,); 0 of none."""
    sums, rows = np.zeros(len(starts) - 1), np.flatnonzero(np.diff(starts))
    if len(rows):
        sums[rows] = np.add.reduceat(values.astype(np.float64), starts[rows])
    return sums


def _n_inputs(preparation: Any) -> int | None:
    """Columns of a fitted pipeline's input; None if no step has remembered them."""
    steps = (step for _, step in preparation.steps)
    return next((s.n_features_in_ for s in steps if hasattr(s, "n_features_in_")), None)


def _first_of(x: Nested) -> Nested:
    return np.asarray(x)[:1]


def _check_range(estimator: Any, x: np.ndarray, y: np.ndarray, source: str) -> None:
    """Refuse numbers that an estimator is not defined for."""
    name = type(estimator).__name__
    is_binary = name == "BernoulliNB" and estimator.binarize is None
    if is_binary and not np.isin(x, (0, 1)).all():
        needed = "0 and 1, or a threshold (binarize), for BernoulliNB"
        raise DataError(source, "numbers other than 0 and 1", needed)
    if name in ("MultinomialNB", "ComplementNB") and x.min(initial=0) < 0:
        needed = f"counts from 0, for {name}; GaussianNB takes any numbers"
        raise DataError(source, "negative numbers", needed)
    if name == "PoissonRegressor" and y.min(initial=0) < 0:
        raise DataError(source, "negative targets", f"counts from 0, for {name}")
    if name == "GammaRegressor" and y.min(initial=1) <= 0:
        raise DataError(source, "targets of 0 or below", f"targets above 0, for {name}")
