"""The one table of estimators that can be federated: how each is fused, its keys.

Also the advice for those that cannot, and how a config's keys become an estimator's
own parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
from sklearn.base import is_classifier, is_clusterer

from fedray.models.sklearn.facts import DataFacts, Passes
from fedray.models.sklearn.gradient import Layers, Solver, StochasticGradient
from fedray.models.sklearn.sums import (
    Clusters,
    EventCounts,
    GaussianSums,
    LeastSquares,
)
from fedray.weights import Weights

MAX_COLUMNS = 4_000  # of least squares: their products take 128 MB

BATCH_SIZE = 64  # what the key batch_size is where nobody sets it


class Trainer(Protocol):
    """An estimator with attributes, how it trains and what of it travels."""

    estimator: Any

    def restore(self, fitted: Any) -> None:
        """Take over what a fitted estimator has learned."""

    def parameters(self) -> list[str]:
        """Names of arrays that training moves."""

    def weights(self) -> Weights:
        """Arrays that travel; valid until it is trained or loaded."""

    def load(self, weights: Weights) -> None:
        """Overwrite the estimator; `weights` are not kept."""

    def train(self, x: np.ndarray, y: np.ndarray, passes: Passes) -> None:
        """Train from the loaded weights, on rows (N, features) and targets."""


class Kind(NamedTuple):
    """How an estimator is federated.

    module : of scikit-learn, where it is.
    trainer : makes it trainable.
    fusion : how updates become one model, for the docs.
    learning_rate : its parameter that the key sets; empty for none.
    has_batches : whether `batch_size` applies.
    has_epochs : whether `epochs` applies: otherwise a party's sums are counted once.
    has_many_targets : whether a regressor can give several values for a sample.
    """

    module: str
    trainer: Callable[[Any, DataFacts], Trainer]
    fusion: str
    learning_rate: str = ""
    has_batches: bool = False
    has_epochs: bool = True
    has_many_targets: bool = False


MEAN = "mean of the weights"
EXACT = "exact sums"
_LINEAR, _BAYES = "sklearn.linear_model", "sklearn.naive_bayes"
_SGD = Kind(_LINEAR, StochasticGradient, MEAN, "eta0")
_PASSIVE = _SGD._replace(learning_rate="")
_SOLVER = Kind(_LINEAR, Solver, MEAN)
_SQUARES = Kind(_LINEAR, LeastSquares, EXACT, has_epochs=False, has_many_targets=True)
_MLP = Kind(
    "sklearn.neural_network", Layers, MEAN, "learning_rate_init", True,
    has_many_targets=True,
)  # fmt: skip
_COUNTS = Kind(_BAYES, EventCounts, EXACT, has_epochs=False)

ESTIMATORS: dict[str, Kind] = {
    "SGDClassifier": _SGD,
    "SGDRegressor": _SGD,
    "Perceptron": _SGD,
    "PassiveAggressiveClassifier": _PASSIVE,
    "PassiveAggressiveRegressor": _PASSIVE,
    "LogisticRegression": _SOLVER,
    "PoissonRegressor": _SOLVER,
    "GammaRegressor": _SOLVER,
    "MLPClassifier": _MLP,
    "MLPRegressor": _MLP,
    "LinearRegression": _SQUARES,
    "Ridge": _SQUARES,
    "RidgeClassifier": _SQUARES,
    "Lasso": _SQUARES,
    "ElasticNet": _SQUARES,
    "GaussianNB": Kind(_BAYES, GaussianSums, EXACT, has_epochs=False),
    "MultinomialNB": _COUNTS,
    "ComplementNB": _COUNTS,
    "BernoulliNB": _COUNTS,
    "MiniBatchKMeans": Kind(
        "sklearn.cluster",
        Clusters,
        "centres weighed by samples",
        has_batches=True,
    ),
}
FUSED_AS_SUMS = (GaussianSums, EventCounts, Clusters, LeastSquares)

_TREES = (
    "trees cannot be averaged: let each party train its own and let them answer "
    "together (fusion_algorithm: ensemble with model_type: file.py:ClassName, a class "
    "of your own around it), or take MLPClassifier or SGDClassifier"
)
_SAMPLES = "it is made of single samples, which do not leave a party: take "
_SVM = (
    "it is made of single samples: SGDClassifier is the linear one (loss: hinge), "
    "with a step like RBFSampler before it one of other kernels"
)
_SEARCH = "choose its parameters first, on one party's data: then give the estimator"
_OWN_LOOP = "write a class of your own around it (model_type: file.py:ClassName)"
NOT_USABLE = {
    **dict.fromkeys(
        (
            *("RandomForestClassifier", "RandomForestRegressor", "IsolationForest"),
            *("ExtraTreesClassifier", "ExtraTreesRegressor"),
            *("GradientBoostingClassifier", "GradientBoostingRegressor"),
            *("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"),
            *("DecisionTreeClassifier", "DecisionTreeRegressor"),
            *("AdaBoostClassifier", "AdaBoostRegressor"),
            *("BaggingClassifier", "BaggingRegressor"),
        ),
        _TREES,
    ),
    **dict.fromkeys(("SVC", "NuSVC", "OneClassSVM"), _SVM),
    "SVR": "it is made of single samples: SGDRegressor is the linear one "
    "(loss: epsilon_insensitive)",
    "LinearSVC": "SGDClassifier is the same model (loss: hinge)",
    "LinearSVR": "SGDRegressor is the same model (loss: epsilon_insensitive)",
    "HuberRegressor": "SGDRegressor is the same model (loss: huber)",
    "TweedieRegressor": "its file could not be read safely: take PoissonRegressor, "
    "GammaRegressor or Ridge",
    "KNeighborsClassifier": f"{_SAMPLES}GaussianNB or MLPClassifier",
    "KNeighborsRegressor": f"{_SAMPLES}MLPRegressor",
    "KMeans": "MiniBatchKMeans gives the same clusters",
    "DBSCAN": f"{_SAMPLES}MiniBatchKMeans",
    "CategoricalNB": "BernoulliNB behind OneHotEncoder is nearly the same",
    **dict.fromkeys(
        (
            *("LogisticRegressionCV", "RidgeCV", "RidgeClassifierCV", "LassoCV"),
            *("ElasticNetCV", "GridSearchCV", "RandomizedSearchCV"),
        ),
        _SEARCH,
    ),
}


def advice_for(name: str) -> str:
    """What to take instead of an estimator that cannot be federated."""
    able = ", ".join(ESTIMATORS)
    other = f"{_OWN_LOOP}, or take one of {able}"
    return NOT_USABLE.get(name, other)


def kind_of(estimator: Any) -> Kind:
    """How an estimator of the table is federated."""
    return ESTIMATORS[type(estimator).__name__]


def has_classes(estimator: Any) -> bool:
    """Whether its targets are labels."""
    return bool(is_classifier(estimator))


def takes_targets(estimator: Any) -> bool:
    """Whether it learns from targets at all."""
    return not is_clusterer(estimator)


def estimator_problems(estimator: Any) -> list[str]:
    """What of an estimator's own parameters does not go with federated training."""
    name, own = type(estimator).__name__, estimator.get_params()
    problems = []
    if own.get("early_stopping"):
        problems.append("early_stopping is decided by a party alone: leave it out")
    if own.get("solver") == "lbfgs" and name.startswith("MLP"):
        problems.append("solver: lbfgs has no passes over batches: take adam or sgd")
    if own.get("solver") == "liblinear":
        problems.append("solver: liblinear starts anew every round: take lbfgs")
    if own.get("positive") is True and name == "RidgeClassifier":
        problems.append("positive is for Ridge")
    return [f"{name}: {problem}" for problem in problems]


def key_problems(estimator: Any, keys: Iterable[tuple[str, Any]]) -> list[str]:
    """Keys of a config, with their values, that this estimator does not take."""
    name, kind = type(estimator).__name__, kind_of(estimator)
    takes = {
        "learning_rate": bool(kind.learning_rate),
        "scheduler": bool(kind.learning_rate),
        "batch_size": kind.has_batches,
        "epochs": kind.has_epochs,
    }
    why = {
        "learning_rate": "it has none",
        "scheduler": "it has no learning rate",
        "batch_size": "it takes samples one by one or all at once",
        "epochs": "its sums are counted once",
    }
    unset = {
        "learning_rate": None,
        "scheduler": None,
        "batch_size": BATCH_SIZE,
        "epochs": 1,
    }
    return [
        f"{key} has no effect with {name}: {why[key]}; leave it out"
        for key, value in keys
        if not takes[key] and value != unset[key]
    ]


def set_learning_rate(estimator: Any, learning_rate: float | None) -> None:
    """Set the step that a config gives, in place, and the schedule that takes it."""
    parameter = kind_of(estimator).learning_rate
    if learning_rate is None or not parameter:
        return
    estimator.set_params(**{parameter: learning_rate})
    if parameter == "eta0" and getattr(estimator, "learning_rate", "") == "optimal":
        estimator.set_params(learning_rate="constant")  # optimal takes no eta0


def batch_size_of(estimator: Any, batch_size: int) -> int:
    """The config's batch size; the estimator's own where only that was chosen."""
    own = getattr(estimator, "batch_size", None)
    default = type(estimator)().batch_size if own is not None else None
    is_chosen = own != default and batch_size == BATCH_SIZE
    return int(own) if is_chosen and own is not None else batch_size


def make_trainer(estimator: Any, facts: DataFacts, seed: int) -> Trainer:
    """Make an estimator trainable: it gets all attributes of a fitted one.

    estimator : unfitted; changed.
    seed : of its initial weights, where they are drawn.
    """
    own = estimator.get_params()
    if "random_state" in own:
        estimator.set_params(random_state=seed & 0x7FFFFFFF)
    if own.get("class_weight") == "balanced" and facts.class_counts is not None:
        counts, classes = facts.class_counts, facts.classes
        assert classes is not None
        shares = counts.sum() / (len(counts) * np.maximum(counts, 1))
        balance = dict(zip(classes.tolist(), shares.tolist(), strict=True))
        estimator.set_params(class_weight=balance)
    for name, value in (("verbose", 0), ("warm_start", False), ("n_jobs", None)):
        if name in own and own[name] != value:
            estimator.set_params(**{name: value})
    return kind_of(estimator).trainer(estimator, facts)
