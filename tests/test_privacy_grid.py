"""Clipped differences on the integer grid: never longer than they may be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedray.config.privacy import MAX_CLIP, MIN_CLIP
from fedray.privacy import grid
from fedray.privacy.grid import GRID, add_stack, from_grid, radius, to_grid

SHAPES = arrays.array_shapes(max_dims=3, max_side=7)
DTYPES = st.sampled_from([np.float16, np.float32, np.float64])


def finite(dtype: np.dtype, shape: tuple[int, ...]) -> st.SearchStrategy:
    """Any finite floats: denormals, 1e308, signed zeros."""
    width = np.dtype(dtype).itemsize * 8
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=width)
    return arrays.arrays(dtype, shape, elements=numbers)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict, dict]:
    """Weights of several tensors and dtypes, and others of their form."""
    forms = draw(st.lists(st.tuples(DTYPES, SHAPES), min_size=1, max_size=3))
    new = {f"w{i}": draw(finite(*form)) for i, form in enumerate(forms)}
    old = {f"w{i}": draw(finite(*form)) for i, form in enumerate(forms)}
    return new, old


def square_length(values: np.ndarray) -> int:
    return sum(int(x) ** 2 for x in values)


def of(*values: float, dtype: str = "f4") -> dict[str, np.ndarray]:
    return {"w": np.array(values, dtype)}


@settings(deadline=None, max_examples=150)
@given(pairs(), st.floats(MIN_CLIP, MAX_CLIP))
def test_no_finite_weights_give_a_vector_longer_than_the_grid(pair, clip_norm):
    values = to_grid(*pair, clip_norm).values
    assert values.dtype == np.int32
    assert square_length(values) <= GRID**2


@settings(deadline=None, max_examples=60)
@given(pairs(), st.floats(1e-3, 1e3))
def test_a_vector_keeps_the_direction_of_the_difference(pair, clip_norm):
    """Against exact fractions: each number is off by its rounding alone."""
    new, old = ({k: a.astype(object) for k, a in one.items()} for one in pair)
    exact = np.concatenate([(new[k] - old[k]).reshape(-1) for k in old])
    if not np.isfinite(exact.astype(float)).all():
        return
    norm = math.hypot(*map(float, exact))
    if not 0 < norm < 1e150:
        return
    wanted = [float(x) / max(norm, clip_norm) * radius(len(exact)) for x in exact]
    values = to_grid(*pair, clip_norm).values
    assert np.abs(values - np.array(wanted)).max() <= 0.5 + 1e-6


def test_a_difference_within_the_norm_is_scaled_and_one_beyond_is_cut():
    kappa = GRID - math.sqrt(2) / 2
    vector = to_grid(of(3, 4), of(0, 0), clip_norm=10.0)
    by_hand = [round(3 * kappa / 10), round(4 * kappa / 10)]
    assert (vector.values.tolist(), vector.is_within) == (by_hand, True)
    vector = to_grid(of(4, 5), of(1, 1), clip_norm=0.5)  # 3, 4: of length 5
    assert (vector.values.tolist(), vector.is_within) == (
        [round(0.6 * kappa), round(0.8 * kappa)],
        False,
    )
    assert to_grid(of(1.5), of(1), clip_norm=0.5).is_within  # just as long as it may be


def test_all_float_tensors_are_one_vector_and_others_have_no_part_in_it():
    base = {"a": np.zeros(2, "f4"), "n": np.array(7), "b": np.zeros((), "f2")}
    new = {"a": np.array([1, 0], "f4"), "n": np.array(900), "b": np.array(-1, "f2")}
    kappa = radius(3)
    side = round(kappa / math.sqrt(2))
    assert to_grid(new, base, 0.1).values.tolist() == [side, 0, -side]
    back = from_grid(base, np.array([GRID, 0, -GRID]), 0.5, n_expected=2)
    assert back["n"] == 7
    step = 0.25 * GRID / kappa
    assert back["a"] == pytest.approx([step, 0])
    assert back["b"] == pytest.approx(-step)
    assert back["b"].dtype == np.float32  # so that half floats add up as in a mean


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_greatest_and_smallest_floats_are_handled(dtype):
    most, least = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    far = to_grid(of(most, -most, dtype=dtype), of(-most, most, dtype=dtype), 1.0)
    side = round(radius(2) / math.sqrt(2))
    assert abs(far.values[0] - side) <= 1
    assert far.values[1] == -far.values[0]
    assert not far.is_within
    tiny = to_grid(of(least, 0, dtype=dtype), of(0, 0, dtype=dtype), 1.0)
    assert (tiny.values.tolist(), tiny.is_within) == ([0, 0], True)
    mixed = to_grid(of(most, least, dtype=dtype), of(0, 0, dtype=dtype), 1.0)
    assert mixed.values.tolist() == [round(radius(2)), 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_what_is_not_finite_is_refused(bad, dtype):
    for pair in ((of(1, bad), of(0, 0)), (of(1, 0), of(0, bad))):
        typed = [{"w": one["w"].astype(dtype)} for one in pair]
        with pytest.raises(ValueError, match="not finite"):
            to_grid(*typed, 1.0)
        stack = {"w": typed[0]["w"][None]}
        with pytest.raises(ValueError, match="not finite"):
            add_stack(stack, typed[1], 1.0, np.zeros(2, np.int64))


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, 1e-200])
def test_a_clip_norm_that_is_none_is_refused(clip_norm):
    with pytest.raises(ValueError, match="clip_norm must be from 1e-30"):
        to_grid(of(1), of(0), clip_norm)


def test_a_vector_that_rounding_makes_too_long_is_rounded_down(monkeypatch):
    """κ leaves room for it; without that room the check on the integers still holds."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(grid, "radius", lambda size, grid=GRID: float(grid))
    lengths = []
    for _ in range(20):
        weights = {"w": rng.normal(size=9)}
        lengths.append(square_length(to_grid(weights, {"w": np.zeros(9)}, 0.1).values))
    assert max(lengths) <= GRID**2
    assert min(lengths) > GRID**2 - 9 * 2 * GRID


@pytest.mark.parametrize("size", [1, 10, 1000, grid.blocks.BLOCK + 3])
def test_a_stack_adds_up_to_what_each_party_gives(size):
    rng, n_parties = np.random.default_rng(size), 7
    base = {"w": rng.normal(size=(size,)).astype("f4"), "n": np.array(1)}
    scales = np.logspace(-3, 3, n_parties)[:, None]
    stack = {
        "w": (base["w"] + scales * rng.normal(size=(n_parties, size))).astype("f4"),
        "n": np.broadcast_to(base["n"], (n_parties,)),
    }
    each = [
        to_grid({k: array[i] for k, array in stack.items()}, base, 1.0)
        for i in range(n_parties)
    ]
    total = np.zeros(size, np.int64)
    n_within = add_stack(stack, base, 1.0, total)
    assert (total == sum(vector.values.astype(np.int64) for vector in each)).all()
    assert n_within == sum(vector.is_within for vector in each) > 0


def test_a_stack_with_one_extreme_party_adds_up_too():
    base = {"w": np.zeros(3)}
    stack = {"w": np.array([[1, 0, 0], [1e308, -1e308, 0], [0, 5e-324, 0]])}
    total = np.zeros(3, np.int64)
    assert add_stack(stack, base, 1.0, total) == 2
    side = round(radius(3) / math.sqrt(2))
    assert total.tolist() == [round(radius(3)) + side, -side, 0]


def test_the_grid_and_back_is_what_was_moved():
    rng = np.random.default_rng(1)
    base = {"w": rng.normal(size=(30, 40))}
    new = {"w": base["w"] + 0.01 * rng.normal(size=(30, 40))}
    total = to_grid(new, base, 1.0).values.astype(np.int64)
    back = from_grid(base, total, 1.0, n_expected=1)["w"]
    assert np.abs(back - new["w"]).max() <= 0.5 / radius(1200) * 1.001
