"""What a run would spend of privacy: epsilon, whose it is, against whom, in words."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from fedray.config import FederationConfig
from fedray.errors import ConfigError, format_count
from fedray.privacy import adaptive_clip
from fedray.privacy.accounting import (
    DP_SGD,
    POISSON,
    Plan,
    noise_multiplier_for,
)
from fedray.privacy.central import settings_of
from fedray.privacy.central_epsilon import plan_of
from fedray.privacy.private_steps import sampling_plan
from fedray.privacy.wording import how_many_times
from fedray.secure_sum.vectors import describe_sums

PARTY, SAMPLE = "party", "sample"
KEYS = {PARTY: "privacy", SAMPLE: "dp_sgd"}
FEW_PARTIES = 50  # noise for parties leaves a useful model only with more
LARGE_EPSILON = 10.0  # above it the bound alone says little
MAX_DELTA = 1e-3

CENTRAL = (
    "everybody who sees models, history or report; not against the aggregator and its "
    "operator, who see each update"
)
AGAINST = {
    "all": CENTRAL,
    "cyclic": f"{CENTRAL}; it may be known whose turn it is",
    "poisson": (
        "outsiders alone: whoever sees which parties train (Ray's dashboard, state, "
        "metrics and logs, operator.jsonl) is not one of them"
    ),
    "distributed": (
        "everybody who sees sums or models, the aggregator too, as long as min_sum "
        "parties add the noise that they should"
    ),
    SAMPLE: "everybody but the party itself, the aggregator too",
}
SPENT_TOGETHER = (
    "every run counts, those that tune settings too: epsilons of runs with the same "
    "{} add up"
)
EQUAL_WEIGHTS = "parties weigh equally in fedavg, however many samples they have"
SUMS_ALONE = (
    "secure_aggregation hides single updates within their sum; what the sums, and the "
    "model, tell of a party or a sample has no bound: privacy or dp_sgd give one"
)
NO_SCORES = "no test_data: loss and accuracy stay empty, parties tell nothing of theirs"
FEW = (
    "noise for {n} hides little or spoils much: what hides one of them hides what all "
    "have learned; below about {few} parties dp_sgd, which hides single samples, gives "
    "better models"
)


@dataclass(frozen=True)
class PrivacyForecast:
    """What a whole run would spend of the privacy of one party, or of one sample.

    unit : party | sample.
    n : parties that share a model, or samples of the party that has fewest.
    epsilon : after all rounds; None: not known before the parties' data are.
    limit : epsilon at which the run, or the party, stops.
    last_round : the last round that keeps to the limit.
    """

    unit: str
    n: int | None
    delta: float
    noise_multiplier: float | None
    epsilon: float | None
    against: str
    rounds: int
    limit: float | None = None
    last_round: int | None = None
    known_draws: float | None = None  # epsilon against those who see who was drawn

    def lines(self) -> list[str]:
        """Sentences for people: what holds, then what is to be thought of."""
        lines = [self._claim(), f"it holds against {self.against}"]
        if self.known_draws is not None:
            lines.append(f"against those who do, epsilon is {self.known_draws:.4g}")
        lines.append(_in_words(self.unit, self.epsilon, self.delta))
        lines += self.warnings()
        return [*lines, SPENT_TOGETHER.format(_plural(self.unit))]

    def warnings(self) -> list[str]:
        """What most likely is not meant."""
        warnings = []
        most = advised_delta(self.n)
        if self.delta > most:
            of = ""
            if self.n:
                of = f" with {format_count(self.n, self.unit, _plural(self.unit))}"
            warnings.append(
                f"delta {self.delta:g} is large{of}: {most:.2g} or less leaves little "
                "chance that one is told everything about"
            )
        if self.epsilon is not None and self.epsilon > LARGE_EPSILON:
            warnings.append(
                f"epsilon {self.epsilon:.4g} is large: above {LARGE_EPSILON:g} it "
                "bounds hardly anything that an attacker can tell"
            )
        if self.unit == PARTY and self.n is not None and self.n < FEW_PARTIES:
            n = format_count(self.n, "party", "parties")
            warnings.append(FEW.format(n=n, few=FEW_PARTIES))
        if self.last_round is not None and self.last_round < self.rounds:
            rounds = format_count(self.rounds, "round")
            warnings.append(
                f"epsilon {self.limit:g} is spent after round {self.last_round} of "
                f"{rounds}: it ends there; more noise, or fewer rounds, spend less"
            )
        return warnings

    def _claim(self) -> str:
        noise = self.noise_multiplier
        of_noise = "" if noise is None else f", noise multiplier {noise:.4g}"
        if self.epsilon is None:
            limit = "" if self.limit is None else f" at most {self.limit:g}"
            return (
                f"epsilon{limit} at delta {self.delta:g} for each {self.unit}"
                f"{of_noise}; it depends on the parties' sample counts"
            )
        rounds = format_count(self.rounds, "round")
        return (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} for each {self.unit} "
            f"after {rounds}{of_noise}"
        )


def advised_delta(n: int | None) -> float:
    """The largest delta that is advised with n parties, or samples."""
    return MAX_DELTA if not n else min(MAX_DELTA, 1 / (10 * n))


def forecast_privacy(
    config: FederationConfig, n_samples: Collection[int] = ()
) -> list[PrivacyForecast]:
    """What a run of this config would spend, of parties' and of samples' privacy.

    n_samples : training samples of parties, as far as they are known.

    Raises
    ------
    ConfigError
        If the noise that the config asks for cannot be made.
    """
    forecasts = []
    if config.noise_for_parties:
        forecasts.append(_of_parties(config))
    if config.dp_sgd:
        forecasts.append(_of_samples(config, min(n_samples, default=None)))
    problems = [
        f"{KEYS[one.unit]}.epsilon: {one.limit:g} is less than one round spends with "
        f"noise_multiplier {one.noise_multiplier:g}: raise either, or there is no model"
        for one in forecasts
        if one.last_round == 0
    ]
    if problems:
        raise ConfigError(problems)
    return forecasts


def privacy_notes(config: FederationConfig) -> list[str]:
    """What else is to be known of a run with privacy."""
    notes = []
    if config.noise_for_parties and config.fusion_algorithm == "fedavg":
        notes.append(EQUAL_WEIGHTS)
    if config.privacy_mechanisms == ("secure_aggregation",):
        notes.append(SUMS_ALONE)
    if config.privacy_mechanisms and not config.test_data:
        notes.append(NO_SCORES)
    if config.secure_aggregation:
        notes += describe_sums(config)
    return notes


def _of_parties(config: FederationConfig) -> PrivacyForecast:
    privacy, n_parties = config.privacy, config.fewest_parties
    assert privacy is not None
    assert privacy.delta is not None
    terms = settings_of(config, n_parties or 1, 1, 1.0)
    z, delta = privacy.noise_multiplier, privacy.delta
    plan = plan_of(terms, config.rounds)
    if z is None:
        assert privacy.epsilon is not None
        z = noise_multiplier_for(privacy.epsilon, delta, plan)
    if terms.is_adaptive and n_parties:
        try:
            adaptive_clip.vector_multiplier(z, terms.expected)
        except ValueError as error:
            raise ConfigError([str(error)]) from None
    is_hidden = terms.sampling == POISSON
    how = terms.sampling if config.noise_for_parties == "central" else "distributed"
    return PrivacyForecast(
        PARTY, n_parties, delta, z, plan.epsilon(z, delta), AGAINST[how],
        config.rounds, privacy.epsilon, _last_round(plan, z, delta, privacy.epsilon),
        dataclasses.replace(plan, rate=1.0).epsilon(z, delta) if is_hidden else None,
    )  # fmt: skip


def _of_samples(config: FederationConfig, n: int | None) -> PrivacyForecast:
    """Of a sample of the party that has fewest: its samples are in most batches."""
    spec = config.dp_sgd
    assert spec is not None
    z, epsilon, last = spec.noise_multiplier, None, None
    if n:
        rate, n_steps = sampling_plan(
            n, config.batch_size, config.epochs, config.local_steps
        )
        plan = Plan(config.rounds, DP_SGD, POISSON, rate, steps=n_steps)
        if z is None:
            assert spec.epsilon is not None
            z = noise_multiplier_for(spec.epsilon, spec.delta, plan)
        epsilon = plan.epsilon(z, spec.delta)
        last = _last_round(plan, z, spec.delta, spec.epsilon)
    return PrivacyForecast(
        SAMPLE, n, spec.delta, z, epsilon, AGAINST[SAMPLE],
        config.rounds, spec.epsilon, last,
    )  # fmt: skip


def _last_round(
    plan: Plan, noise_multiplier: float, delta: float, limit: float | None
) -> int | None:
    """The last round within the limit; None without one."""
    if limit is None:
        return None
    low, high = 0, plan.rounds + 1
    while high - low > 1:
        middle = (low + high) // 2
        is_within = plan.epsilon(noise_multiplier, delta, middle) <= limit
        low, high = (middle, high) if is_within else (low, middle)
    return low


def _in_words(unit: str, epsilon: float | None, delta: float) -> str:
    """What epsilon and delta mean, for someone who has not met them."""
    chance = f"one in {1 / delta:,.0f}"
    but = f"delta is the chance, {chance} at most, that this fails"
    times = None if epsilon is None else how_many_times(epsilon)
    if times is None:
        return but
    return (
        f"that is: whatever one concludes becomes at most {times} times as likely by "
        f"one {unit}'s data; {but}"
    )


def _plural(unit: str) -> str:
    return "parties" if unit == PARTY else f"{unit}s"
