"""Fusion rules against hand arithmetic. No Ray."""

import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray import fusion
from fedray.errors import ConfigError, TooFewUpdates
from fedray.messages import Rejection, Update
from fedray.weights import RunningMean, cast, mismatch, non_finite, schema

ASSOCIATIVE = {
    "mean by samples": fusion.named("fedavg"),
    "mean by parties": fusion.named("iter_avg"),
    "mean of clipped": fusion.named("norm_clipping", clip_norm=1.0),
    "sum": fusion.named("doc2vec"),
}


def update(*values: float, n_samples: int = 1, n_parties: int = 1) -> Update:
    return Update({"w": np.array(values, "f4")}, n_samples, n_parties)


def test_fedavg_weighs_by_samples():
    fused = fusion.combine(
        fusion.named("fedavg"), [update(1, n_samples=1), update(5, n_samples=3)]
    )
    assert fused.weights["w"] == 4  # by hand: (1·1 + 3·5) / 4
    assert (fused.n_samples, fused.n_parties) == (4, 2)


def test_iter_avg_does_not_look_at_samples():
    rule = fusion.named("iter_avg")
    fused = fusion.combine(rule, [update(1, n_samples=1), update(5, n_samples=300)])
    assert fused.weights["w"] == 3


@pytest.mark.parametrize("name", ["fedavg", "iter_avg"])
def test_combining_in_stages_is_combining_at_once(name):
    rule = fusion.named(name)
    three = [update(1, n_samples=2), update(2, n_samples=6), update(9, n_samples=4)]
    staged = fusion.combine(rule, [fusion.combine(rule, three[:2]), three[2]])
    by_hand = {"fedavg": (2 + 12 + 36) / 12, "iter_avg": 4.0}
    assert staged.weights["w"] == pytest.approx(by_hand[name], rel=1e-6)
    assert (staged.n_samples, staged.n_parties) == (12, 3)


def test_nothing_to_fuse_is_an_error_that_names_the_rule():
    with pytest.raises(TooFewUpdates, match="fedavg needs 1 update, got 0"):
        fusion.combine(fusion.named("fedavg"), [])


def test_an_unknown_rule_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"'fedavgg'; did you mean 'fedavg'.*fedyogi"):
        fusion.named("fedavgg")


@pytest.mark.parametrize("name", ASSOCIATIVE)
def test_each_update_is_dropped_before_the_next_is_fetched(name):
    rule = ASSOCIATIVE[name]
    fetched = []

    def arriving():
        for i in range(4):
            assert all(array() is None for array in fetched)
            array = np.full((2, 3), i, "f4")
            fetched.append(weakref.ref(array))
            yield Update({"w": array}, n_samples=1 + i)
            del array

    fused = fusion.combine(rule, arriving())
    assert fused.n_parties == 4


@pytest.mark.parametrize("name", ASSOCIATIVE)
def test_an_accumulator_keeps_no_update_and_no_more_memory_with_more_updates(name):
    rng, size = np.random.default_rng(0), 400_000
    accumulator = ASSOCIATIVE[name].accumulator(fusion.RoundContext())
    accumulator.add(Update({"w": rng.normal(size=(1, size)).astype("f4")}, 1))
    tracemalloc.start()
    for n_samples in range(1, 9):
        update = Update({"w": rng.random((1, size), "f4")}, n_samples)
        is_alive = weakref.ref(update)
        accumulator.add(update)
        del update
        assert is_alive() is None
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < size * 4  # of eight updates not even one is held
    assert accumulator.result().n_parties == 9


@pytest.mark.parametrize("name", ASSOCIATIVE)
def test_a_partial_result_that_is_continued_gives_the_same_bits(name):
    rng, rule = np.random.default_rng(3), ASSOCIATIVE[name]
    updates = [
        Update({"w": rng.normal(size=(5, 7)).astype("f4"), "n": rng.integers(9, size=3),
                "h": rng.normal(size=4).astype("f2")}, int(rng.integers(1, 10**6)))
        for _ in range(9)
    ]  # fmt: skip
    whole = fusion.combine(rule, updates)
    for stop in range(1, 9):
        partial = fusion.combine(rule, updates[:stop])
        continued = fusion.combine(rule, [partial, *updates[stop:]])
        for tensor, array in whole.weights.items():
            assert continued.weights[tensor].dtype == array.dtype
            assert (continued.weights[tensor] == array).all()
        assert (continued.n_samples, continued.n_parties) == (whole.n_samples, 9)


def test_a_scale_multiplies_what_an_update_weighs():
    for name, by_hand in {"fedavg": (4 * 1 + 8 * 7 / 4) / 6, "iter_avg": 2.2}.items():
        accumulator = fusion.named(name).accumulator(fusion.RoundContext())
        accumulator.add(update(1, n_samples=4))
        accumulator.add(update(7, n_samples=8), scale=0.25)
        assert accumulator.result().weights["w"] == pytest.approx(by_hand)


def test_sums_add_a_scaled_update_so_many_times():
    accumulator = fusion.named("doc2vec").accumulator(fusion.RoundContext())
    accumulator.add(update(1, 2), scale=0.5)
    accumulator.add(update(4, 8), scale=0.25)
    assert accumulator.result().weights["w"].tolist() == [1.5, 3]


def test_a_rule_that_needs_all_updates_at_once_cannot_scale_one():
    accumulator = fusion.named("median").accumulator(fusion.RoundContext())
    with pytest.raises(ValueError, match="cannot scale"):
        accumulator.add(update(1), scale=0.5)


def test_one_update_comes_back_bit_for_bit():
    array = np.random.default_rng(0).normal(size=1000).astype("f4")
    only = Update({"w": array}, n_samples=7)
    assert (fusion.combine(fusion.named("fedavg"), [only]).weights["w"] == array).all()


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_equal_updates_fuse_to_themselves_whatever_their_samples(counts):
    array = np.random.default_rng(1).normal(size=50).astype("f4")
    same = (Update({"w": array}, n) for n in counts)
    assert (fusion.combine(fusion.named("fedavg"), same).weights["w"] == array).all()


@given(
    st.lists(
        st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 1000)),
        min_size=1,
        max_size=20,
    )
)
def test_the_running_mean_is_the_mean(terms):
    mean = RunningMean()
    for value, share in terms:
        mean.add({"w": np.full(3, value, "f4")}, share)
    exact = sum(v * n for v, n in terms) / sum(n for _, n in terms)
    assert mean.mean["w"] == pytest.approx(np.full(3, exact), abs=2e-3)


def test_large_arrays_fold_in_blocks_to_the_same_mean():
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=(3, 100_001)).astype("f4") for _ in range(3)]
    mean = RunningMean()
    for array, share in zip(arrays, (1, 2, 5), strict=True):
        mean.add({"w": array}, share)
    exact = (arrays[0] + 2.0 * arrays[1] + 5.0 * arrays[2]) / 8
    np.testing.assert_allclose(mean.mean["w"], exact, atol=1e-6)


def test_integer_buffers_keep_their_dtype_and_are_rounded():
    mean = RunningMean()
    for value in (3, 4, 4):
        mean.add({"n": np.array(value, "i8")}, 1)
    fused = cast(mean.mean, schema({"n": np.array(0, "i8")}))
    assert isinstance(fused["n"], np.ndarray)
    assert fused["n"].dtype == np.int64
    assert fused["n"] == 4  # 11 / 3 = 3.67


def test_half_floats_do_not_overflow_while_they_are_summed():
    mean = RunningMean()
    for _ in range(4):
        mean.add({"w": np.full(2, 60_000, "f2")}, 1000)
    assert (mean.mean["w"] == 60_000).all()


def test_arguments_are_never_written_into():
    first, second = update(1.0, 2.0), update(3.0, 4.0)
    for each in (first, second):
        each.weights["w"].flags.writeable = False
    fused = fusion.combine(fusion.named("fedavg"), [first, second])
    assert fused.weights["w"].tolist() == [2, 3]
    assert first.weights["w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"w": np.zeros(2, "f4")}, None),
        (
            {"w": np.zeros((2, 1), "f4")},
            r"'w' got float32\[2, 1\], needed float32\[2\]",
        ),
        ({"w": np.zeros(2, "f8")}, r"got float64\[2\], needed float32\[2\]"),
        ({"v": np.zeros(2, "f4")}, r"missing: \['w'\], not of this model: \['v'\]"),
        ({"w": [0, 0]}, "is a list, not an array"),
        ([0, 0], "weights are a list"),
    ],
)
def test_a_mismatch_names_tensor_got_and_needed(weights, told):
    import re

    needed = schema({"w": np.zeros(2, "f4")})
    found = mismatch(weights, needed)
    assert found is None if told is None else re.search(told, found)


def test_only_real_infinity_is_not_finite():
    assert non_finite({"w": np.full(10, 3e38, "f4")}) is None  # its sum overflows
    assert non_finite({"a": np.ones(3), "w": np.array([1, np.inf])}) == "w"
    assert non_finite({"w": np.array([1, np.nan], "f2")}) == "w"
    assert non_finite({"n": np.array([1, 2])}) is None


@pytest.mark.parametrize(
    "n_samples", [0, -1, True, 1.5, "3", float("nan"), None, 10**400]
)
def test_a_count_that_is_no_count_is_refused(n_samples):
    needed = schema({"w": np.zeros(1, "f4")})
    bad = Update({"w": np.zeros(1, "f4")}, n_samples)
    assert "n_samples" in str(fusion.rejection_reason(bad, needed))


def test_a_party_cannot_speak_for_many():
    needed = schema({"w": np.zeros(1, "f4")})
    assert "not for 5" in str(fusion.rejection_reason(update(0, n_parties=5), needed))
    assert fusion.rejection_reason("weights", needed) == Rejection(
        "type", "sent a str, not an Update"
    )
    assert fusion.rejection_reason(update(np.nan), needed).detail.startswith(
        "tensor 'w' is not finite"
    )
    assert fusion.rejection_reason(update(1), needed) is None
