"""The secret part of one DP-SGD training: which samples a batch has, and its noise."""

import math
from dataclasses import dataclass, field

from fedray.privacy.keys import derive_key


def sampling_plan(
    n_samples: int, batch_size: int, epochs: int, local_steps: int | None
) -> tuple[float, int]:
    """Chance q of each sample to be in a batch, and the steps of one round.

    q = B / n; a pass has ceil(n / B) steps, empty batches among them.
    """
    rate = min(1.0, batch_size / n_samples)
    return rate, local_steps or epochs * math.ceil(n_samples / batch_size)


@dataclass(frozen=True)
class PrivateSteps:
    """What a party's DP-SGD training of one round is made by; see `sampling_plan`.

    A training with the same `secret` has the same batches and noise, and everything
    that decides its result is bound into that secret.

    noise_multiplier : z: the deviation of the noise, in units of max_grad_norm.
    sampling_rate : q.
    n_steps : exactly as many are taken, whatever the data; they are paid for.
    secret : 32 bytes, of this training alone.
    """

    noise_multiplier: float
    sampling_rate: float
    n_steps: int
    secret: bytes = field(repr=False)

    def batch_key(self, step: int) -> bytes:
        """Key of the draw that says which samples a step's batch has; from step 0."""
        return derive_key(self.secret, "batch", step)

    def noise_key(self, step: int) -> bytes:
        """Key of the noise that is added to a step's sum of clipped gradients."""
        return derive_key(self.secret, "noise", step)

    def __getstate__(self) -> object:
        raise TypeError("the secret of a training does not leave its process")
