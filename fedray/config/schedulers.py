"""Schedulers by name: each one's arguments, and its rate after some rounds or steps.

Those with PyTorch's names give what torch.optim.lr_scheduler gives.
"""

import bisect
import math
from typing import Annotated, Literal, NamedTuple

from fedray.config.declaration import setting
from fedray.config.specs import LIST_OR_TUPLE, Settings, Text

MAX_STEPS = 10**12
MOMENTUM = "cycle_momentum is not taken: the rate alone is cycled; leave it out"
UNTIL_END = "the rest of the run"


class Place(NamedTuple):
    """Where a run is, in units of `scheduler_every`: rounds, or a party's steps.

    n_before : that were done before; n_all : of the whole run; n_round : of a round.
    """

    n_before: int
    n_all: int
    n_round: int = 1


class Schedule(Settings):
    """A scheduler that multiplies or replaces the config's learning rate."""

    def rate(self, base: float, place: Place) -> float:
        """The rate at a place of the run; `base` is the config's learning_rate."""
        raise NotImplementedError

    def problem(self, place: Place) -> str:
        """Why this does not fit a run of that length; empty if it does."""
        return ""

    @property
    def follows_rounds(self) -> bool:
        """Whether its length is that of the run."""
        return False

    @property
    def flaw(self) -> str:
        """What is wrong with the values, whatever the run; empty for nothing."""
        return ""


class WarmingSchedule(Schedule):
    """A scheduler that may begin with a warm-up."""

    warmup: Annotated[int, setting(
        "rounds or steps in which the rate first rises to its full height, evenly",
        ge=0, le=MAX_STEPS)] = 0  # fmt: skip

    def rate(self, base: float, place: Place) -> float:
        """(t + 1) / warmup of the first rate; then the schedule, counted from there."""
        if place.n_before < self.warmup:
            first = self.decayed(base, place._replace(n_before=0))
            return first * ((place.n_before + 1) / self.warmup)
        return self.decayed(base, place._replace(n_before=place.n_before - self.warmup))

    def decayed(self, base: float, place: Place) -> float:
        """The rate after the warm-up, from which on `place` counts."""
        raise NotImplementedError

    def problem(self, place: Place) -> str:
        """A warm-up that is longer than the run."""
        if self.warmup <= place.n_all:
            return ""
        return f"warmup: {self.warmup} is longer than the run"

    def n_rest(self, place: Place) -> int:
        """Rounds or steps of the run after the warm-up."""
        return max(1, place.n_all - self.warmup)


Factor = Annotated[float, setting("share of learning_rate", gt=0, le=1)]
Gamma = Annotated[float, setting("factor of each fall", gt=0)]
Floor = Annotated[float, setting("least rate", ge=0)]
Count = Annotated[int, setting("rounds or steps", ge=1, le=MAX_STEPS)]


class Decay(WarmingSchedule):
    """A warm-up, then a decay that ends with the run."""

    end_factor: Annotated[
        float, setting("share of learning_rate that the decay goes down to", ge=0, le=1)
    ] = 0.0
    total_rounds: Annotated[int | None, setting(
        "rounds that warm-up and decay take", unset="rounds", ge=1)] = None  # fmt: skip

    @property
    def follows_rounds(self) -> bool:
        """Without a length of its own."""
        return self.total_rounds is None

    def n_decay(self, place: Place) -> int:
        """Rounds or steps from the end of the warm-up to that of the decay."""
        n_all = (self.total_rounds or 0) * place.n_round or place.n_all
        return max(1, n_all - self.warmup)

    def problem(self, place: Place) -> str:
        """A warm-up that is longer than the run, or than the whole schedule."""
        n_all = (self.total_rounds or 0) * place.n_round or place.n_all
        if self.warmup > n_all and self.total_rounds:
            return f"warmup: {self.warmup} is longer than total_rounds"
        return super().problem(place)


class Cosine(Decay):
    """Half a cosine, from learning_rate to its `end_factor`."""

    def decayed(self, base: float, place: Place) -> float:
        """As CosineAnnealingLR up to its T_max; then it stays."""
        share = min(1.0, place.n_before / self.n_decay(place))
        end = base * self.end_factor
        return end + (base - end) * (1 + math.cos(math.pi * share)) / 2


class Linear(Decay):
    """A straight line, from learning_rate to its `end_factor`."""

    def decayed(self, base: float, place: Place) -> float:
        """As LinearLR up to its total_iters; then it stays."""
        share = min(1.0, place.n_before / self.n_decay(place))
        return base * (1 + (self.end_factor - 1) * share)


class StepLR(WarmingSchedule):
    """A fall by `gamma` every `step_size` rounds or steps."""

    step_size: Count
    gamma: Gamma = 0.1

    def decayed(self, base: float, place: Place) -> float:
        """Base · gamma^⌊t / step_size⌋."""
        return base * self.gamma ** (place.n_before // self.step_size)


class MultiStepLR(WarmingSchedule):
    """A fall by `gamma` at each of `milestones`."""

    milestones: Annotated[tuple[int, ...], LIST_OR_TUPLE, setting(
        "numbers of rounds or steps after which the rate falls")]  # fmt: skip
    gamma: Gamma = 0.1

    def decayed(self, base: float, place: Place) -> float:
        """Base · gamma^(milestones up to t)."""
        n_falls = bisect.bisect_right(sorted(self.milestones), place.n_before)
        return base * self.gamma**n_falls

    @property
    def flaw(self) -> str:
        """Milestones that are none."""
        if self.milestones and min(self.milestones) >= 0:
            return ""
        return f"milestones must be whole numbers from 0, got {[*self.milestones]}"


class ConstantLR(WarmingSchedule):
    """A factor for the first `total_iters` rounds or steps."""

    factor: Factor = 1.0 / 3
    total_iters: Count = 5

    def decayed(self, base: float, place: Place) -> float:
        """Base · factor, later base."""
        return base * (self.factor if place.n_before < self.total_iters else 1.0)


class LinearLR(WarmingSchedule):
    """A straight line from `start_factor` to `end_factor`; then that."""

    start_factor: Factor = 1.0 / 3
    end_factor: Annotated[float, setting("last share of learning_rate", ge=0, le=1)] = (
        1.0
    )
    total_iters: Count = 5

    def decayed(self, base: float, place: Place) -> float:
        """Base · the factor at t."""
        share = min(self.total_iters, place.n_before) / self.total_iters
        return base * (
            self.start_factor + (self.end_factor - self.start_factor) * share
        )


class ExponentialLR(WarmingSchedule):
    """A fall by `gamma` every round or step."""

    gamma: Gamma

    def decayed(self, base: float, place: Place) -> float:
        """Base · gamma^t."""
        return base * self.gamma**place.n_before


class PolynomialLR(WarmingSchedule):
    """A polynomial down to 0 after `total_iters` rounds or steps."""

    total_iters: Count = 5
    power: Annotated[float, setting("of the polynomial; 1: a line", gt=0)] = 1.0

    def decayed(self, base: float, place: Place) -> float:
        """Base · (1 - t / total_iters)^power."""
        share = min(self.total_iters, place.n_before) / self.total_iters
        return base * (1 - share) ** self.power


class CosineAnnealingLR(WarmingSchedule):
    """Half a cosine down to `eta_min` in `T_max` rounds or steps, then up again."""

    T_max: Annotated[int | None, setting(
        "rounds or steps of half a cosine", unset=UNTIL_END, ge=1)] = None  # fmt: skip
    eta_min: Floor = 0.0

    @property
    def follows_rounds(self) -> bool:
        """Without a length of its own."""
        return self.T_max is None

    def decayed(self, base: float, place: Place) -> float:
        """Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5."""
        angle = math.pi * place.n_before / (self.T_max or self.n_rest(place))
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(angle)) / 2


class CosineAnnealingWarmRestarts(WarmingSchedule):
    """Half a cosine that starts again after `T_0`, each `T_mult` times as long."""

    T_0: Count
    T_mult: Annotated[int, setting("factor of each length", ge=1, le=1000)] = 1
    eta_min: Floor = 0.0

    def decayed(self, base: float, place: Place) -> float:
        """Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5."""
        t, length = place.n_before, self.T_0
        if self.T_mult == 1:
            t %= length
        while t >= length:
            t, length = t - length, length * self.T_mult
        share = t / length
        return (
            self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * share)) / 2
        )


class OneCycleLR(Schedule):
    """One rise to `max_lr` and one fall far below the first rate; the rate alone."""

    max_lr: Annotated[
        float | None, setting("highest rate", unset="learning_rate", gt=0)
    ] = None
    total_steps: Annotated[
        int | None, setting("rounds or steps of the cycle", unset="the whole run", ge=1)
    ] = None
    pct_start: Annotated[float, setting("share of the rise", ge=0, le=1)] = 0.3
    anneal_strategy: Annotated[
        Literal["cos", "linear"], setting("form of rise and fall")
    ] = "cos"
    div_factor: Annotated[float, setting("max_lr / first rate", gt=0)] = 25.0
    final_div_factor: Annotated[float, setting("first / last rate", gt=0)] = 1e4
    three_phase: Annotated[
        bool,
        setting(
            "fall back to the first rate as fast as it rose, then to the last",
        ),
    ] = False
    cycle_momentum: Annotated[bool, setting(
        "false: momentum stays as it is")] = False  # fmt: skip

    @property
    def follows_rounds(self) -> bool:
        """Without a length of its own."""
        return self.total_steps is None

    def rate(self, base: float, place: Place) -> float:
        """Smith and Topin 2018, arXiv:1708.07120, as PyTorch has it."""
        highest = self.max_lr or base
        first, n_steps = highest / self.div_factor, self.total_steps or place.n_all
        last, top = first / self.final_div_factor, self.pct_start * n_steps - 1
        phases = [(top, first, highest), (n_steps - 1, highest, last)]
        if self.three_phase:
            back = 2 * self.pct_start * n_steps - 2
            phases[1:] = [(back, highest, first), (n_steps - 1, first, last)]
        t, start = place.n_before, 0.0
        for end, low, high in phases[:-1]:
            if t <= end:
                return self._between(low, high, t - start, end - start)
            start = end
        end, low, high = phases[-1]
        return self._between(low, high, t - start, end - start)

    @property
    def flaw(self) -> str:
        """A momentum that is to be cycled."""
        return MOMENTUM if self.cycle_momentum else ""

    def _between(self, start: float, end: float, t: float, length: float) -> float:
        share = t / length if length else 1.0
        if self.anneal_strategy == "linear":
            return (end - start) * share + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)

    def problem(self, place: Place) -> str:
        """A cycle that ends before the run."""
        if self.total_steps is None or place.n_all <= self.total_steps:
            return ""
        return f"total_steps: {self.total_steps} end before the run"


class CyclicLR(Schedule):
    """Rises and falls between two rates, again and again; the rate alone."""

    base_lr: Annotated[float, setting("lowest rate", gt=0)]
    max_lr: Annotated[float, setting("highest rate", gt=0)]
    step_size_up: Count = 2000
    step_size_down: Annotated[int | None, setting(
        "rounds or steps of a fall", unset="step_size_up", ge=1)] = None  # fmt: skip
    mode: Annotated[
        Literal["triangular", "triangular2", "exp_range"],
        setting("height of each cycle: the same, half of the last one, or by gamma"),
    ] = "triangular"
    gamma: Annotated[float, setting("of exp_range: base of the power", gt=0)] = 1.0
    cycle_momentum: Annotated[bool, setting(
        "false: momentum stays as it is")] = False  # fmt: skip

    @property
    def flaw(self) -> str:
        """A momentum that is to be cycled."""
        return MOMENTUM if self.cycle_momentum else ""

    def rate(self, base: float, place: Place) -> float:
        """Smith 2017, arXiv:1506.01186."""
        n_up = self.step_size_up
        length = n_up + (self.step_size_down or n_up)
        cycle, t = divmod(place.n_before, length)
        share = t / n_up if t <= n_up else (length - t) / (length - n_up)
        heights = {"triangular": 1.0, "exp_range": self.gamma**place.n_before}
        height = heights.get(self.mode, 0.5**cycle)
        return self.base_lr + (self.max_lr - self.base_lr) * share * height


class ReduceLROnPlateau(Schedule):
    """A fall by `factor` where a metric has not improved for `patience` evaluations.

    The aggregator decides, since it alone knows the metric: see `policy.plateau`.
    """

    metric: Annotated[
        Text, setting("number of a round that counts: loss, accuracy or one of metrics")
    ] = "loss"
    mode: Annotated[
        Literal["min", "max"] | None,
        setting("whether less or more of it is better", unset="as the metric has it"),
    ] = None
    factor: Annotated[float, setting("of each fall; below 1", gt=0, le=1)] = 0.1
    patience: Annotated[
        int, setting("evaluated rounds without improvement that are borne", ge=0)
    ] = 10
    threshold: Annotated[
        float, setting("improvement that counts, as a share or a difference", ge=0)
    ] = 1e-4
    threshold_mode: Annotated[
        Literal["rel", "abs"], setting("rel: a share of the best")
    ] = "rel"
    cooldown: Annotated[
        int, setting("evaluated rounds after a fall that do not count", ge=0)
    ] = 0
    min_lr: Floor = 0.0
    eps: Annotated[float, setting("least fall that is made", ge=0)] = 1e-8  # fmt: skip

    def rate(self, base: float, place: Place) -> float:
        """The rate that the aggregator has decided on comes as `base`."""
        return base

    @property
    def flaw(self) -> str:
        """A factor that changes nothing."""
        return "" if self.factor < 1 else "factor must be below 1, got 1.0"


SCHEDULERS: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "linear": Linear,
    "StepLR": StepLR,
    "MultiStepLR": MultiStepLR,
    "ConstantLR": ConstantLR,
    "LinearLR": LinearLR,
    "ExponentialLR": ExponentialLR,
    "PolynomialLR": PolynomialLR,
    "CosineAnnealingLR": CosineAnnealingLR,
    "CosineAnnealingWarmRestarts": CosineAnnealingWarmRestarts,
    "OneCycleLR": OneCycleLR,
    "CyclicLR": CyclicLR,
    "ReduceLROnPlateau": ReduceLROnPlateau,
}
SHORT_NAMES = {
    "step": "StepLR",
    "multi_step": "MultiStepLR",
    "constant": "ConstantLR",
    "exponential": "ExponentialLR",
    "polynomial": "PolynomialLR",
    "cosine_annealing": "CosineAnnealingLR",
    "warm_restarts": "CosineAnnealingWarmRestarts",
    "one_cycle": "OneCycleLR",
    "cyclic": "CyclicLR",
    "plateau": "ReduceLROnPlateau",
}


def flatten(name: str) -> str:
    """A name as it is compared: the same for ``OneCycleLR`` and ``one_cycle_lr``."""
    return name.replace("_", "").replace("-", "").lower()


_FULL = {flatten(name): name for name in SCHEDULERS}
BY_FLAT_NAME = (
    {name.removesuffix("lr"): full for name, full in _FULL.items()}
    | {flatten(short): full for short, full in SHORT_NAMES.items()}
    | _FULL  # linear is not LinearLR
)
REFUSED = {  # of torch.optim.lr_scheduler: why
    "LambdaLR": "needs a function",
    "MultiplicativeLR": "needs a function",
    "SequentialLR": "is made of other schedulers; most take warmup",
    "ChainedScheduler": "is made of other schedulers; most take warmup",
    "SWALR": "belongs to averages of weights that fedray does not make",
}
REFUSED_ARGUMENTS = {
    "last_epoch": "fedray counts rounds and steps by itself",
    "verbose": "the rate stands in every round's line",
    "scale_fn": "it is a function; mode has three forms",
    "scale_mode": "it belongs to scale_fn, which is a function",
    "base_momentum": "the rate alone is cycled; leave it out",
    "max_momentum": "the rate alone is cycled; leave it out",
    "epochs": "give total_steps, or leave it out: then it is the whole run",
    "steps_per_epoch": "give total_steps, or leave it out: then it is the whole run",
}
