"""Whether a party's data may be trained on with DP-SGD: pure decisions.

Two limits hold: that of the data over all runs, which is its owner's, and that of the
run, which its config gives. Epsilon is computed from what the ledger has.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedray.errors import BudgetExceeded
from fedray.privacy.accounting import (
    DP_SGD,
    POISSON,
    Plan,
    Release,
    epsilon_of,
    noise_multiplier_for,
)
from fedray.privacy.data_accounts import (
    Accounts,
    DataSet,
    Limit,
    Sampled,
    Spent,
    Training,
)


class RunTerms(NamedTuple):
    """What the config of a run asks of a party's data.

    run : id of the run.
    rounds : of the whole run.
    epsilon : of the whole run; None: as much as its noise costs.
    noise_multiplier : z; None: as much as epsilon needs.
    delta : of epsilon.
    rate, n_steps : q, and the steps of one round.
    """

    run: str
    rounds: int
    epsilon: float | None
    noise_multiplier: float | None
    delta: float
    rate: float
    n_steps: int


class Spending(NamedTuple):
    """Privacy that DP-SGD has spent of parties' data, this round's training included.

    Arrays have one entry for each party that was asked, in config order.

    epsilon : of the data over all its runs, as the party's own ledger has it.
    run_epsilon : of this run alone, at `delta`.
    noise_multiplier, sampling_rate, n_steps : z, q and noised gradients of a round.
    """

    epsilon: np.ndarray
    run_epsilon: np.ndarray
    noise_multiplier: np.ndarray
    sampling_rate: np.ndarray
    n_steps: np.ndarray
    delta: float

    @classmethod
    def unknown(cls, n_parties: int, delta: float) -> "Spending":
        """Columns that are filled in before a training."""
        epsilon, of_run, noise, rate = np.full((4, n_parties), np.nan)
        n_steps = np.zeros(n_parties, np.int64)
        return cls(epsilon, of_run, noise, rate, n_steps, delta)


class Budget(NamedTuple):
    """What a run has spent and would spend of a data set, all at the limit's delta.

    limit : of the data, over all runs.
    spent : by all runs so far.
    would_be : if the run goes on to its last round.
    """

    limit: Limit
    spent: float
    would_be: float

    @property
    def share(self) -> float:
        """Of the limit, once the run is done."""
        return self.would_be / self.limit.epsilon

    def __str__(self) -> str:
        (limit, delta), spent = self.limit, f"{self.spent:.4g}"
        return (
            f"all rounds of this run bring epsilon of its samples to "
            f"{self.would_be:.4g} of at most {limit:.4g}; spent so far, over all runs: "
            f"{spent} (delta {delta:g})"
        )


def noise_of(accounts: Accounts, data: DataSet, terms: RunTerms) -> float:
    """The noise multiplier of a run's trainings: that of its first one, once there is.

    Other rounds of a resumed run would else give another.
    """
    earlier = accounts.of(data).of_run(terms.run, data) if terms.run else []
    if earlier:
        return earlier[0].noise_multiplier
    if terms.noise_multiplier is not None:
        return terms.noise_multiplier
    assert terms.epsilon is not None
    return _calibrate(
        terms.epsilon, terms.delta, terms.rounds, terms.rate, terms.n_steps
    )


@functools.lru_cache(maxsize=4096)
def _calibrate(
    epsilon: float, delta: float, rounds: int, rate: float, n_steps: int
) -> float:
    plan = Plan(rounds, DP_SGD, POISSON, rate=rate, steps=n_steps)
    return noise_multiplier_for(epsilon, delta, plan)


def epsilon_of_spent(spent: Spent, delta: float) -> float:
    """Epsilon of so many noised gradients; 0 of none."""
    return _epsilon(frozenset((+spent).items()), delta)


@functools.lru_cache(maxsize=4096)
def _epsilon(spent: frozenset[tuple[Sampled, int]], delta: float) -> float:
    releases = [
        Release(z, DP_SGD, POISSON, rate=q, steps=n_steps) for (q, z), n_steps in spent
    ]
    return epsilon_of(releases, delta) if releases else 0.0


def first_limit(terms: RunTerms, noise_multiplier: float) -> Limit:
    """The limit of data whose owner has set none: what its first run may spend."""
    if terms.epsilon is not None:
        return Limit(terms.epsilon, terms.delta)
    whole = Counter({(terms.rate, noise_multiplier): terms.n_steps * terms.rounds})
    return Limit(epsilon_of_spent(whole, terms.delta), terms.delta)


def require_rounds(
    accounts: Accounts, data: DataSet, terms: RunTerms, folder: str
) -> Budget:
    """See whether the data may be trained on in all rounds that a run still has.

    Rounds that it has trained already are not counted twice.

    Raises
    ------
    BudgetExceeded
        If not: before any training.
    """
    done = _of_run(accounts, data, terms)
    n_left = max(0, terms.rounds - len({training.round for training in done}))
    noise = noise_of(accounts, data, terms)
    step = Counter({(terms.rate, noise): terms.n_steps * n_left})
    return _require("this run", step, (accounts, data, terms), folder)


def require_round(
    accounts: Accounts, data: DataSet, terms: RunTerms, training: Training, folder: str
) -> Budget:
    """See whether the data may be trained on once more.

    Raises
    ------
    BudgetExceeded
        If not: before any training.
    """
    what = f"training round {training.round}"
    return _require(what, training.spent, (accounts, data, terms), folder)


def spent_of(accounts: Accounts, data: DataSet, terms: RunTerms) -> float:
    """What all runs have spent of the data, at the delta of its limit."""
    limit = accounts.limit_of(data)
    delta = terms.delta if limit is None else limit.delta
    return epsilon_of_spent(accounts.of(data).spent_by(data), delta)


def epsilon_of_run(accounts: Accounts, data: DataSet, terms: RunTerms) -> float:
    """What this run has spent of the data, at its own delta."""
    return epsilon_of_spent(_sum(_of_run(accounts, data, terms)), terms.delta)


def _require(
    what: str, step: Spent, who: tuple[Accounts, DataSet, RunTerms], folder: str
) -> Budget:
    """Compare what would be spent with both limits."""
    accounts, data, terms = who
    limit = accounts.limit_of(data)
    if limit is None:
        limit = first_limit(terms, noise_of(accounts, data, terms))
        if accounts.owner_epsilon is not None:
            limit = limit._replace(epsilon=accounts.owner_epsilon)
    spent = accounts.of(data).spent_by(data)
    before, after = (epsilon_of_spent(s, limit.delta) for s in (spent, spent + step))
    if step and after > limit.epsilon:
        show = f"fedray privacy show {folder}".strip()
        allow = f"fedray privacy limit EPSILON {folder}".strip()
        remedy = f"On its node {show} says of what; its owner may allow more: {allow}"
        is_owners = accounts.owner_epsilon is not None
        by = "set by its owner" if is_owners else "set by its first run"
        numbers = _describe(before, after, limit, by)
        whose = "the party's data over all runs"
        raise BudgetExceeded(what, whose, numbers, remedy)
    _require_of_run(what, step, who)
    return Budget(limit, before, after)


def _require_of_run(
    what: str, step: Spent, who: tuple[Accounts, DataSet, RunTerms]
) -> None:
    accounts, data, terms = who
    if terms.epsilon is None or not step:
        return
    own = _sum(_of_run(accounts, data, terms))
    before, after = (epsilon_of_spent(s, terms.delta) for s in (own, own + step))
    if after > terms.epsilon:
        remedy = "Take fewer rounds, more noise or a larger epsilon for dp_sgd"
        limit = Limit(terms.epsilon, terms.delta)
        numbers = _describe(before, after, limit, "dp_sgd.epsilon")
        raise BudgetExceeded(what, "this run", numbers, remedy)


def _describe(before: float, after: float, limit: Limit, by: str) -> str:
    """What epsilon would be beside its limit, in as many digits as tell them apart.

    by : who has set the limit, or what.
    """
    digits = 4 if f"{after:.4g}" != f"{limit.epsilon:.4g}" else 8
    return (
        f"to {after:.{digits}g}, its limit is {limit.epsilon:.{digits}g} ({by}); "
        f"spent so far: {before:.4g} (delta {limit.delta:g})"
    )


def _of_run(accounts: Accounts, data: DataSet, terms: RunTerms) -> list[Training]:
    return accounts.of(data).of_run(terms.run, data) if terms.run else []


def _sum(trainings: Iterable[Training]) -> Spent:
    total: Spent = Counter()
    for training in trainings:
        total.update(training.spent)
    return total
