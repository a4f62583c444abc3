"""Interfaces of model adapters and live models, and functions that adapters share."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from fedray import durable_files, user_code
from fedray.config import FederationConfig, RunConfig
from fedray.errors import ConfigError, FedrayError, ModelFileError
from fedray.messages import Scores
from fedray.models import safetensors_file
from fedray.models.blueprint import Blueprint
from fedray.models.rate_sum import RateSum
from fedray.nested import Nested
from fedray.privacy.private_steps import PrivateSteps
from fedray.weights import Weights

log = logging.getLogger("fedray")
M = TypeVar("M")


ProgressCallback = Callable[[float], None]  # takes the share of a training done, 0..1
Takes = Literal["samples", "documents", "anything"]


def no_progress(share: float) -> None:
    """The progress callback that does nothing."""


class PartySlice(NamedTuple):
    """One party's share of an actor's samples, and what its training starts from.

    rows : (n,) int64, the places of its samples.
    seed : of everything random in this round.
    learning_rate : instead of the config's, before its scheduler: what the aggregator
        has decided on.
    start : the weights it trains on from, if not from the global ones; those that are
        not among them are global.
    pull : toward the global weights, instead of the config's `proximal_mu`.
    rates : where the sum of its steps' rates is written to; None: nobody needs it.
    correction : gives what is added to the gradient of every step (SCAFFOLD).
    private : batches and noise of a DP-SGD training; None: an ordinary one.
    """

    rows: np.ndarray
    seed: int
    party: str = ""
    round: int = 1
    start: Weights | None = None
    learning_rate: float | None = None
    pull: float | None = None
    rates: RateSum | None = None
    correction: Callable[[], Weights] | None = None
    private: PrivateSteps | None = None

    def pull_of(self, config: FederationConfig) -> float:
        """Factor of the pull toward the global weights in this training."""
        return config.proximal_mu if self.pull is None else self.pull


def batch_sizes(
    n_samples: int, size: int, drop_last: bool = False, joins_single: bool = False
) -> list[int]:
    """Sizes of the batches of one pass over `n_samples`, in order.

    Parameters
    ----------
    drop_last : leave out a last batch that is smaller than `size`.
    joins_single : a last batch of one sample joins the one before it, since a model
        that takes statistics of a batch has none of a single sample.
    """
    n_full, rest = divmod(n_samples, size)
    sizes = [size] * n_full
    if rest and not drop_last:
        sizes.append(rest)
    if joins_single and size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [size + 1]
    return sizes


def missing_files(config: FederationConfig) -> list[str]:
    """Mistakes in model_file and architecture that show without building a model."""
    problems = []
    if config.model_file and not Path(config.model_file).exists():
        problems.append(f"model_file {config.model_file} does not exist")
    if config.architecture:
        try:
            user_code.read(config.architecture, "architecture")
        except ConfigError as error:
            problems += error.problems
    return problems


def collect_problems(*checks: Callable[[], object]) -> list[str]:
    """Problems of all checks that raise ConfigError."""
    problems = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    return problems


def call_architecture(source: user_code.Source, kind: type[M], kind_name: str) -> M:
    """Call the user's function that builds a model, and check what it returns.

    Parameters
    ----------
    kind : the class that the model must be an instance of.
    kind_name : what errors call it.

    Raises
    ------
    ModelFileError
        If the code fails, or returns something else.
    """
    try:
        model = user_code.run(source)()
    except (Exception, SystemExit) as error:  # user code raises any exception
        reason = f"building it failed: {user_code.describe_here(error)}"
        raise ModelFileError(str(source), reason) from None
    if not isinstance(model, kind):
        got = f"{type(model).__module__}.{type(model).__name__}"
        raise ModelFileError(str(source), f"gave a {got}, a {kind_name} is needed")
    return model


def answer(blueprint: Blueprint, weights: Weights) -> tuple[Any, dict[str, Any]]:
    """The model as plain data: arrays in the model's order; names, shapes, dtypes.

    A client rebuilds it: ``dict(zip(info["names"], arrays))``. An adapter whose model
    is more than its arrays has an `answer` of its own.
    """
    arrays = [weights[name] for name in blueprint.schema]
    return arrays, {
        "names": list(blueprint.schema),
        "shapes": [list(array.shape) for array in arrays],
        "dtypes": [array.dtype.name for array in arrays],
    }


class ReadySamples(Protocol):
    """Samples as one model trains on them; how they are read is the model's own.

    Nothing else of them is used outside of the model that made them.
    """

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray | slice) -> Self:
        """The samples at these places; of a slice, views where there are any."""

    def describe(self) -> tuple[str, str]:
        """Dtypes and shapes of one sample and of its target; empty for none."""

    def first(self) -> Nested:
        """Inputs of the first sample: nested numpy arrays (1, ...); None for none."""


@runtime_checkable
class RereadSamples(ReadySamples, Protocol):
    """Samples that are read anew at each pass, and may then be others."""

    def compare_passes(
        self, sizes: list[int], seed: int, epoch: int | None
    ) -> int | None:
        """Read a pass twice; the batch, from 1, at which the second one differs.

        epoch : number of a pass of training; None: an evaluation's.
        """


class Model(Protocol):
    """One live model inside a party: built once, weights overwritten in place.

    device : cpu or cuda: where it really is.
    on_progress : called after each step of a training of one; `no_progress` at first.
    notes : of parties whose own state was lost; read and cleared by the caller.
    """

    device: str
    on_progress: ProgressCallback
    notes: dict[str, str]

    def ready(self, part: Any) -> ReadySamples:
        """Turn one part of a party's data into what training or evaluation takes.

        part : `fedray.nested.Arrays`, or whatever else `takes` says.
        """

    def probe(self, source: str, samples: Any) -> None:
        """Raise DataError where these samples and targets do not fit this model."""

    def weights(self) -> Weights:
        """Arrays of the model as it is now; valid until it is trained or loaded."""

    def load(self, weights: Weights) -> None:
        """Overwrite the model in place; `weights` are not kept."""

    def train_each(
        self, weights: Weights, parts: Sequence[PartySlice], samples: Any
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights` or its own, one or several at a time.

        Each comes out as if it had been trained alone. Yields mean losses (S,) and
        arrays (S, *shape) of the next S parts, valid until the next are asked for.
        """


@runtime_checkable
class BatchModel(Protocol):
    """A live model that trains in batches of samples, which can be tried and undone.

    config : with what it trains by, such as a DataLoader's own batch size.
    takes_batch_statistics : in training, as batch norm does.
    """

    config: RunConfig
    device: str
    takes_batch_statistics: bool

    def batch_sizes(self, n_samples: int) -> list[int]:
        """Sizes of the batches of one pass over this many samples."""

    def count_steps(self, n_samples: int) -> int:
        """Training steps of a party with this many samples in a round."""

    def undo(self, weights: Weights) -> AbstractContextManager[None]:
        """Load `weights` afterwards, and restore all other state and random states."""

    def try_training(
        self, source: str, weights: Weights, samples: Any, sizes: list[int]
    ) -> list[float]:
        """Take a training step from `weights` on a batch of each size.

        A batch holds first the samples with the smallest and largest values. Returns
        the losses before each step.

        Raises
        ------
        TrialFailed
            Saying in which part a step fails, and what to do.
        """

    def try_evaluation(self, source: str, samples: Any) -> None:
        """Evaluate a few samples, and a last batch of one; or raise TrialFailed."""


@runtime_checkable
class PrivateModel(BatchModel, Protocol):
    """A live model that trains with DP-SGD (`PartySlice.private`).

    slow_because : why it takes samples one at a time; empty where it does not, or
        nothing has been trained or tried.
    """

    slow_because: str

    def arithmetic(self, source: str, samples: Any) -> str:
        """What decides the bits of a training beside weights, data and config.

        Libraries, threads, processor, and how gradients of these samples are clipped.
        """


# of a sample: a probability for each class, or for each output of yes; or values
Prediction = Literal["classes", "yes", "values"]


@runtime_checkable
class ScoredModel(Model, Protocol):
    """A live model with a loss: where its adapter's `has_score` says so.

    metrics : a `fedray.models.scoring.MetricPlan`, once it is set; None: none.
    """

    metrics: Any

    @property
    def predicts(self) -> Prediction:
        """What `predict` tells of a sample."""

    def framework_model(self) -> Any:
        """The framework's own object: an nn.Module, a Keras model."""

    def evaluate(
        self,
        samples: Any,
        starts: np.ndarray | None = None,
        round: int = 0,
    ) -> Scores:
        """Measure loss and accuracy of several parties' samples in one pass.

        Parameters
        ----------
        starts : (R + 1,) where each party's samples start among these, which follow
            each other; None: all are one party's.
        round : whose result the loaded weights are; 0: those of the start.
        """

    def predict(self, x: Nested, source: str = "the samples") -> np.ndarray:
        """What the model says of samples (N, ...), float64, in its targets' terms.

        source : what an error names.

        Raises
        ------
        DataError
            If the model does not take the samples.
        """

    def probabilities(self, x: Nested) -> np.ndarray:
        """Of each class (N, C) for samples (N, ...); DataError if there are none."""


class SingleModel(Protocol):
    """A live model that trains one party at a time; see `train_one_by_one`."""

    def weights(self) -> Weights:
        """Arrays of the model as it is now; valid until it is trained or loaded."""

    def load(self, weights: Weights) -> None:
        """Overwrite the model in place; `weights` are not kept."""

    def train(self, samples: Any, part: PartySlice) -> float:
        """Train `epochs` passes from the loaded weights; mean loss of the last one.

        Where the part has weights of its own it trains on from those; `proximal_mu`
        still pulls to the loaded ones.
        """


@runtime_checkable
class SearchableModel(Protocol):
    """A live model that has a vector for every document (`ModelAdapter.search`)."""

    def vectors_of(
        self, weights: Weights, part: PartySlice, samples: Any
    ) -> np.ndarray:
        """Vectors (N, size) of a party's documents under a finished model's weights."""

    def tags_of(self, part: PartySlice, samples: Any) -> list[str]:
        """Tags of a party's documents, in the order of their vectors."""

    def vector_of(self, words: list[str]) -> np.ndarray:
        """Vector (size,) of a new document under the rows that are loaded."""


@runtime_checkable
class PersonalModel(SingleModel, Protocol):
    """A live model of which some layers, or a whole copy, may stay at a party.

    personal : names of their tensors.
    """

    config: RunConfig
    personal: frozenset[str]

    def changed(self, **settings: Any) -> AbstractContextManager[None]:
        """Within the block these config keys have other values."""

    def train_only(self, is_personal: bool) -> AbstractContextManager[None]:
        """Within the block personal layers alone train, or the shared ones alone."""


def train_personal_first(
    model: PersonalModel, weights: Weights, part: PartySlice, samples: Any
) -> float:
    """Train the personal layers alone, then the shared ones alone; these ones' loss.

    Source: FedRep, Collins et al. 2021, arXiv:2102.07078, Algorithm 1.
    """
    own_seed = np.random.SeedSequence([part.seed, 3]).generate_state(1, np.uint64)
    model.load(weights)
    epochs = model.config.personal_epochs
    with model.train_only(True), model.changed(epochs=epochs, local_steps=None):
        own = part._replace(seed=int(own_seed[0] >> 1), rates=None, correction=None)
        model.train(samples, own)
    start = {name: array.copy() for name, array in model.weights().items()}
    model.load(weights)
    with model.train_only(False):
        return model.train(samples, part._replace(start=start))


def train_one_by_one(
    model: SingleModel, weights: Weights, parts: Sequence[PartySlice], samples: Any
) -> Iterator[tuple[np.ndarray, Weights]]:
    """Train parties one after another; yields what `Model.train_each` yields."""
    for part in parts:
        if isinstance(model, PersonalModel) and model.config.personal_epochs:
            loss = train_personal_first(model, weights, part, samples)
        else:
            model.load(weights)
            loss = model.train(samples, part)
        yield np.array([loss]), {n: a[None] for n, a in model.weights().items()}


def log_unstacked(config: FederationConfig, reason: str) -> None:
    """Log why parties do not train stacked; a warning where stacking was asked for."""
    level = logging.INFO if config.stacked == "auto" else logging.WARNING
    message = "parties of one actor train one by one, not stacked (stacked: %s): %s"
    log.log(level, message, config.stacked, reason)


def write_file(
    path: Path,
    weights: Weights,
    write: Callable[[Path], None],
    metadata: dict[str, str] | None = None,
    bfloat16: Collection[str] = (),
) -> None:
    """Write arrays as .safetensors where `path` says so, else by the adapter's `write`.

    metadata : of a .safetensors file; bfloat16 : names rounded to it there.

    Raises
    ------
    ModelFileError
        If it cannot be written.
    MissingExtra
        If it is a .safetensors file and the package of that name is not installed.
    """
    try:
        with durable_files.replace_file(path) as aside:
            if path.suffix == ".safetensors":
                safetensors_file.write(weights, aside, metadata, bfloat16)
            else:
                write(aside)
    except FedrayError:
        raise
    except Exception as error:  # every framework wraps a full disk in its own way
        reason = f"cannot be written (disk full?): {type(error).__name__}: {error}"
        raise ModelFileError(str(path), reason) from None
