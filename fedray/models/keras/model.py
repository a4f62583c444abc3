"""A live Keras model in a party: trains in place."""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedray.config import FederationConfig
from fedray.datasets import DatasetPart
from fedray.errors import WeightsMismatch, format_count
from fedray.messages import Scores
from fedray.models import (
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
from fedray.models.keras import losses, variables
from fedray.models.keras.backend import device_scope, keras, seed_scope
from fedray.models.keras.build import build
from fedray.models.keras.fitting import (
    bounded_embeddings,
    check,
    compute_output,
    compute_random_outputs,
    prepare_targets,
)
from fedray.models.keras.optimizers import make_optimizer
from fedray.models.loss_domains import ANYTHING, count_answers
from fedray.models.torch_evaluation import (
    Batches,
    BatchScores,
    Sums,
    evaluate_batches,
    sum_each,
    sum_parts,
)
from fedray.models.torch_samples import Batch, TorchSamples
from fedray.models.torch_steps import Precision, StepTerms, clip_gradients
from fedray.nested import Arrays, Nested, map_arrays, take
from fedray.weights import Weights, mismatch

# a tuple for a model whose inputs have names, which `check` has compared
warnings.filterwarnings("ignore", message="The structure of `inputs`")
EVALUATION_BATCH = {"cpu": 128, "cuda": 512}


class KerasModel:
    """A model, its loss and its optimizer's settings, for one actor's life.

    Raises
    ------
    WeightsMismatch
        If what was built is not what the blueprint says.
    """

    metrics: Any = None

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.config = blueprint.settle(config)
        self.device = torch_common.usable_device(device)
        self.on_progress: ProgressCallback = no_progress
        self.notes: dict[str, str] = {}
        is_default = config.loss is None
        name, args = self.config.loss, self.config.loss_args
        code = blueprint.loss
        self.loss = (
            losses.own(code, args) if code else losses.named(name, args, is_default)
        )
        with device_scope(self.device), seed_scope(self.config.seed):
            self.model = build(blueprint.plan)
        self.outside = variables.outside_state(self.model)
        self.names = list(blueprint.schema)
        self.fixed = torch_state.FixedTensors({}, {})
        n_built = len(self.model.weights)
        if len(self.names) != n_built:
            sizes = f"{format_count(n_built, 'tensor')} instead of {len(self.names)}"
            raise WeightsMismatch("the model built here", sizes)
        if difference := mismatch(self.weights(), blueprint.schema):
            raise WeightsMismatch("the model built here", difference)
        torch_state.require_alike(self.outside.fingerprints(), blueprint)
        self.personal = frozenset(blueprint.personal)
        self.trained_names = frozenset(blueprint.parameters)
        self.trained = variables.choose(self.model, self.names, self.trained_names)
        self.takes_batch_statistics = takes_batch_statistics(self.model)

    @contextlib.contextmanager
    def train_only(self, is_personal: bool) -> Iterator[None]:
        """Within the block personal layers alone train, or the shared ones alone."""
        names = self.trained_names
        chosen = names & self.personal if is_personal else names - self.personal
        self.trained = variables.choose(self.model, self.names, chosen)
        try:
            yield
        finally:
            self.trained = variables.choose(self.model, self.names, names)

    @contextlib.contextmanager
    def changed(self, **settings: Any) -> Iterator[None]:
        """Within the block these config keys have other values."""
        config = self.config
        self.config = config.model_copy(update=settings)
        try:
            yield
        finally:
            self.config = config

    def pulled(self) -> list[Any]:
        """Variables that proximal_mu pulls: those that train and are shared."""
        pairs = zip(self.names, self.model.weights, strict=True)
        shared = {id(variable) for name, variable in pairs if name not in self.personal}
        return [variable for variable in self.trained if id(variable) in shared]

    def weights(self) -> Weights:
        """Arrays in get_weights() order; on a CPU they are views of the live model."""
        arrays = variables.to_arrays(self.model, self.names)
        return {name: a for name, a in arrays.items() if name not in self.fixed}

    def fix(self, arrays: Weights) -> None:
        """Load tensors that do not travel from now on; all others do."""
        pairs = zip(self.names, self.model.weights, strict=True)
        tensors = {name: variables.tensor(variable) for name, variable in pairs}
        self.fixed = torch_state.FixedTensors(tensors, arrays)

    def load(self, weights: Weights) -> None:
        """Copy arrays into the model's own tensors; the rest becomes as built."""
        for name, variable in zip(self.names, self.model.weights, strict=True):
            if name not in weights:
                continue
            # a copy where the store's array is read-only: torch would warn
            array = weights[name]
            array = array if array.flags.writeable else array.copy()
            variables.tensor(variable).copy_(torch.from_numpy(array))
        self.outside.restore()

    def ready(self, part: Arrays | DatasetPart) -> TorchSamples:
        """Samples on the device, as training takes them."""
        return torch_datasets.ready(part, self)

    def prepare_batch(self, x: Nested, y: Nested) -> Batch:
        """As `prepare`, of one batch of many."""
        return self.prepare(x, y)

    def prepare(self, x: Nested, y: Nested) -> Batch:
        """Tensors on the device; targets as this loss takes them.

        What the loss does not take stays as it is, which `probe` tells.
        """
        samples = self._to_samples(x)
        targets = map_arrays(lambda one: torch.as_tensor(one).to(self.device), y)
        with device_scope(self.device):
            return samples, prepare_targets(self.model, self.loss, samples, targets)

    def probe(self, source: str, samples: TorchSamples) -> None:
        """Raise DataError where samples, targets, model and loss do not fit."""
        with device_scope(self.device), torch.no_grad():
            check(source, self.loss.use, self.model, samples)

    def batch_sizes(self, n_samples: int) -> list[int]:
        """Sizes of the batches of one pass over this many samples."""
        config, joins_single = self.config, self.takes_batch_statistics
        return batch_sizes(n_samples, config.batch_size, config.drop_last, joins_single)

    def count_steps(self, n_samples: int) -> int:
        """Training steps of a party with this many samples in a round."""
        n_batches = len(self.batch_sizes(n_samples))
        return self.config.local_steps or self.config.epochs * n_batches

    def new_step(self) -> "_TrainingStep":
        """One optimizer step on a batch, with a new optimizer."""
        return _TrainingStep(self)

    def try_training(
        self, source: str, weights: Weights, samples: TorchSamples, sizes: list[int]
    ) -> list[float]:
        """Take a training step from `weights` on a batch of each size."""
        with device_scope(self.device), bounded_embeddings(self.model):
            return torch_trial.try_training(self, source, weights, samples, sizes)

    def try_evaluation(self, source: str, samples: TorchSamples) -> None:
        """Evaluate a few samples, and a last batch of one; or raise TrialFailed."""
        sizes = batch_sizes(len(samples), EVALUATION_BATCH[self.device])
        torch_trial.try_evaluation(self, source, samples, sizes)

    @contextlib.contextmanager
    def undo(self, weights: Weights) -> Iterator[None]:
        """Restore `weights`, all other state and random states afterwards."""
        saved = variables.copy_of_others(self.model)
        with seed_scope(self.config.seed), self.outside.undo():
            try:
                yield
            finally:
                self.load(weights)
                self.fixed.restore()
                for variable, tensor in saved:
                    variables.tensor(variable).copy_(tensor)
                for variable in self.trained:
                    variable.value.grad = None

    def train_each(
        self, weights: Weights, parts: Sequence[PartySlice], samples: TorchSamples
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights`, one after another."""
        return train_one_by_one(self, weights, parts, samples)

    def train(self, samples: TorchSamples, part: PartySlice) -> float:
        """Train `epochs` passes, all random from the part's seed; a new optimizer.

        The loss returned is that of the data, without what layers add to it
        (regularizers), which is trained with too.
        """
        with device_scope(self.device), seed_scope(part.seed):
            variables.reseed(self.model, part.seed)
            self.outside.seed(part.seed)
            step = _TrainingStep(self, part)
            if part.start is not None:
                self.load(part.start)
            loss = torch_common.run_epochs(self, samples, part, step)
            step.optimizer.finalize_variable_values(self.trained)
        return loss

    def evaluate(
        self,
        samples: TorchSamples,
        starts: np.ndarray | None = None,
        round: int = 0,
    ) -> Scores:
        """Mean loss over the samples; accuracy for classes and two-way targets."""
        with device_scope(self.device):
            sizes = batch_sizes(len(samples), EVALUATION_BATCH[self.device])
            sums = self.metrics.sums() if self.metrics else None
            batches = Batches(samples, sizes, starts, sums)
            scores = evaluate_batches(batches, self._score_batch, self.weigh)
        self.fixed.restore()  # a layer may count its calls
        return scores

    def _score_batch(self, x: Nested, y: torch.Tensor) -> BatchScores:
        out = self.model(x, training=False)
        has_mask = getattr(out, "_keras_mask", None) is not None  # of padding

        def mean(part: slice) -> torch.Tensor:
            own = take(x, part)
            again = self.model(own, training=False) if has_mask else out[part]
            return self.mean_loss(y[part], again)

        def split(cuts: np.ndarray) -> Sums:
            if self.loss.is_by_sample and not has_mask:
                with losses.unreduced(self.loss.function):
                    each = self.mean_loss(y, out)
                return sum_each(each, self._counts(y), len(y), cuts)
            return sum_parts(mean, lambda part: self.weigh(y[part]), len(y), cuts)

        def measure(sums: Any) -> None:
            random_outputs = functools.partial(compute_random_outputs, self.model, x)
            sums.read(sums.Output(self.loss.use, out, y, True, random_outputs))

        answers = count_answers(self.loss.use, out, y)
        return BatchScores(self.mean_loss(y, out), answers, split, measure)

    def weigh(self, y: Nested) -> torch.Tensor | None:
        """Number of labels that count, where some are ignored; None: that of samples.

        None too where classes come as rows.
        """
        counts = self._counts(y)
        return None if counts is None else counts.sum().double()

    def _counts(self, y: Nested) -> torch.Tensor | None:
        """Which labels count, bool, where some are ignored."""
        ignored = self.loss.use.ignored
        if ignored is None or self.loss.takes_rows:
            return None
        return torch.ne(y, ignored)

    @property
    def predicts(self) -> Prediction:
        """What the loss says of the outputs."""
        return self.loss.use.domain.predicts

    def framework_model(self) -> Any:
        """The keras.Model."""
        return self.model

    def predict(self, x: Nested, source: str = "the samples") -> np.ndarray:
        """What the model says of samples (N, ...): see `ScoredModel.predict`."""
        samples = self._to_samples(map_arrays(np.ascontiguousarray, x))
        with device_scope(self.device), torch.no_grad():
            compute_output(
                self.model, source, take(samples, slice(torch_common.N_TRIED))
            )
            size, loss = EVALUATION_BATCH[self.device], self.loss.use
            return torch_common.predictions(
                lambda batch: self.model(batch, training=False), samples, size, loss
            )

    def export_onnx(self, x: Nested, path: Path) -> None:
        """Write the model as ONNX; samples (N, ...) show what it takes."""
        samples = self._to_samples(map_arrays(np.ascontiguousarray, x))
        with device_scope(self.device), torch.no_grad():
            compute_output(self.model, "the samples", samples)
            torch_onnx.export(torch_onnx.OneArgument(self.model), samples, path)

    def probabilities(self, x: Nested) -> np.ndarray:
        """Probabilities (N, C) float64 of samples (N, ...); softmax of logits."""
        return torch_common.require_probabilities(self.predict(x), self.loss.use)

    def _to_samples(self, x: Nested) -> Nested:
        """Samples on the device, floats in the dtype of the model's variables."""
        return map_arrays(self._to_tensor, x)

    def _to_tensor(self, x: np.ndarray) -> torch.Tensor:
        tensor = torch.as_tensor(x)
        if tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, self.model.dtype_policy.variable_dtype))
        return tensor.to(self.device)

    def mean_loss(self, y: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Mean loss of outputs, without regularizers."""
        domain = self.loss.use.domain
        if domain is ANYTHING:
            return self.loss.function(y, out)
        if not domain.has_classes:
            y = y.reshape(out.shape)  # (N,) against (N, 1) would broadcast
        elif not self.loss.takes_rows and out.ndim > 3:
            # torch has no gradient of labels of pixels whose classes come last
            axis = self.loss.use.class_axis
            out, y = out.movedim(axis, -1).flatten(0, -2), y.flatten()
        return self.loss.function(y, out)


class _TrainingStep:
    """One optimizer step on a batch; `part` says what of it runs."""

    def __init__(self, model: KerasModel, party: PartySlice | None = None):
        self.part, self.model = "the optimizer", model
        self.optimizer = make_optimizer(model.config)
        self.optimizer.build(model.trained)
        config = model.config
        self.mu = party.pull_of(config) if party else config.proximal_mu
        pulled = model.pulled() if self.mu > 0 else []
        self.pulled = [variable.value for variable in pulled]
        self.anchor = [variables.tensor(variable).clone() for variable in pulled]
        self.precision = Precision(model.config, model.device)
        pairs = zip(model.names, model.model.weights, strict=True)
        named = {name: variable.value for name, variable in pairs}
        self.drift = StepTerms(model.config, party, named, scales_velocity=True)

    def set_learning_rate(self, rate: float) -> None:
        """Take the next steps with this rate."""
        self.optimizer.learning_rate = rate

    def __call__(self, x: Nested, y: torch.Tensor) -> torch.Tensor:
        """Take the step; its mean loss without regularizers."""
        model = self.model
        with self.precision.autocast():
            self.part = "the model"
            out = model.model(x, training=True)
            regularization = model.model.losses
            self.part = f"the loss {model.config.loss}"
            loss = model.mean_loss(y, out)
        parameters = [variable.value for variable in model.trained]
        for parameter in parameters:
            parameter.grad = None
        self.part = "the gradients of the model"
        whole = loss + sum(regularization) if regularization else loss
        self.precision.backward(whole)
        if not self.precision.unscale(parameters):
            return loss.detach()
        self.part = "the pull of proximal_mu"
        if self.anchor:
            torch_common.add_proximal_gradient(self.pulled, self.anchor, self.mu)
        self.part = "gradient_clip_norm"
        clip_gradients(parameters, model.config.gradient_clip_norm)
        self.part = f"the optimizer {model.config.optimizer}"
        self.drift.correct()
        with torch.no_grad():
            gradients = [parameter.grad for parameter in parameters]
            self.optimizer.apply(gradients, model.trained)
        self.drift.count(float(self.optimizer.learning_rate))
        return loss.detach()


def takes_batch_statistics(model: Any) -> bool:
    """Whether a layer takes statistics of a batch in training."""
    return torch_common.takes_batch_statistics(model) or any(
        isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for layer in variables.all_layers(model)
    )
