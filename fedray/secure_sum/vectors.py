"""What a secure sum is of: each party's step as integers, and the mean back from them.

A step is cut to `clip_norm` and put on a grid as fine as the ring allows. Where the
rule weighs parties by their samples, vectors are multiplied by whole numbers up to 256;
with `mechanism: distributed` all count alike, and the grid is that of the noise.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fedray.config import FederationConfig
from fedray.errors import SecureSumError
from fedray.privacy import accounting
from fedray.privacy.grid import GRID, MAX_GRID, from_grid, to_grid
from fedray.privacy.keys import require_cryptography
from fedray.secure_sum.attempt import (
    SumParameters,
    choose_parameters,
    default_min_sum,
    grid_parameters,
)
from fedray.weights import Weights

MASKED = "/masked"  # the one tensor of a masked update
TWO = 2
TWO_PARTIES = (
    "with two parties a sum hides an update from the aggregator, not from the other "
    "party, which takes its own from the sum; three or more hide among each other"
)
MAX_WEIGHT = 256  # Ω: of a party with as many samples as any may have
CLOSE = 1e-9  # by which a computed number may differ
EQUAL_RULES = ("iter_avg",)  # that weigh all parties alike


@dataclass(frozen=True)
class VectorPlan:
    """How steps become vectors, the same at all parties and at the aggregator.

    clip_norm : S: the greatest length of a step.
    sums : parameters; their bound is the grid, the greatest length of a vector.
    """

    clip_norm: float
    sums: SumParameters

    @property
    def has_noise(self) -> bool:
        """Whether each party adds noise to its vector."""
        return self.sums.noise_variance > 0

    def encode(self, weights: Weights, base: Weights) -> np.ndarray:
        """A party's step from `base` as integers, (d,) int32.

        With noise a step that is not finite counts as none: that a party was absent for
        it would tell of its data.

        Raises
        ------
        ValueError
            Without noise, if the step is not finite.
        """
        grid = self.sums.bound
        try:
            return to_grid(weights, base, self.clip_norm, grid).values
        except ValueError:
            if not self.has_noise:
                raise
            return np.zeros(self.sums.n_coordinates, np.int32)

    def decode(self, total: np.ndarray, base: Weights, weight: float) -> Weights:
        """The weights that a sum of vectors leads to: base plus the mean step.

        Parameters
        ----------
        total : (d,) signed integers
        weight : of all the parties in the sum together
        """
        return from_grid(base, total, self.clip_norm, weight, self.sums.bound)


def plan_sum(
    config: FederationConfig,
    n_coordinates: int,
    n_parties: int,
    min_sum: int,
    noise_multiplier: float = 0.0,
) -> SumParameters:
    """Parameters of a sum of so many parties, of whom `min_sum` are in it at least.

    noise_multiplier : z of the noise that `min_sum` parties add together.

    Raises
    ------
    SecureSumError
        If a sum could overflow, or `min_sum` does not fit.
    """
    if config.noise_for_parties:
        variance = math.ceil((noise_multiplier * GRID) ** 2 / min_sum)
        own = {"min_sum": min_sum, "noise_variance": variance}
        return grid_parameters(n_coordinates, n_parties, GRID, **own)
    most = most_weight(config)
    sums = choose_parameters(n_coordinates, n_parties, most, min_sum)
    return replace(sums, bound=min(sums.bound, MAX_GRID))


def clip_norm_of(config: FederationConfig) -> float:
    """S: the greatest length of a party's step."""
    noised = config.privacy if config.noise_for_parties else None
    clip_norm = noised.clip_norm if noised else config.clip_norm
    if not isinstance(clip_norm, int | float):
        raise SecureSumError("clip_norm", f"{clip_norm}", "a number")
    return float(clip_norm)


def check_sum(
    config: FederationConfig, sums: SumParameters, n_parties: int, round: int
) -> None:
    """See that a sum is of what a party's own config says, and has noise enough.

    Raises
    ------
    SecureSumError
        If not; or if rounds up to this one, each with such noise, would exceed the
        epsilon of the config.
    """
    z, privacy = noise_multiplier_of(sums), config.privacy
    wanted = plan_sum(config, sums.n_coordinates, n_parties, sums.min_sum, z)
    if sums != replace(wanted, noise_variance=sums.noise_variance):
        raise SecureSumError("a sum", f"{sums}", f"by its own config {wanted}")
    if privacy is None or not config.noise_for_parties:
        if sums.noise_variance:
            raise SecureSumError("a sum", "noise", "none, as its own config says")
        return
    least = privacy.noise_multiplier
    if not sums.noise_variance or (least and z < least * (1 - CLOSE)):
        got = f"noise of {z:.4g} clip norms, if min_sum parties add theirs"
        raise SecureSumError("a sum", got, f"{least or 'some'}, by its own config")
    if privacy.epsilon is not None:
        plan = accounting.Plan(round, accounting.DISTRIBUTED)
        epsilon = plan.epsilon(z, privacy.delta or 0.0)
        if epsilon > privacy.epsilon * (1 + CLOSE):
            got = (
                f"round {round} with noise of {z:.4g} clip norms: epsilon {epsilon:.4g}"
            )
            raise SecureSumError("a sum", got, f"at most {privacy.epsilon:g}")


def noise_multiplier_of(sums: SumParameters) -> float:
    """z of the noise that the fewest parties of a sum add together."""
    return math.sqrt(sums.noise_variance * sums.min_sum) / GRID


def most_weight(config: FederationConfig) -> int:
    """The largest number by which a party's vector is multiplied."""
    are_equal = config.fusion_algorithm in EQUAL_RULES or config.noise_for_parties
    return 1 if are_equal else MAX_WEIGHT


def fewest_parties(config: FederationConfig, n_parties: int) -> int:
    """`min_sum` of a global model that so many parties share."""
    return config.min_sum or default_min_sum(n_parties)


def describe_sums(config: FederationConfig) -> list[str]:
    """What is to be known of the sums of a config's rounds.

    Raises
    ------
    SecureSumError, MissingExtra
        If there can be none.
    """
    require_cryptography()
    n_parties = config.fewest_parties or 0
    n_asked = max(1, math.floor(n_parties * config.party_fraction + 0.5))
    least = fewest_parties(config, n_asked)
    sums = plan_sum(config, 1, n_asked, least, 1.0 if config.noise_for_parties else 0)
    n_bits = sums.bound.bit_length()
    notes = [
        f"each sum is opened for {least} of {n_asked} parties or more (min_sum), else "
        f"for none; a number travels in {sums.ring_bits} bits, and is as fine as "
        f"clip_norm / 2^{n_bits - 1}"
    ]
    if n_asked == TWO:
        notes.append(TWO_PARTIES)
    return notes


def count_samples(config: FederationConfig, n_samples: int) -> int:
    """What a party says of its sample count: the next power of two, or nothing (1)."""
    if most_weight(config) == 1:
        return 1
    return 1 << max(0, n_samples - 1).bit_length()
