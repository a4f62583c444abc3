"""Epsilon of releases, and the noise that an epsilon needs.

A release is something noised that others get to see: a round's sum of clipped updates,
or a batch's sum of clipped gradients. `epsilon_of` adds up those of a ledger; a plan of
rounds is a ledger that is not written yet. All of it bounds what a release tells about
one party (or sample): whether it took part, or its contribution was zero instead.

| releases | accountant |
|---|---|
| `all` | exact (`gaussian`): mu² = Σ 1/z² |
| `cyclic` | exact (`banded_cost`): mu² of the party that they cost most |
| `poisson`, batches of DP-SGD | the lesser of Rényi and the loss distribution |
| `distributed` | Rényi: noise of whole numbers, of which no more is proven |
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedray.config.privacy import LEAST_OF_PARTIES
from fedray.errors import ConfigError
from fedray.privacy.banded import column_norm, n_participations
from fedray.privacy.banded_cost import banded_cost, cost_of_rounds
from fedray.privacy.gaussian import epsilon_of_mu, mu_for
from fedray.privacy.loss_distribution import Sampled, epsilon_of_sampled
from fedray.privacy.renyi import (
    MANY_ORDERS,
    ORDERS,
    epsilon_of_curve,
    poisson_curve,
)

ALL, CYCLIC, POISSON = "all", "cyclic", "poisson"
CENTRAL, DISTRIBUTED, DP_SGD = "central", "distributed", "dp_sgd"
LEAST_NOISE = 1e-100  # noise_multiplier; less, or none at all, protects nothing
MOST_NOISE = 1e6  # noise_multiplier; more counts as this much
ROUNDING = 1e-9  # share of epsilon by which sums of a ledger's lines may differ
CLOSE = 0.997  # of the epsilon that is asked for, which calibration must reach


@dataclass(frozen=True)
class Release:
    """What accounting needs of one release.

    noise_multiplier : z; standard deviation of the noise, in units of the clip norm.
        With an adaptive clip norm that of sum and count together; of `cyclic` rounds
        that of all rounds of the run together.
    mechanism : central | distributed | dp_sgd.
    sampling : all | cyclic | poisson: how it was decided who takes part.
    rate : q; of `poisson`, the chance to take part.
    cycle : b; of `cyclic`, rounds after which a party's turn comes again.
    band : p; of `cyclic`, rounds whose noise is correlated, at most `cycle`.
    participations : k; of `cyclic`, turns of a party that the noise was made for.
    steps : so many such releases with draws of their own: batches of one training.
    run, group, round, key : which round of which model it is, and the id of the key
        that drew who takes part in it.
    """

    noise_multiplier: float
    mechanism: str = CENTRAL
    sampling: str = ALL
    rate: float = 1.0
    cycle: int = 1
    band: int = 1
    participations: int = 1
    steps: int = 1
    run: str = ""
    group: str | None = None
    round: int = 1
    key: str = ""

    def for_participant(self) -> "Release":
        """The same for someone who was in it: nothing is saved by not being drawn.

        Of a cyclic round with the share that later rounds have of it.
        """
        z = self.noise_multiplier
        if self.sampling == CYCLIC:
            z *= math.sqrt(self.participations)
        whole = dataclasses.replace(self, sampling=ALL, rate=1.0, noise_multiplier=z)
        return dataclasses.replace(whole, cycle=1, band=1, participations=1)


@dataclass(frozen=True)
class Plan:
    """Releases that a run would make, one a round; fields as of `Release`.

    Of each round's noise with draws of its own; `steps` of them in each.
    """

    rounds: int
    mechanism: str = CENTRAL
    sampling: str = ALL
    rate: float = 1.0
    cycle: int = 1
    band: int = 1
    steps: int = 1

    def epsilon(
        self, noise_multiplier: float, delta: float, rounds: int | None = None
    ) -> float:
        """Epsilon after the first rounds of the run; None: after all."""
        return epsilon_of([self.total(noise_multiplier, rounds)], delta)

    def total(self, noise_multiplier: float, rounds: int | None = None) -> Release:
        """One release that costs as much as those of the first rounds together."""
        n = self.rounds if rounds is None else rounds
        if self.sampling != CYCLIC:
            alike = DP_SGD if self.mechanism == CENTRAL else self.mechanism
            steps, rate = n * self.steps, self.rate if self.sampling == POISSON else 1.0
            return Release(noise_multiplier, alike, POISSON, rate, steps=steps)
        turns = n_participations(self.rounds, self.cycle)
        fresh = turns * column_norm(self.band) ** 2
        share = cost_of_rounds(n, self.cycle, self.band) / fresh
        z = noise_multiplier / math.sqrt(share) if share else math.inf
        return Release(z)


def epsilon_of(releases: Iterable[Release], delta: float) -> float:
    """Epsilon at this delta of all these releases together; inf without noise.

    It is of someone who may be in each of them: groups of parties with models of their
    own each have an epsilon of their own.
    """
    releases = list(releases)
    if not all(release.noise_multiplier > LEAST_NOISE for release in releases):
        return math.inf
    mu_squared, whole_numbers, sampled = _added_up(releases)
    if not sampled and not whole_numbers:
        return epsilon_of_mu(math.sqrt(mu_squared), delta)
    orders = np.array(ORDERS if sampled else MANY_ORDERS)
    curve = orders * (mu_squared + whole_numbers) / 2
    for (q, z), n in sampled.items():
        curve = curve + n * poisson_curve(q, z)
    by_renyi = epsilon_of_curve(curve, orders, delta)
    if whole_numbers:
        return by_renyi
    plain = mu_squared + sum(n / z**2 for (_, z), n in sampled.items())
    if mu_squared:
        sampled[1.0, 1 / math.sqrt(mu_squared)] = 1
    by_losses = epsilon_of_sampled(sampled, delta)
    return min(by_renyi, by_losses, epsilon_of_mu(math.sqrt(plain), delta))


def noise_multiplier_for(epsilon: float, delta: float, plan: Plan) -> float:
    """The least noise multiplier with which a run keeps to this epsilon.

    Rounded up, so that it reaches epsilon from below, within 1 %.

    Raises
    ------
    ConfigError
        If no noise does.
    """
    mu_squared, whole_numbers, sampled = _added_up([plan.total(1.0)])
    if not whole_numbers and not sampled:
        high = math.sqrt(mu_squared) / mu_for(epsilon, delta)
    else:
        high = _search_noise(epsilon, delta, plan)
    if high > MOST_NOISE:
        needed = f"needed one that noise of at most {MOST_NOISE:g} can keep to"
        raise ConfigError([f"epsilon: got {epsilon:g}, {needed}: ask for more"])
    while plan.epsilon(z := _round_up(high), delta) > epsilon * (1 - ROUNDING):
        high = z  # else the last of the run's lines could exceed it by a float's digits
    return z


def _search_noise(epsilon: float, delta: float, plan: Plan) -> float:
    """Noise that is enough and not much too much; more than `MOST_NOISE`: none is."""
    whole = plan.total(1.0)  # of many rounds about as much as a Gaussian with mu / rate
    high = max(0.5, whole.rate * math.sqrt(whole.steps) / mu_for(epsilon, delta))
    while plan.epsilon(high, delta) > epsilon:
        high *= 2
        if high > MOST_NOISE:
            return high
    low = high / 2
    while plan.epsilon(low, delta) <= epsilon:
        low, high = low / 2, low
    while plan.epsilon(high, delta) < CLOSE * epsilon and high > low * (1 + 1e-6):
        middle = math.sqrt(low * high)
        is_enough = plan.epsilon(middle, delta) <= epsilon
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def _added_up(
    releases: Iterable[Release],
) -> tuple[float, float, Counter[Sampled]]:
    """mu² of Gaussian releases, the same of whole numbers' noise, and sampled ones."""
    mu_squared = whole_numbers = 0.0
    sampled: Counter[Sampled] = Counter()
    draws, cyclic = defaultdict(list), defaultdict(list)
    for one in releases:
        z = min(one.noise_multiplier, MOST_NOISE)
        # The sum of several parties' discrete noise is that of one but for a factor of
        # some exp(-π² σ²), σ being one party's (Kairouz et al. 2021, arXiv:2102.06387):
        # below 1e-1000 on a grid of 2²⁰ for 2,047 parties with `LEAST_OF_PARTIES`.
        if one.mechanism == DISTRIBUTED:
            whole_numbers += one.steps / z**2 if z >= LEAST_OF_PARTIES else math.inf
        elif one.sampling == CYCLIC:
            alike = one.run, one.group, one.participations, one.cycle, one.band
            cyclic[alike].append((one.round, z))
        elif one.sampling == ALL or one.rate == 1:
            mu_squared += one.steps / z**2
        elif not one.rate or not one.steps:
            continue
        elif one.mechanism == DP_SGD:
            sampled[one.rate, z] += one.steps
        else:
            draws[one.run, one.group, one.round, one.key, one.rate].append(z)
    for (*_, turns, cycle, band), rounds in cyclic.items():
        fresh = turns * column_norm(band) ** 2  # variance of fresh noise, by z²
        mu_squared += banded_cost(rounds, cycle, band) / fresh
    for (*_, rate), noises in draws.items():  # several of those who were drawn once
        z = noises[0] if len(noises) == 1 else sum(z**-2 for z in noises) ** -0.5
        sampled[rate, z] += 1
    return mu_squared, whole_numbers, sampled


def _round_up(number: float) -> float:
    """To six digits, and never to the same number."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 5)
    return float(f"{(math.floor(number / unit) + 1) * unit:.6g}")
