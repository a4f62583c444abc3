"""Robust rules against oracles written from the papers, and against liars. No Ray."""

import contextlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import robust_oracles as oracle

from fedray import fusion
from fedray.errors import ConfigError, TooFewUpdates
from fedray.federation import read_config
from fedray.fusion.robust_krum import squared_distances
from fedray.fusion.robust_matrix import Rows
from fedray.messages import Update
from fedray.weights import blocks

few = settings(max_examples=60, deadline=None)
F = "f4"


def update(row, dtype=F, n_samples=1) -> Update:
    """A vector as a model of two tensors of odd shapes."""
    row = np.array(row, dtype)
    cut = len(row) // 3
    return Update({"a": row[:cut].reshape(1, cut), "b": row[cut:]}, n_samples)


def fuse(name: str, rows, dtype=F, **keys):
    fused = fusion.combine(fusion.named(name, **keys), [update(r, dtype) for r in rows])
    return np.concatenate([fused.weights["a"].ravel(), fused.weights["b"].ravel()])


@st.composite
def federations(draw, least=1, most=11):
    """Vectors of a federation: honest ones, ties, copies, and huge ones of any sign."""
    n, p = draw(st.integers(least, most)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.normal(size=(n, p))
    kind = draw(st.sampled_from(["normal", "grid", "equal", "huge", "tiny"]))
    if kind == "grid":
        rows = np.round(rows)  # ties everywhere
    if kind == "equal":
        rows[:] = rows[0]
    if kind == "tiny":
        rows = 5 + rows * 1e-6  # near in float32, far from zero
    if kind == "huge":
        bad = rng.permutation(n)[: draw(st.integers(0, n))]
        rows[bad] *= draw(st.sampled_from([1e6, -1e6, 1e15, -1e15]))
    return rows.astype(F)


def close(ours, exact):
    """Within float32 rounding of the exact result."""
    exact = np.asarray(exact, np.float64)
    np.testing.assert_allclose(ours, exact, rtol=3e-7, atol=1e-12)


@few
@given(federations())
def test_the_median_is_the_papers(rows):
    close(fuse("median", rows), oracle.coordinate_median(rows))


@few
@given(federations(), st.integers(0, 5))
def test_the_trimmed_mean_is_the_papers(rows, n_hostile):
    if len(rows) <= 2 * n_hostile:
        with pytest.raises(TooFewUpdates, match="trimmed_mean needs"):
            fuse("trimmed_mean", rows, n_hostile=n_hostile)
        return
    exact = np.array(oracle.trimmed_mean(rows, n_hostile))
    ours = fuse("trimmed_mean", rows, n_hostile=n_hostile)
    kept = np.sort(np.abs(rows), axis=0)[-1].astype(float)  # cancels in the sum
    assert (np.abs(ours - exact) <= 3e-7 * np.abs(exact) + 1e-14 * kept).all()


@few
@given(federations(least=3), st.integers(0, 4))
def test_krum_is_the_papers(rows, n_hostile):
    if len(rows) < 2 * n_hostile + 3:
        with pytest.raises(TooFewUpdates, match=f"needs {2 * n_hostile + 3}"):
            fuse("krum", rows, n_hostile=n_hostile)
        return
    scores = oracle.krum_scores(rows, n_hostile)
    ours = fuse("krum", rows, n_hostile=n_hostile)
    exact = oracle.krum(rows, n_hostile)
    chosen = next(i for i, row in enumerate(rows) if (row == ours).all())
    # equal but for the last bit of a sum: then either is the lowest
    assert scores[chosen] == pytest.approx(min(scores), rel=1e-12)
    lowest, second = sorted(scores)[:2]
    if second - lowest > 1e-12 * second:
        assert (ours == exact).all()


@few
@given(federations(least=3), st.integers(0, 4), st.integers(1, 9))
def test_multi_krum_is_the_papers(rows, n_hostile, m):
    if len(rows) < max(2 * n_hostile + 3, m + n_hostile):
        with pytest.raises(TooFewUpdates, match="multi_krum needs"):
            fuse("multi_krum", rows, n_hostile=n_hostile, n_selected=m)
        return
    scores = sorted(oracle.krum_scores(rows, n_hostile))
    if m < len(rows) and scores[m] <= scores[m - 1] * (1 + 1e-12):
        return  # a tie at the edge: which is last may hang on the last bit of a sum
    exact = oracle.multi_krum(rows, n_hostile, m)
    ours = fuse("multi_krum", rows, n_hostile=n_hostile, n_selected=m)
    largest = float(np.abs(rows).max())
    np.testing.assert_allclose(ours, exact, rtol=3e-7, atol=1e-14 * largest)


@few
@given(federations(least=3, most=15), st.integers(0, 3))
def test_bulyan_is_the_papers(rows, n_hostile):
    if len(rows) < 4 * n_hostile + 3:
        with pytest.raises(TooFewUpdates, match=f"needs {4 * n_hostile + 3}"):
            fuse("bulyan", rows, n_hostile=n_hostile)
        return
    ours = fuse("bulyan", rows, n_hostile=n_hostile)
    exact = oracle.bulyan(rows, n_hostile)
    largest = float(np.abs(rows).max()) if n_hostile == 0 else 1
    np.testing.assert_allclose(ours, exact, rtol=3e-6, atol=1e-6 * largest)


@few
@given(federations(most=9))
def test_no_point_has_a_smaller_sum_of_distances_than_the_geometric_median(rows):
    ours = fuse("geometric_median", rows, dtype="f8")
    rows = rows.astype(np.float64)
    total = oracle.summed_distances(ours, rows)
    least = oracle.summed_distances(oracle.geometric_median(rows, 2000), rows)
    smoothing = len(rows) * 1e-6
    # where two rows all but tie for the best, its steps become very short
    assert total <= least * (1 + 1e-4) + smoothing


def test_the_geometric_median_of_a_triangle_sees_all_sides_under_120_degrees():
    corners = [(0, 0, 0), (1, 0, 0), (0.5, 3**0.5 / 2, 0)]
    fermat = (0.5, 3**0.5 / 6, 0)  # of an equilateral triangle: its centre
    np.testing.assert_allclose(fuse("geometric_median", corners, "f8"), fermat, 1e-6)
    # by hand: with an angle over 120° the corner there is the point itself
    flat = [(0, 0, 0), (-3, 1, 0), (3, 1, 0)]
    np.testing.assert_allclose(
        fuse("geometric_median", flat, "f8"), (0, 0, 0), atol=1e-5
    )


def test_a_start_on_one_of_the_rows_is_left_if_it_is_not_the_best():
    # the coordinate median is the third row, which no two others are near
    rows = np.array([(0, 9, 0), (9, 0, 0), (4, 4, 4), (5, 0, 9), (0, 5, 9)], "f8")
    assert (fuse("median", rows, "f8") == (4, 4, 4)).all()
    ours = oracle.summed_distances(fuse("geometric_median", rows, "f8"), rows)
    best = oracle.summed_distances(oracle.geometric_median(rows), rows)
    assert ours == pytest.approx(best, rel=1e-7)


def rule_of(name: str, n_hostile: int = 2):
    keys = {"trimmed_mean", "krum", "multi_krum", "bulyan"}
    return {"n_hostile": n_hostile} if name in keys else {}


STATELESS = ["median", "trimmed_mean", "geometric_median", "krum", "multi_krum"]
STATELESS.append("bulyan")


@pytest.mark.parametrize("name", STATELESS)
@given(federations(least=11), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_parties_changes_no_bit(name, rows, random):
    mixed = list(rows)
    random.shuffle(mixed)
    keys = rule_of(name)
    assert (fuse(name, rows, **keys) == fuse(name, mixed, **keys)).all()


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("lie", [1e30, -1e30, 1e3, -1e3])
def test_two_liars_of_eleven_cannot_take_the_result_from_among_the_honest(name, lie):
    rng = np.random.default_rng(4)
    rows = 1 + 0.01 * rng.normal(size=(11, 50)).astype(F)
    honest = rows[2:].copy()
    rows[:2] = lie * (1 + rng.random((2, 50)))
    ours = fuse(name, rows, **rule_of(name))
    assert (ours >= honest.min(0) - 0.01).all()
    assert (ours <= honest.max(0) + 0.01).all()


def test_known_examples_by_hand():
    values = [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [1e9, -1e9, 1e9]]
    assert fuse("median", values).tolist() == [3, 2, 3]
    assert fuse("trimmed_mean", values, n_hostile=1).tolist() == [3, 2, 3]
    # squared distances / 3 of 1, 2, 3, 4: to the two nearest 1+4, 1+1, 1+1, 1+4; of two
    # equal scores the smaller vector
    assert fuse("krum", values, n_hostile=1).tolist() == [2, 2, 2]
    assert fuse("multi_krum", values, n_hostile=1, n_selected=2).tolist() == [2.5] * 3
    # theta 5, beta 3, for 7 with f = 1: 1..6 and a liar, who is never chosen; Krum
    # takes 3 (of 3, 4), then 4, 5 and so on: the five chosen and their median by hand
    line = [[x, x, x] for x in (1, 2, 3, 4, 5, 6, 1e6)]
    assert fuse("bulyan", line, n_hostile=1).tolist() == oracle.bulyan(line, 1)


def test_half_of_the_parties_can_break_the_median_as_in_theory():
    honest, liars = [[0.0] * 3] * 3, [[100.0] * 3] * 4
    assert fuse("median", honest + liars).tolist() == [100] * 3


def test_distances_do_not_cancel_far_from_zero():
    # in float32 by ‖a‖² − 2ab + ‖b‖² all of these would be 0 or negative
    rows = 1e4 + np.array([0, 0.01, 0.02, 5, 6], F)[:, None] * np.ones((1, 30), F)
    assert (fuse("krum", rows, n_hostile=1) == rows[1]).all()


@pytest.mark.parametrize("liars", ["one place", "far", "infinitely far"])
def test_distances_of_many_rows_are_as_right_as_of_few(liars):
    rng = np.random.default_rng(8)
    rows = 3 + 0.01 * rng.normal(size=(60, 501)).astype(F)
    if liars == "one place":  # alike but for their last bits, far from all others
        rows[:20] = 1e6 * (1 + 1e-7 * rng.integers(0, 3, (20, 1)).astype(F))
    if liars == "far":
        rows[:20] *= 1e25 * rng.normal(size=(20, 501)).astype(F)
    dtype, wide = F, rows.astype("f8")
    if liars == "infinitely far":
        wide[:20] *= 1e250 * rng.normal(size=(20, 501))
        dtype = "f8"
    updates = [update(row, dtype) for row in (wide if dtype == "f8" else rows)]
    found = squared_distances(Rows(updates))
    order = sorted(range(60), key=lambda i: wide[i].tolist())  # as rows are ranked
    with np.errstate(over="ignore"):
        exact = [((wide[order] - wide[i]) ** 2).sum(axis=1) for i in order]
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    assert (found >= 0).all()


def test_integers_are_the_lower_median_exactly():
    big = 2**60
    counts = [7, big + 1, big + 3, 8, -5]
    updates = [
        Update({"w": np.ones(2, F), "n": np.array(c), "m": np.array([True, c > 9])}, 1)
        for c in counts
    ]
    for name in STATELESS[:5]:
        fused = fusion.combine(fusion.named(name), updates).weights
        assert fused["n"] == 8
        assert fused["n"].dtype == np.int64
        assert fused["m"].tolist() == [True, False]
        assert list(fused) == ["w", "n", "m"]


def test_made_up_sample_counts_weigh_nothing():
    rows = [[1.0] * 3, [2.0] * 3, [9.0] * 3, [4.0] * 3, [5.0] * 3]
    for name in STATELESS[:5]:
        rule = fusion.named(name)
        plain = fusion.combine(rule, [update(row) for row in rows])
        liars = [update(row, n_samples=10**9 if i == 2 else 1)
                 for i, row in enumerate(rows)]  # fmt: skip
        lied = fusion.combine(rule, liars)
        assert (plain.weights["b"] == lied.weights["b"]).all()


@pytest.mark.parametrize("name", [*STATELESS, "norm_clipping"])
def test_models_of_many_slices_and_mixed_floats_are_fused_as_one_vector(
    name, monkeypatch
):
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(11, 5003))
    keys = rule_of(name) | ({"clip_norm": 9.0} if name == "norm_clipping" else {})

    def model(row):
        return {
            "h": row[:7].astype("f2"),
            "s": np.array(row[7], F),
            "b": row[8:4008].reshape(40, 100).astype(F),
            "d": row[4008:].astype("f8"),
        }

    def fused():
        rule = fusion.named(name, **keys)
        start = model(np.zeros(5003))
        updates = [rule.to_additive(Update(model(row), 1), start, {}) for row in rows]
        return fusion.combine(rule, updates).weights

    whole = fused()
    with monkeypatch.context() as small:
        small.setattr(blocks, "BLOCK", 1100)
        small.setattr(blocks, "_scratch", blocks._Scratch())
        blocks.cut.cache_clear()
        sliced = fused()
    blocks.cut.cache_clear()
    for key, array in whole.items():
        assert array.shape == model(rows[0])[key].shape
        np.testing.assert_allclose(array, sliced[key], rtol=1e-6, atol=1e-9)
    one = np.concatenate([a.astype("f8").ravel() for a in whole.values()])
    flat = [
        np.concatenate([a.astype("f8").ravel() for a in model(row).values()])
        for row in rows
    ]
    exact = {
        "median": lambda: oracle.coordinate_median(flat),
        "trimmed_mean": lambda: oracle.trimmed_mean(flat, 2),
        "krum": lambda: oracle.krum(flat, 2),
        "multi_krum": lambda: oracle.multi_krum(flat, 2, 7),
        "bulyan": lambda: oracle.bulyan(flat, 2),
        "norm_clipping": lambda: oracle.clipped_mean(flat, [0.0] * 5003, 9.0),
        "geometric_median": lambda: oracle.geometric_median(flat, 500),
    }[name]()
    np.testing.assert_allclose(one, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", STATELESS)
def test_no_copy_of_all_models_is_made(name):
    rows = np.random.default_rng(6).normal(size=(20, 300_000)).astype(F)
    updates = [Update({"w": row}, 1) for row in rows]
    rows.setflags(write=False)  # as from the object store
    rule = fusion.named(name, **rule_of(name))
    fusion.combine(rule, updates)  # each thread's scratch is made once
    tracemalloc.start()
    fusion.combine(rule, updates)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 300_000 * 4  # of 20 models


# clipping


def clip(rows, start, state=None, kind="norm_clipping", **keys):
    rule = fusion.named(kind, **keys)
    start = update(start).weights
    state = rule.init(start) if state is None else state
    additive = (rule.to_additive(update(row), start, state) for row in rows)
    combined = fusion.combine(rule, additive, fusion.RoundContext(3, start, state))
    new, state = rule.step(start, combined, state)
    return np.concatenate([new["a"].ravel(), new["b"].ravel()]), state


@few
@given(federations(least=2), st.floats(0.01, 100))
def test_norm_clipping_is_the_papers(rows, tau):
    start = np.round(rows[0] / max(1, abs(rows[0]).max()), 1)
    ours, state = clip(rows[1:], start, clip_norm=tau)
    exact = oracle.clipped_mean(rows[1:], start, tau)
    # an update within tau is taken as it is, however far from zero it lies
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5 * (1 + tau))
    assert state == {}


@few
@given(federations(least=4), st.floats(0.01, 10))
def test_centred_clipping_is_the_papers_over_three_rounds(rows, tau):
    rows = rows / max(1, float(abs(rows).max()))
    start, state = np.zeros(rows.shape[1], F), None
    w, v = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for _ in range(3):
        start, state = clip(rows + start, start, state, "centred_clipping",
                            clip_norm=tau)  # fmt: skip
        v = np.array(oracle.clipped_mean(rows, v, tau))
        w = w + v
        np.testing.assert_allclose(start, w, atol=1e-4)


def test_a_huge_step_is_cut_to_the_norm_in_its_own_direction():
    far, _ = clip([[3e30, 4e30, 0]], [0, 0, 0], clip_norm=5)
    np.testing.assert_allclose(far, [3, 4, 0], rtol=1e-6)


def test_a_step_within_the_norm_is_not_copied():
    rule, mine = fusion.named("norm_clipping", clip_norm=5), update([3, 4, 0])
    additive = rule.to_additive(mine, update([0, 0, 0]).weights, {})
    assert additive.weights["b"] is mine.weights["b"]


def test_clipping_leaves_integers_as_they_are():
    rule = fusion.named("norm_clipping", clip_norm=1)
    start = {"n": np.array(4), "w": np.zeros(2, F)}
    sent = Update({"n": np.array(10**15), "w": np.array([0.5, 0], F)}, 1)
    fused = fusion.combine(rule, [rule.to_additive(sent, start, {})]).weights
    assert (fused["n"], list(fused)) == (4, ["n", "w"])


def test_clipping_folds_in_stages():
    rule, start = fusion.named("norm_clipping", clip_norm=1), update([0, 0, 0]).weights
    rows = [[2, 0, 0], [0, 0.5, 0], [0, 0, 9]]
    additive = [rule.to_additive(update(row), start, {}) for row in rows]
    first = fusion.combine(rule, additive[:2])
    staged = fusion.combine(rule, [first, additive[2]]).weights
    np.testing.assert_allclose(staged["b"], [0.5 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(staged["a"], [[1 / 3]], rtol=1e-6)


# buckets


def test_buckets_are_averages_of_two_drawn_by_seed_and_round():
    rows = np.random.default_rng(7).normal(size=(7, 4)).astype(F)

    def krum(seed, round):
        rule = fusion.named("krum", bucketing=2, seed=seed, n_hostile=0)
        context = fusion.RoundContext(round)
        return fusion.combine(rule, map(update, rows), context).weights["b"]

    assert (krum(0, 1) == krum(0, 1)).all()
    drawn = {tuple(krum(0, round).tolist()) for round in range(12)}
    assert len(drawn) > 3
    pairs = oracle.all_subset_means(rows.astype("f8")[:, 1:], 2)
    alone = rows[:, 1:]
    for got in drawn:
        gaps = [np.abs(np.array(got) - p).max() for p in [*pairs, *alone]]
        assert min(gaps) < 1e-6


@pytest.mark.parametrize("name", ["norm_clipping", "centred_clipping"])
def test_buckets_are_averaged_before_they_are_cut(name):
    # by hand: each bucket of two averages to 0 or ±3 along one axis, cut to 1
    rows = [[3, 0, 0]] * 4
    ours, _ = clip(rows, [0, 0, 0], kind=name, clip_norm=1, bucketing=2)
    np.testing.assert_allclose(ours, [1, 0, 0], rtol=1e-6)
    ours, _ = clip([[3, 0, 0], [-3, 0, 0]], [0, 0, 0], kind=name, clip_norm=1,
                   bucketing=2)  # fmt: skip
    np.testing.assert_allclose(ours, [0, 0, 0], atol=1e-7)


def test_a_rule_needs_as_many_buckets_as_it_else_needs_parties():
    rows = [[float(i)] * 3 for i in range(8)]
    # krum with f = 1 needs 5 buckets of two: from 9 updates on
    with pytest.raises(TooFewUpdates, match="krum needs 9 updates, got 8"):
        fuse("krum", rows, n_hostile=1, bucketing=2)
    fuse("krum", [*rows, rows[0]], n_hostile=1, bucketing=2)


# config


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"fusion_algorithm": "krum", "n_hostile": 1}, "krum needs 5 updates with "
         "n_hostile 1, but a round may go on with 4"),
        ({"fusion_algorithm": "bulyan", "n_hostile": 1}, "bulyan needs 7 updates"),
        ({"fusion_algorithm": "trimmed_mean", "n_hostile": 2}, "needs 5 updates"),
        ({"fusion_algorithm": "median", "n_hostile": 1}, "n_hostile has no effect"),
        ({"fusion_algorithm": "fedavg", "bucketing": 2}, "bucketing has no effect"),
        ({"fusion_algorithm": "krum", "clip_norm": 1.0}, "clip_norm has no effect"),
        ({"fusion_algorithm": "norm_clipping"}, "clip_norm is missing"),
        ({"fusion_algorithm": "centred_clipping", "clip_norm": 0}, "above 0, got 0"),
        ({"fusion_algorithm": "median", "bucketing": 0}, "bucketing must be between"),
        ({"fusion_algorithm": "multi_krum", "n_selected": 5}, "needs 5 updates"),
        ({"fusion_algorithm": "krumm"}, "did you mean 'krum'"),
    ],
)  # fmt: skip
def test_impossible_robust_settings_are_errors_before_the_run(mlp, keys, told):
    base = {"architecture": mlp, "partition": {}, "num_parties": 8, "quorum": 0.5}
    with pytest.raises(ConfigError, match=told):
        read_config(base | keys)


def test_the_quorum_decides_how_many_a_round_may_go_on_with(mlp):
    base = {"architecture": mlp, "partition": {}, "num_parties": 8}
    krum = {"fusion_algorithm": "krum", "n_hostile": 1}
    assert read_config(base | krum | {"quorum": 0.6}).n_hostile == 1  # 5 of 8
    with pytest.raises(ConfigError, match="krum needs 5"):
        read_config(base | krum | {"party_fraction": 0.5})


def test_a_rule_withstands_what_it_is_told_or_all_that_it_can():
    rules = {
        "fedavg": 0, "norm_clipping": 0, "median": 4, "geometric_median": 4,
        "trimmed_mean": 4, "krum": 3, "multi_krum": 3, "bulyan": 1,
    }  # fmt: skip
    for name, n_most in rules.items():
        more = {"clip_norm": 1.0} if name == "norm_clipping" else {}
        assert fusion.named(name, **more).n_withstood(9) == n_most, name
    assert fusion.named("krum", n_hostile=1).n_withstood(9) == 1
    assert fusion.named("multi_krum", n_selected=8).n_withstood(9) == 1
    assert fusion.named("median", bucketing=2).n_withstood(9) == 2  # of 5 buckets


@pytest.mark.parametrize(
    ("groups", "rule", "is_possible"),
    [
        ({"by": "similarity"}, "krum", False),
        ({"by": "similarity", "k": 2}, "multi_krum", False),
        ({"by": "similarity", "k": 1}, "krum", True),
        ({"by": "similarity"}, "median", True),
        ({"by": "similarity"}, "fedavg", True),
    ],
)
def test_a_group_of_one_party_is_foreseen_before_the_run(
    mlp, groups, rule, is_possible
):
    base = {"architecture": mlp, "partition": {}, "num_parties": 8, "groups": groups}
    base |= {"fusion_algorithm": rule}
    refused = pytest.raises(ConfigError, match="a group by similarity may have one")
    with contextlib.nullcontext() if is_possible else refused:
        read_config(base)
