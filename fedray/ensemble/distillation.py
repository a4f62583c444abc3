"""Distillation: one PyTorch model, the student, learns an ensemble's probabilities."""

from pathlib import Path

import numpy as np

from fedray import data, models
from fedray.config import FederationConfig
from fedray.ensemble.members import Member
from fedray.errors import ConfigError, DataError
from fedray.models import BatchModel, ScoredModel
from fedray.models.base import batch_sizes
from fedray.nested import Arrays
from fedray.survey import DataCodes


def missing_files(config: FederationConfig) -> list[str]:
    """Files of `distill` and `distill_data` that do not exist."""
    problems = []
    for key in ("distill", "distill_data"):
        spec = getattr(config, key) or ""
        before, dot_py, _ = spec.rpartition(".py:")
        file = f"{before}.py" if dot_py else spec
        if file and not Path(file).is_file():
            problems.append(f"{key} {file} does not exist")
    return problems


class Student:
    """A PyTorch model and the unlabeled samples that it learns on.

    codes : by which the members' inputs are standardised; the student's are, too.

    Raises
    ------
    DataError, ModelFileError, ConfigError
        If there is no model, no data, or the model does not take it.
    """

    def __init__(self, config: FederationConfig, codes: DataCodes | None = None):
        if config.distill is None:
            raise ConfigError(["distill is missing: it names the student's model"])
        self.config, self.adapter = config, models.named("pytorch")
        self.model_config = _student_config(config.distill, config.seed)
        self.blueprint, weights = self.adapter.read(self.model_config)
        self.model = self.adapter.make(self.blueprint, self.model_config, "cpu")
        self.model.load(weights)
        self.codes, self.x = codes, unlabeled_samples(config)
        labels = np.zeros(len(self.x), np.int64)  # of no meaning, for the probe
        source = f"of distill_data {config.distill_data} for the student"
        self.inputs = codes.apply(self.x, source) if codes else self.x
        samples = self.model.ready(Arrays(self.inputs, labels))
        self.model.probe(source, samples)
        if isinstance(self.model, BatchModel):
            joins_single = self.model.takes_batch_statistics
            sizes = batch_sizes(len(self.x), config.batch_size, False, joins_single)
            with self.model.undo(weights):
                self.model.try_training(source, weights, samples, [*{*sizes}])
        if not isinstance(self.model, ScoredModel):
            raise DataError(source, "a student without probabilities", "one with them")
        self.n_classes = self.model.probabilities(self.x[:1]).shape[1]

    def member(self) -> Member:
        """The student as it is now, as an ensemble of one."""
        config, weights = self.blueprint.settle(self.model_config), self.model.weights()
        sample = self.x.shape[1:]
        return Member(
            "student", config, self.blueprint, weights, sample, codes=self.codes
        )

    def learn(self, probabilities: np.ndarray) -> float:
        """Learn an ensemble's probabilities (N, C) of `x`; the last pass's loss."""
        distill = self.adapter.distill
        if distill is None:
            raise TypeError(f"{self.adapter.model_type} has no distillation")
        return distill(self.model, self.inputs, probabilities, self.config)


def _student_config(distill: str, seed: int) -> FederationConfig:
    """The config of a student that `distill` names: code or a model file."""
    if ".py:" in distill:
        return FederationConfig(architecture=distill, seed=seed)
    return FederationConfig(model_file=distill, seed=seed)


def unlabeled_samples(config: FederationConfig) -> np.ndarray:
    """Samples (N, ...) float32 of `distill_data`: floats as they are, bytes over 255.

    Raises
    ------
    DataError
        If there are none.
    """
    file, source = config.distill_data or "", f"of distill_data {config.distill_data}"
    try:
        (x,) = data.read_npz(file, ["x"]).values()
    except DataError:  # a party's file, or the second error says what is wrong
        try:
            (x,) = data.read_npz(file, ["x_train"]).values()
        except DataError as error:
            needed = error.needed.replace("also x_train", "an array x or x_train")
            raise DataError(source, error.got, needed) from None
    is_bytes = x.dtype == np.uint8
    if x.ndim < 2 or not len(x) or not (x.dtype.kind == "f" or is_bytes):
        got = f"{x.dtype} of shape {list(x.shape)}"
        needed = "an array x or x_train of samples (N, ...), floats or bytes"
        raise DataError(source, got, needed)
    if is_bytes:
        x = x.astype(np.float32) / np.float32(255)
    if not np.isfinite(x).all():
        raise DataError(source, "NaN or infinity", "finite samples")
    return x.astype(np.float32, copy=False)
