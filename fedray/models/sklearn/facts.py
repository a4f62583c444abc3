"""What an estimator must know of the parties' data before it has any weights.

Made of the surveys of all parties; the same at each of them and for predictions.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class DataFacts:
    """Shapes, classes and scales of what an estimator is trained on.

    n_features : columns of its input, behind a pipeline's other steps.
    n_samples : training samples of all parties.
    classes : labels that any party has, in order; None of a regressor.
    class_counts : training samples of each class, over all parties.
    n_targets : columns of a regressor's targets; None where each is one number.
    means, deviations : (n_features,) over all parties; zeros and ones if not counted.
    """

    n_features: int
    n_samples: int = 0
    classes: np.ndarray | None = None
    class_counts: np.ndarray | None = None
    n_targets: int | None = None
    means: np.ndarray = field(default_factory=lambda: np.zeros(0))
    deviations: np.ndarray = field(default_factory=lambda: np.ones(0))

    @property
    def shift(self) -> np.ndarray:
        """Means (n_features,), or zeros: sums of distances from them lose no digits."""
        return self.means if len(self.means) else np.zeros(self.n_features)

    @property
    def spread(self) -> np.ndarray:
        """Deviations (n_features,), or ones."""
        return self.deviations if len(self.deviations) else np.ones(self.n_features)

    def made_up(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of zeros with every class, to give an estimator its attributes."""
        if self.classes is not None:
            return np.zeros((len(self.classes), self.n_features)), self.classes
        shape = (2,) if self.n_targets is None else (2, self.n_targets)
        return np.zeros((2, self.n_features)), np.zeros(shape)


@dataclass(frozen=True)
class Passes:
    """How a party trains in one round.

    epochs : passes over its samples.
    batch_size : samples of a step, where an estimator takes several at a time.
    seed : of everything random.
    """

    epochs: int
    batch_size: int
    seed: int
    on_progress: Any = None

    def seeds(self) -> list[int]:
        """A seed for each pass, as `random_state` takes it."""
        states = np.random.SeedSequence(self.seed).generate_state(self.epochs)
        return [int(state) & 0x7FFFFFFF for state in states]

    def done(self, n_passes: float) -> None:
        """Tell how many passes are behind."""
        if self.on_progress is not None:
            self.on_progress(n_passes / self.epochs)
