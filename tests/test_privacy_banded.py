"""Banded noise of cyclic rounds and adaptive clipping, against their formulas."""

import itertools
import math

import numpy as np
import pytest

from fedray.config import parse
from fedray.federation.memory_estimate import noise_notes
from fedray.privacy import adaptive_clip, banded
from fedray.privacy.banded import UNIT, BandedNoise, column_norm, n_participations
from fedray.privacy.grid import GRID
from fedray.privacy.noise import GaussianStream, NoiseScale, add_noise
from fedray.weights import Form

KEYS = [bytes([i]) * 32 for i in range(40)]
SCALE = NoiseScale(1000.0)


def matrix(band: int, rounds: int) -> np.ndarray:
    """The banded lower triangular matrix C, (rounds, rounds)."""
    c = np.array(banded.coefficients(band)) / UNIT
    whole = np.zeros((rounds, rounds))
    for i, j in itertools.product(range(rounds), repeat=2):
        if 0 <= i - j < band:
            whole[i, j] = c[i - j]
    return whole


def test_coefficients_are_those_of_the_square_root_of_running_sums():
    by_hand = [1, 1 / 2, 3 / 8, 5 / 16, 35 / 128]
    assert banded.coefficients(5) == [round(c * UNIT) for c in by_hand]
    full = matrix(30, 30)
    assert np.abs(full @ full - np.tril(np.ones((30, 30)))).max() < 1e-3
    assert column_norm(1) == 1
    assert column_norm(3) == pytest.approx(math.sqrt(1 + 1 / 4 + 9 / 64))


@pytest.mark.parametrize(("rounds", "n_turns"), [(12, 4), (13, 4), (7, 3), (5, 1)])
def test_no_party_moves_the_mechanism_by_more_than_its_sensitivity(rounds, n_turns):
    """All patterns of turns and of directions: ‖C x‖ <= √k |c|, and it is reached."""
    size = banded.band_size(n_turns, 16)
    whole, k = matrix(size, rounds), n_participations(rounds, n_turns)
    lengths = []
    for first in range(n_turns):
        turns = range(first, rounds, n_turns)
        assert len(turns) <= k
        for signs in itertools.product((1, -1), repeat=len(turns)):
            x = np.zeros(rounds)
            x[list(turns)] = signs
            lengths.append(np.linalg.norm(whole @ x))
    most = math.sqrt(k) * column_norm(size)
    assert max(lengths) <= most * (1 + 1e-12)
    if rounds % n_turns == 0 and n_turns == 4:
        assert max(lengths) > 0.9 * most


def test_noise_of_rounds_is_new_noise_less_that_of_the_rounds_before():
    """C n is the new noise ζ, but for the rounding of each n to an integer."""
    size, band, rounds, k = 5000, 3, 6, 2
    source = BandedNoise(band, k)
    factor = math.sqrt(k) * column_norm(band)
    n = np.array([source.next(size, key, SCALE) for key in KEYS[:rounds]])
    new = np.array(
        [GaussianStream(key).numbers(0, size) * 1000 * factor for key in KEYS[:rounds]]
    )
    assert np.abs(matrix(band, rounds) @ n - new).max() <= 0.5 + 1e-6
    assert n.dtype == np.int64


def test_a_band_of_one_round_is_noise_without_memory():
    total = np.zeros(70_000, np.int64)
    add_noise(total, KEYS[0], SCALE)
    source = BandedNoise(1, 1)
    assert (source.next(70_000, KEYS[0], SCALE) == total).all()
    assert source.past == []


def test_noise_goes_on_from_a_past_that_was_stored():
    size = 70_001
    whole, first = BandedNoise(4, 3), BandedNoise(4, 3)
    counted = NoiseScale(1e7, 3.0)
    once = [whole.next(size, key, counted) for key in KEYS[:7]]
    for key in KEYS[:5]:
        first.next(size, key, counted)
    stored = [array.copy() for array in first.past]
    assert len(stored) == 3
    narrow = [array.astype(np.int32) for array in stored]  # as a file may hold them
    resumed = BandedNoise(4, 3, narrow)
    again = [resumed.next(size, key, counted) for key in KEYS[5:7]]
    for a, b in zip(once[5:], again, strict=True):
        assert (a == b).all()
    assert np.std(once[6][:-1]) > 1e7
    assert abs(once[6][-1]) < 100


def test_a_past_of_another_size_is_refused():
    with pytest.raises(ValueError, match="has not 5 numbers"):
        BandedNoise(3, 1, [np.zeros(4, np.int64)]).next(5, KEYS[0], SCALE)


def test_errors_of_running_sums_are_less_than_with_independent_noise():
    """32 rounds, a party in every 8th: of equal privacy, the sum is off by less."""
    size, rounds, n_turns = 4000, 32, 8
    k, band = n_participations(rounds, n_turns), banded.band_size(n_turns, 16)
    source = BandedNoise(band, k)
    correlated = sum(source.next(size, key, SCALE) for key in KEYS[:rounds])
    independent = np.zeros(size, np.int64)
    for key in KEYS[:rounds]:
        add_noise(independent, key, NoiseScale(1000 * math.sqrt(k)))
    assert np.std(correlated) < 0.7 * np.std(independent)


def test_a_check_says_what_memory_the_noise_of_earlier_rounds_takes():
    """By hand: 4 turns, so 3 rounds of 8 bytes for each of 10⁶ numbers."""
    schema = {"w": Form((1000, 1000), "float32"), "n": Form((), "int64")}
    common = {"architecture": "x.py:y", "num_parties": 40, "rounds": 8}
    common |= {"partition": {"samples_per_party": 9}, "party_fraction": 0.25}
    privacy = {"mechanism": "central", "noise_multiplier": 1, "delta": 1e-3}
    privacy |= {"clip_norm": 1, "sampling": "cyclic"}
    cyclic, _ = parse(common | {"privacy": privacy})
    (note,) = noise_notes(cyclic, schema)
    assert "24.0 MB in memory" in note
    for own in ({"sampling": "poisson"}, {"band": 1}):
        other, _ = parse(common | {"privacy": privacy | own})
        assert noise_notes(other, schema) == []
    assert noise_notes(parse(common)[0], schema) == []


def test_counts_and_sums_share_what_one_release_may_cost():
    """By hand: z = 1, m = 40, so 2σ_b = 4 and z_Δ = (1 − 1/16)^(−½)."""
    scale = adaptive_clip.noise_scale(1.0, 40, is_adaptive=True)
    assert scale.vector == pytest.approx(GRID * (15 / 16) ** -0.5)
    assert scale.count == 4
    shares = (GRID / scale.vector) ** 2 + (1 / scale.count) ** 2
    assert shares == pytest.approx(1)  # z⁻²: a ±1 moves the count by 1
    assert adaptive_clip.noise_scale(1.5, 40, False) == NoiseScale(1.5 * GRID)


@pytest.mark.parametrize("z", [4.0, 5.0])
def test_too_much_noise_for_an_adaptive_clip_norm_is_an_error_with_what_to_do(z):
    with pytest.raises(ValueError, match=r"parties a round.*give clip_norm a number"):
        adaptive_clip.vector_multiplier(z, 40)


def test_the_clip_norm_falls_if_most_are_within_and_grows_if_most_are_not():
    """By hand: 30 of 40 within, count 30 − 10 = 20; b = ½ + ½ · 20/40 = ¾."""
    assert adaptive_clip.next_clip_norm(2.0, 20, 40) == pytest.approx(
        2 * math.exp(-0.2 * 0.25)
    )
    assert adaptive_clip.next_clip_norm(2.0, -40, 40) == pytest.approx(
        2 * math.exp(0.1)
    )
    assert adaptive_clip.next_clip_norm(2.0, 0, 40) == 2  # nobody reported: it stays


def test_the_clip_norm_finds_the_median_of_the_parties_lengths():
    rng, clip_norm = np.random.default_rng(0), 0.01
    lengths = rng.lognormal(1.0, 0.5, 400)
    for key in range(120):
        count = np.array([2 * (lengths <= clip_norm).sum() - 400])
        add_noise(count, bytes([key]) * 32, NoiseScale(1.0, 2 * 400 / 20))
        clip_norm = adaptive_clip.next_clip_norm(clip_norm, float(count[0]), 400)
    assert clip_norm == pytest.approx(np.median(lengths), rel=0.15)


def test_a_clip_norm_stays_where_differences_can_be_clipped_to_it():
    assert adaptive_clip.next_clip_norm(1e-30, 1e9, 1) == 1e-30
    assert adaptive_clip.next_clip_norm(1e30, -1e9, 1) == 1e30
