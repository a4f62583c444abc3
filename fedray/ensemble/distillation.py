"""The one model that an ensemble may be distilled into."""

import numpy as np

from fedray import data, models
from fedray.config import FederationConfig
from fedray.ensemble.members import Member
from fedray.errors import DataError


class Student:
    """A PyTorch model and the unlabeled samples it is to learn on.

    Raises
    ------
    DataError, ModelFileError, ConfigError
        If there is no model, no data, or the model does not take it.
    """

    def __init__(self, config: FederationConfig):
        self.config, self.adapter = config, models.named("pytorch")
        is_code = ".py:" in config.distill
        key = "architecture" if is_code else "model_file"
        self.own = FederationConfig(**{key: config.distill}, seed=config.seed)
        self.blueprint, weights = self.adapter.read(self.own)
        self.model = self.adapter.make(self.blueprint, self.own, "cpu")
        self.model.load(weights)
        self.x = unlabeled(config)
        none = np.zeros(len(self.x), np.int64)
        source = f"of distill_data {config.distill_data} for the student"
        self.model.probe(source, *self.model.ready(self.x, none))
        self.n_classes = self.model.probabilities(self.x[:1]).shape[1]

    def member(self) -> Member:
        """The student as it is now, by itself."""
        words = self.blueprint.settle(self.own), self.blueprint, self.model.weights()
        return Member("student", *words, self.x.shape[1:])

    def learn(self, told: np.ndarray) -> float:
        """Learn an ensemble's probabilities (N, C) of `x`; the last pass's loss."""
        distill = self.adapter.distill
        if distill is None:
            raise TypeError(
                f"{self.adapter.model_type} models cannot be distilled into"
            )
        return distill(self.model, self.x, told, self.config)


def unlabeled(config: FederationConfig) -> np.ndarray:
    """Samples (N, ...) of `distill_data`: floats as they are, bytes over 255.

    Raises
    ------
    DataError
        If there are none.
    """
    source = f"of distill_data {config.distill_data}"
    try:
        (x,) = data.read_npz(config.distill_data, ["x"]).values()
    except DataError:  # of the form that parties have, or the error says what is wrong
        try:
            (x,) = data.read_npz(config.distill_data, ["x_train"]).values()
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
