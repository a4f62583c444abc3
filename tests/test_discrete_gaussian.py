"""The discrete Gaussian: probabilities by chi-square, moments, exact fallbacks."""

import math
from decimal import Context, Decimal
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from fedray.privacy import discrete_gaussian
from fedray.privacy.discrete_gaussian import add_noise

KEY = bytes(range(32))  # fixed, so that no test fails by chance


def samples(n, variance, key=KEY):
    vector = np.zeros(n, np.int64)
    add_noise(vector, variance, key)
    return vector


def p_value(drawn, variance):
    """Chi-square against exp(-x^2 / (2 variance)), normalised; tails in two cells."""
    reach = math.ceil(4 * variance**0.5)
    far = range(-40 * math.isqrt(variance) - 60, 40 * math.isqrt(variance) + 61)
    weights = {x: math.exp(-x * x / (2 * variance)) for x in far}
    whole = math.fsum(weights.values())
    cells = range(-reach, reach + 1)
    wanted = [weights[x] / whole for x in cells]
    tail = math.fsum(w for x, w in weights.items() if x > reach) / whole
    wanted = np.array([tail, *wanted, tail]) * len(drawn)
    counts = [(drawn < -reach).sum(), *((drawn == x).sum() for x in cells)]
    counts.append((drawn > reach).sum())
    busy = wanted > 5
    rest = [[np.sum(a, where=~busy)] for a in (np.array(counts), wanted)]
    rest = [[], []] if rest[1][0] == 0 else rest
    return stats.chisquare(
        [*np.array(counts)[busy], *rest[0]], [*wanted[busy], *rest[1]]
    ).pvalue


@pytest.mark.parametrize("variance", [1, 2, 3, 10, 100, 1000])
def test_probabilities_are_those_of_the_discrete_gaussian(variance):
    assert p_value(samples(200_000, variance), variance) > 0.001


def test_another_distribution_is_noticed():
    assert p_value(samples(200_000, 105), 100) < 1e-6
    rounded = np.rint(np.random.default_rng(1).normal(0, 1, 200_000)).astype(int)
    assert p_value(rounded, 1) < 1e-6  # a rounded Gaussian is another one


@pytest.mark.parametrize("variance", [2**30, 2**54])
def test_a_wide_one_is_near_the_gaussian(variance):
    drawn = samples(200_000, variance) / variance**0.5
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    assert abs(drawn.var() - 1) < 5 * (2 / 200_000) ** 0.5
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / 200_000**0.5


def test_what_is_close_is_decided_by_further_bits_to_the_same_distribution():
    """With a claimed error of 2^-4 nearly every comparison takes the exact path."""
    with mock.patch.object(discrete_gaussian, "ERROR", 2.0**-4):
        drawn = samples(1000, 10)
    assert p_value(drawn, 10) > 0.001


def words_of(*values):
    """Further random words, least significant first."""
    queue = list(values)
    return lambda n: np.array([queue.pop(0) for _ in range(n)], np.uint64)


def test_exact_comparisons_by_hand():
    """-3 log(1/2) = 2.0794; U in [1/2, 1/2 + 2^-53)."""
    assert discrete_gaussian._exact_floor(2**52, 3, words_of()) == 2
    # U in [0, 2^-53): the next 256 bits say 2^-53 * (1 - 2^-256): -3 log = 110.21
    ones = [2**64 - 1] * 4
    assert discrete_gaussian._exact_floor(0, 3, words_of(*ones)) == 110
    # zeros all along would be 0: further words are asked for, then U = 2^-310
    assert (
        discrete_gaussian._exact_floor(0, 3, words_of(0, 0, 0, 0, 0, 0, 0, 2**63))
        == 644
    )
    # exp(-1) = 0.36787944...: the 53 bits that begin it, decided by those that follow
    context = Context(prec=200)
    bound = int(context.scaleb(Decimal(-1).exp(context), 180))
    begin, rest = divmod(bound * 2**53, 10**180)
    further = rest * 2**256 // 10**180
    for change, wanted in ((-1, True), (1, False)):
        number = further + change
        words = [number >> (64 * i) & (2**64 - 1) for i in range(4)]
        below = discrete_gaussian._exact_below(begin, 7, 7, words_of(*words, *ones))
        assert below is wanted


def test_keys_decide_and_fresh_ones_are_fresh():
    assert (samples(1000, 50) == samples(1000, 50)).all()
    assert (samples(1000, 50) != samples(1000, 50, bytes(32))).any()
    assert (samples(1000, 50, None) != samples(1000, 50, None)).any()


def test_noise_is_added_in_place_and_wraps_around():
    vector = np.full(100_000, 2**31 - 1, np.int32)
    add_noise(vector, 4, KEY)
    noise = (vector.astype(np.int64) - (2**31 - 1) + 2**31) % 2**32 - 2**31
    assert (noise == samples(100_000, 4)).all()
