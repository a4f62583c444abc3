"""A live PyTorch model in a party: trains one party or many stacked, and distills."""

import contextlib
import copy
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from fedray.config import FederationConfig, RunConfig
from fedray.datasets import DatasetPart
from fedray.errors import DataError, WeightsMismatch
from fedray.messages import Scores
from fedray.models import (
    loss_domains,
    torch_common,
    torch_datasets,
    torch_onnx,
    torch_state,
    torch_trial,
)
from fedray.models.base import (
    Blueprint,
    PartySlice,
    Prediction,
    ProgressCallback,
    batch_sizes,
    no_progress,
    train_one_by_one,
)
from fedray.models.loss_domains import AnswerCounts
from fedray.models.pytorch import fitting, losses
from fedray.models.pytorch.batched_module import DROPOUTS
from fedray.models.pytorch.build import build, own_tensors, tied_parameters
from fedray.models.pytorch.clipped_sums import Clipping
from fedray.models.pytorch.clipping_choice import (
    N_TRIED,
    ClippingChoice,
    check_sampling,
    choose_clipping,
    log_choice,
)
from fedray.models.pytorch.losses import NamedLoss
from fedray.models.pytorch.outputs import call_module, main_output
from fedray.models.pytorch.private_training import (
    PrivateStep,
    train_private,
    trial_step,
)
from fedray.models.pytorch.stacked import Stack, stack_or_none
from fedray.models.pytorch.training_step import TrainingStep
from fedray.models.torch_evaluation import (
    Batches,
    BatchScores,
    Sums,
    evaluate_batches,
    sum_each,
    sum_parts,
)
from fedray.models.torch_samples import Batch, TensorSamples, TorchSamples
from fedray.nested import Arrays, Nested, length, map_arrays, take
from fedray.privacy.private_steps import sampling_plan
from fedray.weights import Weights, mismatch

# arrays from the object store are read-only, and they are only read here; with each
# such warning Python would also forget which other warnings it has shown once
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

EVALUATION_BATCH = {"cpu": 64, "cuda": 512}  # on a CPU a batch must fit its cache


class TorchModel:
    """A module, its loss and its optimizer's settings, for one actor's life.

    Raises
    ------
    WeightsMismatch
        If the module that was built does not have the blueprint's tensors.
    """

    _output_shape: tuple[int, ...] | None = None  # of one sample, of batches of many
    metrics: Any = None

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.config = blueprint.settle(config)
        self.device = torch_common.usable_device(device)
        self.on_progress: ProgressCallback = no_progress
        self.notes: dict[str, str] = {}
        self.loss = losses.make(
            self.config.loss,
            self.config.loss_args,
            blueprint.loss,
            is_default=config.loss is None,
            device=self.device,
        )
        with torch_state.random_scope(self.config.seed):
            self.module = build(blueprint.plan, blueprint.forms).to(self.device)
        self.names = self.module.state_dict().keys()
        # views: they follow the training
        self.tensors = own_tensors(self.module, blueprint.tied)
        self.fixed = torch_state.FixedTensors({}, {})
        self.outside = torch_state.OutsideState(self.module, self.tensors.values())
        if difference := mismatch(self.weights(), blueprint.own_schema):
            raise WeightsMismatch("the model built here", difference)
        torch_state.require_alike(self.outside.fingerprints(), blueprint)
        self.module.train()
        self.takes_batch_statistics = torch_common.takes_batch_statistics(self.module)
        self.personal = frozenset(blueprint.personal)
        self._choose(blueprint.parameters)
        self._stack: Stack | None = None
        self._has_checked_stacking = False
        self._clipping: ClippingChoice | None = None  # of dp_sgd

    def _choose(self, names: Collection[str]) -> None:
        """Let these parameters train, and no others."""
        chosen = set(names)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in chosen)
        self.trained = [p for p in self.module.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def train_only(self, is_personal: bool) -> Iterator[None]:
        """Within the block personal layers alone train, or the shared ones alone."""
        named = dict(self.module.named_parameters())
        names = [name for name in named if named[name].requires_grad]
        self._choose([n for n in names if (n in self.personal) == is_personal])
        try:
            yield
        finally:
            self._choose(names)

    @contextlib.contextmanager
    def changed(self, **settings: Any) -> Iterator[None]:
        """Within the block these config keys have other values."""
        config = self.config
        self._set_config(config.model_copy(update=settings))
        try:
            yield
        finally:
            self._set_config(config)

    def _set_config(self, config: RunConfig) -> None:
        self.config = config
        if self._stack is not None:
            self._stack.config = config

    def pulled(self) -> list[torch.nn.Parameter]:
        """Parameters that proximal_mu pulls: those that train and are shared."""
        named = self.module.named_parameters()
        return [p for n, p in named if p.requires_grad and n not in self.personal]

    def weights(self) -> Weights:
        """Arrays in state_dict order; on a CPU they are views of the live module."""
        return {
            name: torch_state.to_array(tensor)
            for name, tensor in self.tensors.items()
            if name not in self.fixed
        }

    def load(self, weights: Weights) -> None:
        """Copy arrays into the module's own tensors; the rest becomes as built."""
        with torch.no_grad():
            for name in weights.keys() & self.tensors.keys():
                self.tensors[name].copy_(torch.from_numpy(weights[name]))
        self.outside.restore()

    def fix(self, arrays: Weights) -> None:
        """Load tensors that do not travel from now on; all others do."""
        self.fixed = torch_state.FixedTensors(self.tensors, arrays)

    def ready(self, part: Arrays | DatasetPart) -> TorchSamples:
        """Samples on the device, as training takes them."""
        return torch_datasets.ready(part, self)

    def prepare(self, x: Nested, y: Nested) -> Batch:
        """Tensors on the device: floats as the module's, labels as int64.

        Rows of class probabilities stay; what the loss does not take, `probe` tells.
        """
        samples, targets = self._to_tensors(x, y)
        shape = fitting.find_shape(self.loss, self.module, samples, targets)
        return samples, fitting.convert_targets(
            self.loss, targets, self._dtype(), shape
        )

    def prepare_batch(self, x: Nested, y: Nested) -> Batch:
        """As `prepare`, of one batch of many: their outputs are of one shape."""
        samples, targets = self._to_tensors(x, y)
        if self._output_shape is None:
            shape = fitting.find_shape(self.loss, self.module, samples, targets)
            self._output_shape = shape
        return samples, fitting.convert_targets(
            self.loss, targets, self._dtype(), self._output_shape
        )

    def _to_tensors(self, x: Nested, y: Nested) -> Batch:
        """Inputs and targets on the device; without targets those of the loss."""
        samples = self.to_samples(x)
        targets = map_arrays(lambda a: torch.as_tensor(a).to(self.device), y)
        return samples, fitting.default_targets(self.loss, samples, targets)

    def probe(self, source: str, samples: TorchSamples) -> None:
        """Raise DataError where samples, targets, module and loss do not fit."""
        fitting.check(source, self.loss, self.module, samples)
        new = self.module.state_dict().keys() ^ self.names
        if new:
            got = f"a model that makes its layers as it runs: {sorted(new)[:3]}"
            raise DataError(source, got, "layers made in __init__, with their sizes")

    def batch_sizes(self, n_samples: int) -> list[int]:
        """Sizes of the batches of one pass over this many samples."""
        config, joins_single = self.config, self.takes_batch_statistics
        return batch_sizes(n_samples, config.batch_size, config.drop_last, joins_single)

    def count_steps(self, n_samples: int) -> int:
        """Training steps of a party with this many samples in a round."""
        config = self.config
        if config.dp_sgd is not None:
            plan = config.batch_size, config.epochs, config.local_steps
            return sampling_plan(n_samples, *plan)[1]
        return config.local_steps or config.epochs * len(self.batch_sizes(n_samples))

    def new_step(self) -> TrainingStep | PrivateStep:
        """One optimizer step on a batch, with a new optimizer, in training mode."""
        if self._clipping is not None:
            return trial_step(self, self._clipping.clip)
        return TrainingStep(self)

    def clipping(self, source: str, samples: TorchSamples) -> Clipping:
        """How gradients are clipped for DP-SGD; decided once, from some samples.

        Raises
        ------
        TrialFailed
            If the model cannot be trained so.
        """
        if self._clipping is None:
            check_sampling(source, samples)
            few = samples.extremes(N_TRIED)
            self._clipping = choose_clipping(self, source, few)
            log_choice(source, self._clipping)
        return self._clipping.clip

    @property
    def slow_because(self) -> str:
        """Why DP-SGD takes samples one at a time; empty if it does not, as yet."""
        choice = self._clipping
        return choice.slow_because if choice and choice.is_one_by_one else ""

    def arithmetic(self, source: str, samples: TorchSamples) -> str:
        """What decides the bits of a private training beside weights, data and config.

        Raises
        ------
        TrialFailed
            If the model cannot be trained so.
        """
        way = self.clipping(source, samples).name
        return f"{torch_common.describe_arithmetic(self.device)}, clipped {way}"

    def try_training(
        self, source: str, weights: Weights, samples: TorchSamples, sizes: list[int]
    ) -> list[float]:
        """Take a training step from `weights` on a batch of each size."""
        bounds: AbstractContextManager[None]
        bounds = torch_trial.bounded_embeddings(self.module)
        if self.config.dp_sgd is not None:
            self.load(weights)
            self.clipping(source, samples)
            bounds = contextlib.nullcontext()  # vmap does not look at values
        with bounds:
            return torch_trial.try_training(self, source, weights, samples, sizes)

    def try_evaluation(self, source: str, samples: TorchSamples) -> None:
        """Evaluate a few samples, and a last batch of one; or raise TrialFailed."""
        self.module.eval()
        sizes = self._evaluation_sizes(len(samples))
        with torch_trial.bounded_embeddings(self.module):
            torch_trial.try_evaluation(self, source, samples, sizes)

    @contextlib.contextmanager
    def undo(self, weights: Weights) -> Iterator[None]:
        """Restore `weights`, all other state, random states and mode afterwards."""
        with (
            torch_state.random_scope(self.config.seed),
            torch_state.undo_attributes(self.module),
            self.outside.undo(),
        ):
            try:
                yield
            finally:
                self.load(weights)
                self.fixed.restore()
                self.module.zero_grad(set_to_none=True)

    def train_each(
        self, weights: Weights, parts: Sequence[PartySlice], samples: TorchSamples
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every party from `weights`, stacked where that gives the same."""
        stacks: list[Sequence[PartySlice]] = []
        stack = self._find_stack(weights, samples) if len(parts) > 1 else None
        if stack is not None and isinstance(samples, TensorSamples):
            stacks = stack.split(parts, samples.x)
            for stacked_parts in stacks:
                self.load(weights)
                losses, arrays = stack.train(stacked_parts, samples.x, samples.y)
                names = [name for name in self.tensors if name not in self.fixed]
                yield losses, {name: arrays[name] for name in names}
        if not stacks:
            yield from train_one_by_one(self, weights, parts, samples)

    def train(self, samples: TorchSamples, part: PartySlice) -> float:
        """Train `epochs` passes, all random from the part's seed; a new optimizer.

        With dp_sgd the loss is NaN: it has no noise.
        """
        if self.config.dp_sgd is not None:
            train_private(self, samples, part)
            return math.nan
        # dropout, and what a module draws by itself
        torch_state.seed_all(part.seed)
        self.outside.seed(part.seed)
        train_step = TrainingStep(self, part)
        if part.start is not None:
            self.load(part.start)
        return torch_common.run_epochs(self, samples, part, train_step)

    def evaluate(
        self,
        samples: TorchSamples,
        starts: np.ndarray | None = None,
        round: int = 0,
    ) -> Scores:
        """Mean loss over the samples; accuracy for classes and two-way targets."""
        self.module.eval()
        fitting.learn_shift(self.loss, self.module, samples)
        sizes = self._evaluation_sizes(len(samples))
        sums = self.metrics.sums() if self.metrics else None
        batches = Batches(samples, sizes, starts, sums)
        scores = evaluate_batches(batches, self._score_batch, self.weigh)
        self.fixed.restore()  # a module may count its calls
        return scores

    def _score_batch(self, x: Nested, y: Nested) -> BatchScores:
        # it may write into its input
        returned = self.call(map_arrays(torch.clone, x), y)

        def mean(part: slice) -> torch.Tensor:
            own = take(y, part)
            if isinstance(returned, torch.Tensor) and not self.loss.takes_labels:
                return self.loss.mean(returned[part], own)
            again = self.call(map_arrays(torch.clone, take(x, part)), own)
            return self.loss.mean(again, own)

        def split(cuts: np.ndarray) -> Sums:
            loss, n = self.loss, length(x)
            if isinstance(loss, NamedLoss):
                each = loss.each(main_output(returned, loss.entry), y)
                return sum_each(each, loss.weigh_each(y), n, cuts)
            return sum_parts(mean, lambda part: self.weigh(take(y, part)), n, cuts)

        def measure(sums: Any) -> None:
            fitting.measure(sums, self.loss, self.module, (x, y, returned))

        loss = self.loss.mean(returned, y)
        return BatchScores(loss, self._count_answers(returned, y), split, measure)

    def call(self, x: Nested, y: Nested = None) -> Any:
        """What the module returns; it gets the targets where its own loss is taken."""
        return call_module(self.module, x, y if self.loss.takes_labels else None)

    def output(self, x: Nested) -> torch.Tensor:
        """The output that counts of what the module returns."""
        return main_output(self.call(x), self.loss.entry)

    def weigh(self, y: Nested) -> torch.Tensor | None:
        """The sum of weights of a mean over these targets; None: their number."""
        return self.loss.weigh(y)

    @property
    def predicts(self) -> Prediction:
        """What the loss says of the outputs."""
        return self.loss.use.domain.predicts

    def framework_model(self) -> Any:
        """The nn.Module, in evaluation mode."""
        self.module.eval()
        return self.module

    def predict(self, x: Nested, source: str = "the samples") -> np.ndarray:
        """What the module says of samples (N, ...): see `ScoredModel.predict`."""
        samples = self.to_samples(x)
        few = take(samples, slice(torch_common.N_TRIED))
        fitting.compute_output(self.loss, self.module, source, few)
        size = EVALUATION_BATCH[self.device]

        def compute(batch: Nested) -> torch.Tensor:
            return self.output(map_arrays(torch.clone, batch))

        return torch_common.predictions(compute, samples, size, self.loss.use)

    def export_onnx(self, x: Nested, path: Path) -> None:
        """Write the module as ONNX; samples (N, ...) show what it takes."""
        samples = self.to_samples(x)
        fitting.compute_output(self.loss, self.module, "the samples", samples)
        torch_onnx.export(self.module, samples, path)

    def probabilities(self, x: Nested) -> np.ndarray:
        """Probabilities (N, C) float64 of samples (N, ...): softmax of the output.

        nll_loss takes log-probabilities, whose softmax is the probabilities.
        """
        return torch_common.require_probabilities(self.predict(x), self.loss.use)

    def copy_for_comparison(self, dtype: torch.dtype | None) -> Self:
        """An independent copy that takes one plain SGD step and drops nothing.

        The check that compares stacked with single training uses it: other optimizers
        amplify the smallest difference, and a GPU draws dropout's masks differently.

        dtype : of the copy's floats; None: as they are.
        """
        copied = copy.copy(self)
        copied.config = self.config.with_changes(
            optimizer="optim.SGD",
            optimizer_args={},
            learning_rate=1.0,
            epochs=1,
            batch_size=3,
            drop_last=False,
            proximal_mu=0.0,
            local_steps=None,
            scheduler=None,
        )
        copied.module = copy.deepcopy(self.module).to(dtype=dtype)
        for layer in copied.module.modules():
            if isinstance(layer, DROPOUTS) and type(layer) in DROPOUTS:
                layer.p = 0.0
        copied.tensors = own_tensors(copied.module, tied_parameters(copied.module))
        copied.outside = torch_state.OutsideState(
            copied.module, copied.tensors.values()
        )
        copied.trained = [p for p in copied.module.parameters() if p.requires_grad]
        return copied

    def _find_stack(self, weights: Weights, samples: TorchSamples) -> Stack | None:
        """The stack that parties train in; whether there is one is checked once."""
        if not self._has_checked_stacking:
            self._stack = stack_or_none(self, weights, samples)
            if self._stack is not None:
                self._stack.personal = self.personal
            self._has_checked_stacking = True
        return self._stack

    def _count_answers(self, returned: Any, y: Nested) -> AnswerCounts | None:
        if not isinstance(self.loss, NamedLoss):
            return None
        out = main_output(returned, self.loss.entry)
        return loss_domains.count_answers(self.loss.use, out, y)

    def to_samples(self, x: Nested) -> Nested:
        """Samples on the device, floats in the module's dtype."""
        return map_arrays(self._to_tensor, x)

    def _to_tensor(self, x: np.ndarray) -> torch.Tensor:
        tensor = torch.as_tensor(x)
        if tensor.is_floating_point():
            tensor = tensor.to(self._dtype())
        return tensor.to(self.device)

    def _evaluation_sizes(self, n_samples: int) -> list[int]:
        """Sizes of the batches of an evaluation, in evaluation mode."""
        joins_single = torch_common.takes_batch_statistics(self.module)
        size = EVALUATION_BATCH[self.device]
        return batch_sizes(n_samples, size, joins_single=joins_single)

    def _dtype(self) -> torch.dtype:
        floats = (t.dtype for t in self.tensors.values() if t.is_floating_point())
        return next(floats, torch.float32)
