"""Estimators that are made of sums over samples: their fused model is exact.

What travels are sums of a party's samples divided by their number: the mean of these,
weighed by the numbers, is the sum over all samples divided by all. Sums are counted
anew in every round and depend on no earlier one, so one round gives the model that
training on all samples in one place gives, and later rounds give it again.
"""

from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone

from fedray.models.sklearn.facts import DataFacts, Passes
from fedray.weights import Weights

SMALLEST = 1e-12  # weight of a cluster without samples, beside 1 for all of a party's
SUMS = "moments_"  # attribute of a fitted least-squares estimator that keeps its sums
OVER_ALL = ("LinearRegression", "Ridge", "RidgeClassifier")  # alpha beside a plain sum
ZERO = 1e-14  # eigenvalues of a correlation below are directions without samples


def _one_hot(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N, C) float64, one 1 in a row."""
    return (y[:, None] == classes).astype(np.float64)


class _Sums:
    """Keeps the sums that travel; an estimator's attributes are made of them."""

    def __init__(self, estimator: Any, facts: DataFacts):
        self.estimator, self.facts = estimator, facts
        self.sums: Weights = {}

    def parameters(self) -> list[str]:
        """All of them."""
        return list(self.sums)

    def weights(self) -> Weights:
        """The sums, divided by the number of samples."""
        return dict(self.sums)


class GaussianSums(_Sums):
    """GaussianNB: counts, sums and sums of squares of each class, from the means."""

    def __init__(self, estimator: Any, facts: DataFacts):
        super().__init__(estimator, facts)
        x, y = facts.made_up()
        estimator.partial_fit(x, y, classes=facts.classes)
        n_classes, shape = len(y), (len(y), facts.n_features)
        self.load(
            {
                "class_count_": np.zeros(n_classes),
                "class_sum": np.zeros(shape),
                "class_square": np.zeros(shape),
            }
        )

    def load(self, weights: Weights) -> None:
        """Means, variances and priors of the classes that these sums are of."""
        self.sums = {name: array.copy() for name, array in weights.items()}
        model, (count, total, square) = self.estimator, self.sums.values()
        whole, n = float(count.sum()), np.maximum(count, np.finfo(float).tiny)[:, None]
        if whole <= 0:  # no party has trained yet: all classes are alike
            whole, variance = 1.0, np.ones_like(total)
            count = np.full(len(count), 1 / len(count))
        else:
            variance = np.maximum(square / n - (total / n) ** 2, 0)
        of_all = square.sum(0) / whole - (total.sum(0) / whole) ** 2
        model.epsilon_ = model.var_smoothing * float(of_all.max(initial=0))
        model.theta_ = self.facts.shift + total / n
        model.var_ = variance + model.epsilon_
        model.class_count_ = count / whole * max(self.facts.n_samples, 1)
        priors = model.priors
        model.class_prior_ = count / whole if priors is None else np.asarray(priors)

    def restore(self, fitted: Any) -> None:
        """Take the sums that a fitted estimator's attributes are of."""
        count = fitted.class_count_ / fitted.class_count_.sum()
        mean = fitted.theta_ - self.facts.shift
        variance = np.maximum(fitted.var_ - fitted.epsilon_, 0)
        shares = count[:, None]
        sums = (count, shares * mean, shares * (variance + mean**2))
        self.load(dict(zip(self.sums, sums, strict=True)))

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Count the sums of these samples."""
        rows, of_class = x - self.facts.shift, _one_hot(y, self.estimator.classes_).T
        sums = (of_class.sum(1), of_class @ rows, of_class @ rows**2)
        self.load({n: a / len(x) for n, a in zip(self.sums, sums, strict=True)})


class EventCounts(_Sums):
    """MultinomialNB, ComplementNB, BernoulliNB: counts of features in each class."""

    def __init__(self, estimator: Any, facts: DataFacts):
        super().__init__(estimator, facts)
        x, y = facts.made_up()
        estimator.partial_fit(x, y, classes=facts.classes)
        counts = {"class_count_": np.zeros(len(y)), "feature_count_": x.copy()}
        self.load(counts)

    def load(self, weights: Weights) -> None:
        """Probabilities of features in the classes that these counts are of."""
        self.sums = {name: array.copy() for name, array in weights.items()}
        model, n = self.estimator, max(self.facts.n_samples, 1)
        count, features = (array * n for array in self.sums.values())
        if not count.any():
            count = np.full(len(count), n / len(count))
        # partial_fit makes the same of one row for each class, of its weight
        rows = features / np.maximum(count, np.finfo(float).tiny)[:, None]
        counter = clone(model)
        if hasattr(counter, "binarize"):
            counter.set_params(binarize=None)
        classes = model.classes_
        counter.partial_fit(rows, classes, classes=classes, sample_weight=count)
        parameters = model.get_params()
        vars(model).update(vars(counter))
        model.set_params(**parameters)

    def restore(self, fitted: Any) -> None:
        """Take the counts of a fitted estimator."""
        n = fitted.class_count_.sum()
        self.load({name: getattr(fitted, name) / n for name in self.sums})

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Count the features of these samples."""
        threshold = getattr(self.estimator, "binarize", None)
        rows = x if threshold is None else (x > threshold).astype(np.float64)
        of_class = _one_hot(y, self.estimator.classes_).T
        sums = (of_class.sum(1), of_class @ rows)
        self.load({n: a / len(x) for n, a in zip(self.sums, sums, strict=True)})


class Clusters(_Sums):
    """MiniBatchKMeans: of each cluster the weight and the sum of its samples.

    Fused centres are the means of all samples that parties gave to a cluster; one that
    no party gave any stays where it was. A party's counts are new in every round, and
    no centre is ever moved onto a sample (`reassignment_ratio`).
    """

    def __init__(self, estimator: Any, facts: DataFacts):
        super().__init__(estimator, facts)
        own = estimator.init
        if isinstance(own, str) or callable(own):
            random = np.random.RandomState(estimator.random_state)
            shape = estimator.n_clusters, facts.n_features
            centers = facts.shift + facts.spread * random.standard_normal(shape)
        else:
            centers = np.array(own, np.float64)
            if centers.shape[1:] != (facts.n_features,):
                got = f"init has {centers.shape[-1]} columns"
                raise ValueError(f"{got}, the parties' samples {facts.n_features}")
        estimator.set_params(
            init=centers, n_init=1, compute_labels=False, reassignment_ratio=0.0
        )
        estimator.partial_fit(centers)
        self.set_centers(centers)

    def set_centers(self, centers: np.ndarray) -> None:
        """Start from these centres (clusters, features), all of one weight."""
        weight = np.full(len(centers), 1 / len(centers))
        sums = {"cluster_weight": weight, "cluster_sum": weight[:, None] * centers}
        self.load(sums)

    def load(self, weights: Weights) -> None:
        """Centres that these sums are of; earlier counts are forgotten."""
        self.sums = {name: array.copy() for name, array in weights.items()}
        weight, total = self.sums.values()
        centers = total / np.maximum(weight, np.finfo(float).tiny)[:, None]
        self.estimator.cluster_centers_ = np.ascontiguousarray(centers)
        self.estimator._counts = np.zeros(len(weight))

    def restore(self, fitted: Any) -> None:
        """Start from the centres of a fitted estimator."""
        self.set_centers(np.array(fitted.cluster_centers_, np.float64))

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Move the centres by batches, and count what they are the means of."""
        model, size = self.estimator, passes.batch_size
        for i, seed in enumerate(passes.seeds()):
            order = np.random.default_rng(seed).permutation(len(x))
            for start in range(0, len(x), size):
                model.partial_fit(x[order[start : start + size]])
            passes.done(i + 1)
        weight = model._counts / (passes.epochs * len(x)) + SMALLEST
        centers = model.cluster_centers_.copy()
        sums = {"cluster_weight": weight, "cluster_sum": weight[:, None] * centers}
        self.load(sums)


class _Moments(NamedTuple):
    """Sums of samples and targets, divided by their number, in travelling order."""

    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    def about(self, step: np.ndarray) -> "_Moments":
        """The sums of distances from a point that is `step` lower."""
        cross = np.outer(self.x, step)
        xx = self.xx + cross + cross.T + self.weight * np.outer(step, step)
        x = self.x + self.weight * step
        return _Moments(self.weight, x, self.y, xx, self.xy + np.outer(step, self.y))


class LeastSquares(_Sums):
    """LinearRegression, Ridge, Lasso, ElasticNet: sums of products of all columns.

    The estimator itself solves for them, given as few rows that have these sums.
    """

    def __init__(self, estimator: Any, facts: DataFacts):
        super().__init__(estimator, facts)
        self.is_classifier = facts.classes is not None
        self.is_solved = True
        d, m = facts.n_features, facts.n_targets or 1
        if facts.classes is not None:
            m = len(facts.classes) if len(facts.classes) > 2 else 1
            estimator.fit(*facts.made_up())
        flat = not self.is_classifier and facts.n_targets is None
        estimator.coef_ = np.zeros(d) if flat else np.zeros((m, d))
        estimator.intercept_ = 0.0 if flat else np.zeros(m)
        estimator.n_features_in_ = d
        shapes = _Moments((), (d,), (m,), (d, d), (d, m))  # type: ignore[arg-type]
        names = [f"mean_{name}" for name in _Moments._fields]
        names[0] = "weight"
        self.sums = {
            name: np.zeros(shape) for name, shape in zip(names, shapes, strict=True)
        }

    def load(self, weights: Weights) -> None:
        """Take sums; the estimator is solved for them when it is asked."""
        self.sums = {name: array.copy() for name, array in weights.items()}
        self.is_solved = not self.sums["weight"] > 0

    def restore(self, fitted: Any) -> None:
        """Take what a fitted estimator has kept; without it, its solution alone."""
        vars(self.estimator).update(
            {name: value for name, value in vars(fitted).items() if name.endswith("_")}
        )
        own_sums = getattr(fitted, SUMS, None)
        if isinstance(own_sums, dict) and self.sums.keys() <= own_sums.keys():
            self.sums = {n: np.array(own_sums[n], np.float64) for n in self.sums}
            moments = _Moments(*self.sums.values())
            moved = moments.about(own_sums.get("shift", 0) - self.facts.shift)
            self.sums = dict(zip(self.sums, moved, strict=True))

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Count the sums of these samples."""
        targets = self._targets(y)
        rows = x - self.facts.shift
        share = self._weights_of(y)[:, None] / len(x)
        weighed = rows * share
        sums = _Moments(
            share.sum(), weighed.sum(0), (targets * share).sum(0),
            weighed.T @ rows, weighed.T @ targets,
        )  # fmt: skip
        self.load({n: np.asarray(a) for n, a in zip(self.sums, sums, strict=True)})

    def _targets(self, y: np.ndarray) -> np.ndarray:
        """(N, m): values, or 1 for a class and -1 for all others."""
        if not self.is_classifier:
            return y.reshape(len(y), -1).astype(np.float64)
        signs = 2 * _one_hot(y, self.estimator.classes_) - 1
        return signs[:, 1:] if signs.shape[1] == 2 else signs

    def _weights_of(self, y: np.ndarray) -> np.ndarray:
        weights = getattr(self.estimator, "class_weight", None)
        if not weights:
            return np.ones(len(y))
        return np.array([weights.get(label, 1.0) for label in y.tolist()])

    def solve(self) -> None:
        """Make coefficients and intercepts of the sums, if they are new."""
        if self.is_solved:
            return
        self.is_solved, model = True, self.estimator
        sums = _Moments(*self.sums.values())
        if not model.fit_intercept:
            sums = sums.about(self.facts.shift)
        mean_x, mean_y = sums.x / sums.weight, sums.y / sums.weight
        xx, xy = sums.xx / sums.weight, sums.xy / sums.weight
        if model.fit_intercept:
            xx, xy = xx - np.outer(mean_x, mean_x), xy - np.outer(mean_x, mean_y)
        rows, targets = _rows_of(xx, xy)
        weight = float(sums.weight) * self.facts.n_samples
        n = weight if type(model).__name__ in OVER_ALL else len(rows)
        coef = self._solve_rows(rows * np.sqrt(n), targets * np.sqrt(n))
        shift = mean_x + self.facts.shift
        intercept = mean_y - coef @ shift if model.fit_intercept else 0 * mean_y
        flat = not self.is_classifier and self.facts.n_targets is None
        model.coef_ = coef[0] if flat else coef
        model.intercept_ = float(intercept[0]) if flat else intercept
        own = {"n_samples": np.array(self.facts.n_samples), "shift": self.facts.shift}
        setattr(model, SUMS, self.sums | own)

    def _solve_rows(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Coefficients (m, d) of rows (d, d) and targets (d, m) without intercept."""
        model = self.estimator
        if type(model).__name__ == "RidgeClassifier":
            from sklearn.linear_model import Ridge

            names = Ridge().get_params()
            own = {n: v for n, v in model.get_params().items() if n in names}
            solver = Ridge(**own)
        else:
            solver = clone(model)
        solver.set_params(fit_intercept=False)
        solver.fit(rows, targets[:, 0] if targets.shape[1] == 1 else targets)
        return np.asarray(solver.coef_, np.float64).reshape(targets.shape[1], -1)


def _rows_of(xx: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (d, d) and targets (d, m) that have these products of columns."""
    scale = np.sqrt(np.maximum(np.diag(xx), 0))
    scale = np.where(scale > 0, scale, 1)  # of columns that are the same everywhere
    values, vectors = np.linalg.eigh(xx / np.outer(scale, scale))
    is_there = values > ZERO * len(xx)
    roots = np.sqrt(np.where(is_there, values, 0))
    inverse = np.where(is_there, 1 / np.where(is_there, roots, 1), 0)
    rows = roots[:, None] * vectors.T * scale
    return rows, inverse[:, None] * (vectors.T @ (xy / scale[:, None]))
