"""Accounting of privacy: published numbers, closed forms, an oracle, what must grow."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config import parse
from fedray.config.privacy import LEAST_OF_PARTIES
from fedray.errors import ConfigError
from fedray.privacy.accounting import (
    Plan,
    Release,
    epsilon_of,
    noise_multiplier_for,
)
from fedray.privacy.banded import UNIT, coefficients
from fedray.privacy.banded_cost import banded_cost
from fedray.privacy.gaussian import (
    delta_of_mu,
    epsilon_of_mu,
    log_normal_cdf,
    mu_for,
)
from fedray.privacy.loss_distribution import epsilon_of_sampled, rounded_losses
from fedray.privacy.renyi import (
    ORDERS,
    epsilon_of_curve,
    poisson_curve,
    renyi_of_poisson,
)

NOISE = st.floats(0.3, 20)
DELTA = st.sampled_from([1e-3, 1e-5, 1e-9])
PLANS = (
    Plan(20),
    Plan(1),
    Plan(60, sampling="cyclic", cycle=10, band=10),
    Plan(65, sampling="cyclic", cycle=10, band=4),
    Plan(5, sampling="cyclic", cycle=10, band=10),
    Plan(100, sampling="poisson", rate=0.1),
    Plan(1, sampling="poisson", rate=0.5),
    Plan(50, mechanism="distributed"),
    Plan(15, mechanism="dp_sgd", sampling="poisson", rate=0.1, steps=10),
    Plan(4, mechanism="dp_sgd", sampling="poisson", rate=1.0, steps=3),
)


def poisson(n, rate, z, **more):
    """Releases of n rounds with parties drawn by chance."""
    return [
        Release(z, sampling="poisson", rate=rate, round=i, **more)
        for i in range(1, n + 1)
    ]


def rounds_of(plan, z):
    """The releases of a plan's rounds, one by one."""
    turns = -(-plan.rounds // plan.cycle)
    return [
        Release(
            z, plan.mechanism, plan.sampling, plan.rate, plan.cycle, plan.band,
            turns, plan.steps, round=i,
        )
        for i in range(1, plan.rounds + 1)
    ]  # fmt: skip


def by_old_conversion(q, z, n, delta):
    """Epsilon as the papers of 2016-2018 had it, with moments of whole orders."""
    return min(
        n * renyi_of_poisson(q, z, moment + 1) + math.log(1 / delta) / moment
        for moment in range(1, 33)
    )


# --- published numbers


def test_abadi_2016_section_3_is_reproduced():  # arXiv:1607.00133: q 1 %, E = 100
    assert round(by_old_conversion(0.01, 4.0, 10_000, 1e-5), 2) == 1.26


def test_mcmahan_2018_table_1_is_reproduced():  # arXiv:1710.06963: 5,000 users, z = 1
    for n_users, epsilon in ((763_430, 4.634), (100_000_000, 1.152)):
        found = by_old_conversion(5000 / n_users, 1.0, 5000, 1e-9)
        assert round(found, 3) == epsilon


def test_the_adaptive_clip_counted_with_wrong_bits_would_cost_more_than_claimed():
    claimed = epsilon_of([Release(5.0)] * 60, 1e-5)
    z_sum = (5.0**-2 - (2 * 5.0) ** -2) ** -0.5  # count's deviation 5: m = 100
    with_bits_0_1 = 60 * (z_sum**-2 + 5.0**-2)  # a vote moves the count by 1
    assert round(claimed, 2) == 7.33
    assert round(epsilon_of_mu(math.sqrt(with_bits_0_1), 1e-5), 1) == 10.3


# --- numbers of other implementations, in an environment of their own: dp-accounting
# 0.6.0, opacus 1.6.0 and mpmath 1.3 beside numpy 2.4.6, scipy 1.17.1, Python 3.11
# RdpAccountant of these orders, PoissonSampledDpEvent(q, GaussianDpEvent(z)) once: _rdp
ORDERS_OF_ORACLE = (2, 4, 8, 16, 32, 64)
DIVERGENCES = {
    (0.01, 1.0): (
        0.00017181342207455162, 0.0003631540489107668, 0.000893643907606041,
        3.087850783696245, 11.246275937048072, 27.32173187455178,
    ),
    (0.1, 1.0): (
        0.017036863236176605, 0.05867260696008056, 1.3783614113481268,
        5.5439121709021215, 13.623137968522595, 29.66086593727589,
    ),
    (0.001, 0.7): (
        6.696867386303846e-06, 1.4042048652124559e-05, 0.28959291651115143,
        8.958258314718012, 25.522475130056627, 58.28872026080727,
    ),
    (0.5, 3.0): (
        0.02895645308460898, 0.06138610481147527, 0.13915729037453556,
        0.3653536532261714, 1.096740110473827, 2.85233511604728,
    ),
    (0.3, 0.4): (
        3.861385374365375, 10.894702949947456, 23.624031080770354,
        48.71576234205233, 98.75718936327642, 198.7769165162403,
    ),
    (0.0001, 2.0): (
        2.84025416284028e-09, 5.680861541077022e-09, 1.1363136323844834e-08,
        2.273192866280055e-08, 4.548650580893852e-08, 9.106380156442221e-08,
    ),
}  # fmt: skip
# mpmath.quad of the definition with 30 digits; dp-accounting's series for such orders
# gives up to 1 % more ((0.5, 3.0), order 3.25: 0.04944250359624328), or infinity
BROKEN_ORDERS = (
    (0.01, 1.0, 1.5, 0.00012725374332744983), (0.1, 1.0, 1.5, 0.011734592196685236),
    (0.1, 1.0, 3.25, 0.03677054927787732), (0.5, 3.0, 3.25, 0.04878158264682235),
    (0.001, 0.7, 1.5, 4.974055094103715e-06), (0.3, 0.4, 1.5, 1.7652382658976988),
)  # fmt: skip
# PLDAccountant(ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4; 2e-5 for 5000)
# .compose(event, n).get_epsilon(delta); RdpAccountant's with its own orders
EPSILONS = (  # q, z, n, delta, by losses, by Rényi
    (0.01, 1.0, 1000, 1e-5, 1.8282436455855091, 2.101366525420273),
    (0.1, 1.0, 100, 1e-5, 7.04660287720805, 7.903850223578231),
    (0.1, 0.5**0.5, 100, 1e-5, 14.27496741124475, 16.098075423015878),
    (0.1, 1.0, 200, 1e-5, 9.971275033604774, 11.063104146796084),
    (0.001, 1.0, 5000, 1e-5, 0.33175963824244126, 0.7266407511899633),
    (0.1, 1.0, 150, 1e-3, 6.005481781049058, 7.033227038259671),
    (0.1, 2.0, 150, 1e-3, 1.9480319377586228, 2.2513023206829503),
    (0.02, 0.6, 50, 1e-8, 8.148254345630699, 9.390964956782044),
    (0.5, 10.0, 20, 1e-6, 0.9643339618529402, 1.0430513639259114),
)
MIXED = 5.261205916163937  # PLDAccountant: 50 of q 0.1, z 1; one of z 4; delta 1e-5
# opacus's PRVAccountant with history [(z, q, n)], whose errors are at most 0.01
OPACUS = (
    (0.1, 1.0, 150, 1e-3, 6.01610982497942), (0.1, 2.0, 150, 1e-3, 1.95826807386155),
    (0.01, 1.0, 1000, 1e-5, 1.838371637017295),
)  # fmt: skip


def test_renyi_divergences_are_the_oracles():
    for (q, z), expected in DIVERGENCES.items():
        for order, divergence in zip(ORDERS_OF_ORACLE, expected, strict=True):
            found = renyi_of_poisson(q, z, order)
            assert found == pytest.approx(divergence, rel=1e-9, abs=1e-14)
    for q, z, order, divergence in BROKEN_ORDERS:
        assert renyi_of_poisson(q, z, order) == pytest.approx(divergence, rel=1e-9)


@pytest.mark.parametrize("numbers", EPSILONS)
def test_epsilon_of_sampled_rounds_is_the_oracles(numbers):
    q, z, n, delta, by_losses, by_renyi = numbers
    spent = epsilon_of(poisson(n, q, z), delta)
    assert by_losses * 0.9999 <= spent <= by_losses * 1.001
    curve, orders = n * poisson_curve(q, z), np.array(ORDERS)
    own = epsilon_of_curve(curve, orders, delta)
    assert spent <= own <= by_renyi * 1.01
    in_batches = Release(z, "dp_sgd", "poisson", rate=q, steps=n)
    assert epsilon_of([in_batches], delta) == spent


def test_epsilon_of_rounds_and_a_whole_release_is_the_oracles():
    spent = epsilon_of([*poisson(50, 0.1, 1.0), Release(4.0)], 1e-5)
    assert spent == pytest.approx(MIXED, rel=1e-3)


def test_epsilon_is_within_the_errors_of_opacus():
    for q, z, n, delta, expected in OPACUS:
        assert epsilon_of(poisson(n, q, z), delta) == pytest.approx(expected, abs=0.02)


# --- closed forms


@pytest.mark.parametrize("x", [-1000.0, -35.5, -34.5, -8.0, -1.0, 0.0, 1.0, 8.0])
def test_the_normal_distribution_keeps_its_digits_in_the_tail(x):
    # log P = -x²/2 - log(2π)/2 + log of Mills' ratio, as a continued fraction
    if x > -5:
        expected = math.log((1 + math.erf(x / math.sqrt(2))) / 2)
    else:
        ratio = 0.0
        for n in range(500, 0, -1):
            ratio = n / (-x + ratio)
        expected = -(x**2) / 2 - math.log(2 * math.pi) / 2 - math.log(-x + ratio)
    assert log_normal_cdf(x) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_delta_without_epsilon_is_the_distance_of_two_normal_distributions():
    for mu in (1e-6, 0.1, 1.0, 5.0):  # total variation: 2 Φ(mu / 2) - 1
        assert delta_of_mu(mu, 0.0) == pytest.approx(math.erf(mu / math.sqrt(8)), 1e-9)


def test_renyi_of_whole_orders_is_the_binomial_sum():
    # Mironov et al. 2019, arXiv:1908.10530, Section 3.3, with Python's integers
    for q, z in ((0.01, 1.0), (0.3, 0.4), (0.001, 0.7), (0.5, 10.0), (1e-5, 2.0)):
        for order in (2, 3, 8):
            moment = math.fsum(
                math.comb(order, k)
                * (1 - q) ** (order - k)
                * q**k
                * math.exp(k * (k - 1) / (2 * z * z))
                for k in range(order + 1)
            )
            expected = math.log(moment) / (order - 1)
            assert renyi_of_poisson(q, z, order) == pytest.approx(expected, abs=1e-12)


def test_loss_distribution_without_sampling_is_the_exact_gaussian():
    for n, z, delta in (
        (5, 5.0, 1e-5),
        (1, 0.7, 1e-3),
        (100, 1.0, 1e-9),
        (3, 40.0, 1e-6),
    ):
        exact = epsilon_of_mu(math.sqrt(n) / z, delta)
        found = epsilon_of_sampled({(1.0, z): n}, delta)
        assert exact <= found <= exact * 1.001


def test_rounded_losses_are_two_distributions_with_that_ratio():
    own, other = rounded_losses(0.1, 1.0, 0.01)
    assert own.mass.sum() + own.infinite == pytest.approx(1)
    assert other.mass.sum() + other.infinite == pytest.approx(1)
    ratio = other.mass[::-1] * np.exp(own.losses)  # P = Q exp(loss)
    np.testing.assert_allclose(own.mass, ratio, rtol=1e-9, atol=1e-300)


def test_one_sampled_release_has_the_delta_of_its_two_densities():
    q, z, epsilon = 0.1, 1.0, 1.0
    x = np.linspace(-15, 16, 2_000_001)
    without = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    with_ = (1 - q) * without + q * np.exp(-((x - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    gap = np.clip(with_ - math.exp(epsilon) * without, 0, None)
    delta = float(gap.sum() * (x[1] - x[0]))
    assert epsilon_of(poisson(1, q, z), delta) == pytest.approx(epsilon, rel=1e-3)


# --- how releases add up


def test_releases_with_noise_of_their_own_add_up_as_one_gaussian():
    spent = epsilon_of([Release(2.0), Release(3.0), Release(6.0)], 1e-5)
    assert spent == epsilon_of_mu(math.sqrt(1 / 4 + 1 / 9 + 1 / 36), 1e-5)


def test_no_release_spends_nothing_and_one_without_noise_everything():
    assert epsilon_of([], 1e-5) == 0
    assert epsilon_of([Release(1.0), Release(0.0)], 1e-5) == math.inf


def test_a_round_released_twice_counts_as_one_draw_with_less_noise():
    rounds = poisson(100, 0.1, 1.0, key="k")
    again = epsilon_of([*rounds, *rounds], 1e-5)
    assert again == epsilon_of(poisson(100, 0.1, math.sqrt(0.5)), 1e-5)
    others = poisson(100, 0.1, 1.0, key="lost")  # another key draws others
    assert epsilon_of([*rounds, *others], 1e-5) < 0.75 * again


def test_runs_with_the_same_parties_add_up():
    runs = [Release(5.0, run=run) for run in ("a", "b")]
    assert epsilon_of(runs, 1e-5) == epsilon_of([Release(5.0)] * 2, 1e-5)
    draws = [*poisson(9, 0.1, 1.0, run="a"), *poisson(9, 0.1, 1.0, run="b")]
    assert epsilon_of(draws, 1e-5) == epsilon_of(poisson(18, 0.1, 1.0), 1e-5)


def test_sampled_and_other_releases_add_up():
    sampled, plain = poisson(50, 0.1, 1.0), Release(4.0)
    both = epsilon_of([*sampled, plain], 1e-5)
    parts = epsilon_of(sampled, 1e-5), epsilon_of([plain], 1e-5)
    assert max(parts) < both < sum(parts)
    whole = Release(4.0, mechanism="distributed")
    assert epsilon_of([*sampled, whole], 1e-5) > both  # no more is proven of it


def test_noise_of_many_parties_is_too_fine_to_differ_from_one_noise():
    deviation = LEAST_OF_PARTIES * 2**20 / math.sqrt(2047)  # of one party
    log_tau = math.log(10 * 2047) - math.pi**2 * deviation**2
    assert log_tau + math.log(1e12) < -1000 * math.log(10)  # with d = 10¹²
    release = Release(LEAST_OF_PARTIES * 0.99, mechanism="distributed")
    assert epsilon_of([release], 1e-5) == math.inf
    spec = {"mechanism": "distributed", "delta": 1e-5, "clip_norm": 1.0}
    _, problems = parse({"privacy": {**spec, "noise_multiplier": 1e-4}})
    assert any("no epsilon is proven below 0.001" in problem for problem in problems)


def test_banded_noise_costs_a_run_one_gaussian_and_a_repeated_round_its_part():
    plan = Plan(60, sampling="cyclic", cycle=10, band=4)
    rounds = rounds_of(plan, 5.0)
    assert epsilon_of(rounds, 1e-5) == pytest.approx(epsilon_of_mu(1 / 5, 1e-5))
    c_squared = 1 + 1 / 4 + 9 / 64 + 25 / 256
    mu = math.sqrt(1 + 1 / (6 * c_squared)) / 5  # k = 6 turns
    again = [*rounds, rounds[20]]
    assert epsilon_of(again, 1e-5) == pytest.approx(epsilon_of_mu(mu, 1e-5), rel=1e-5)


def test_banded_cost_is_the_longest_step_of_a_partys_turns_through_the_matrix():
    rounds, cycle, band = 23, 5, 3
    c = [value / UNIT for value in coefficients(band)]
    matrix = sum(c[j] * np.eye(rounds, k=-j) for j in range(band))
    steps = [matrix[:, first::cycle].sum(axis=1) for first in range(cycle)]
    longest = max(float(step @ step) for step in steps)
    releases = [(i, 1.0) for i in range(1, rounds + 1)]
    assert banded_cost(releases, cycle, band) == pytest.approx(longest)


def test_a_run_cut_short_has_spent_less():
    rounds = rounds_of(Plan(60, sampling="cyclic", cycle=10, band=10), 2.0)
    spent = [epsilon_of(rounds[:n], 1e-5) for n in range(0, 61, 6)]
    assert spent == sorted(spent)
    assert spent[0] == 0 < spent[1] < spent[-1] / 2


def test_a_participants_own_cost_holds_without_the_others_lines():
    plan = Plan(60, sampling="cyclic", cycle=10, band=10)
    releases = rounds_of(plan, 3.0)
    own = [one.for_participant() for one in releases if one.round % 10 == 1]
    assert epsilon_of(own, 1e-5) == pytest.approx(epsilon_of(releases, 1e-5))
    sampled = [one.for_participant() for one in poisson(3, 0.1, 2.0)]
    assert epsilon_of(sampled, 1e-5) == epsilon_of([Release(2.0)] * 3, 1e-5)


# --- calibration


@pytest.mark.parametrize("epsilon", [0.1, 2.0, 8.0])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_calibrated_noise_reaches_epsilon_from_below(plan, epsilon):
    z = noise_multiplier_for(epsilon, 1e-5, plan)
    assert 0.99 * epsilon < plan.epsilon(z, 1e-5) <= epsilon


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_calibrated_run_keeps_to_its_limit_line_by_line(plan):
    z = noise_multiplier_for(1.0, 1e-5, plan)
    assert epsilon_of(rounds_of(plan, z), 1e-5) <= 1.0


def test_a_plan_costs_what_its_rounds_cost_one_by_one():
    for plan in PLANS:
        rounds = rounds_of(plan, 3.0)
        for n in {1, plan.rounds // 2, plan.rounds - 1, plan.rounds}:
            expected = epsilon_of(rounds[:n], 1e-5)
            assert plan.epsilon(3.0, 1e-5, n) == pytest.approx(expected, rel=1e-9)


def test_ten_million_rounds_are_planned_at_once():
    for plan in (PLANS[0], PLANS[3], PLANS[7], PLANS[8]):
        many = dataclasses.replace(plan, rounds=10_000_000)
        z = noise_multiplier_for(2.0, 1e-5, many)
        assert 1.98 < many.epsilon(z, 1e-5) <= 2.0


@pytest.mark.parametrize("mechanism", ["central", "distributed"])
def test_an_epsilon_that_no_noise_keeps_to_is_refused(mechanism):
    plan = Plan(1000, mechanism)
    with pytest.raises(ConfigError, match="needed one that noise of at most 1e"):
        noise_multiplier_for(1e-9, 1e-12, plan)


@settings(max_examples=100, deadline=None)
@given(epsilon=st.floats(1e-3, 1e12), delta=st.floats(1e-12, 0.5))
def test_mu_and_epsilon_are_inverse(epsilon, delta):
    again = epsilon_of_mu(mu_for(epsilon, delta), delta)
    assert epsilon * (1 - 1e-6) - 1e-9 <= again <= epsilon * (1 + 1e-9)


# --- what must grow, and what must fall


@settings(max_examples=30, deadline=None)
@given(
    z=NOISE, n=st.integers(1, 300), delta=DELTA, rate=st.sampled_from([0.01, 0.1, 0.7])
)
def test_more_rounds_less_noise_and_more_of_the_parties_cost_more(z, n, delta, rate):
    spent = epsilon_of(poisson(n, rate, z), delta)
    slack = 1e-6 + 2e-3 * spent  # the grid's
    assert spent <= epsilon_of(poisson(n + 5, rate, z), delta) + slack
    assert spent <= epsilon_of(poisson(n, rate, z * 0.9), delta) + slack
    assert spent <= epsilon_of(poisson(n, min(1.0, rate * 1.3), z), delta) + slack
    assert spent <= epsilon_of([Release(z)] * n, delta) + slack
    assert spent >= epsilon_of(poisson(n, rate, z), delta * 2) - slack


@settings(max_examples=100, deadline=None)
@given(z=st.floats(1e-9, 1e6), n=st.integers(1, 200), delta=DELTA)
def test_gaussian_epsilon_grows_with_rounds_and_falls_with_noise(z, n, delta):
    spent = Plan(n).epsilon(z, delta)
    assert spent <= Plan(n + 1).epsilon(z, delta)
    assert spent <= Plan(n).epsilon(z * 0.99, delta)
    assert spent * (1 + 1e-9) >= Plan(n).epsilon(z, delta * 1.1)
    assert spent <= Plan(n, mechanism="distributed").epsilon(z, delta) * 1.001 + 1e-9


@pytest.mark.parametrize("q", [0.0, 1e-6, 0.05, 0.999])
@pytest.mark.parametrize("z", [1e-4, 0.2, 1e6])
@pytest.mark.parametrize("n", [1, 10_000])
def test_extreme_noise_gives_a_number_quickly(q, z, n):
    release = Release(z, mechanism="dp_sgd", sampling="poisson", rate=q, steps=n)
    without_sampling = epsilon_of([Release(z, steps=n)], 1e-5)
    assert 0 <= epsilon_of([release], 1e-5) <= without_sampling


def test_renyi_grows_with_its_order():
    for q, z in ((0.01, 0.5), (0.3, 2.0)):
        curve = poisson_curve(q, z)
        assert len(curve) == len(ORDERS)
        assert (np.diff(curve) >= -1e-14).all()
