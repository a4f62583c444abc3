"""Arithmetic on large and small models: the same bits in any number of threads."""

import hashlib
import os
import warnings

import numpy as np
import pytest

from fedray.weights import (
    RunningMean,
    blocks,
    cast,
    digest,
    distance,
    distances,
    mean_of_stack,
    non_finite,
    schema,
)


@pytest.fixture(params=[(1, 1 << 18), (1, 1000), (3, 1000), (3, 4096)])
def cores(request, monkeypatch):
    """Another number of threads and another size of blocks each time."""
    n_threads, block = request.param
    monkeypatch.setattr(blocks, "_n_cores", lambda: n_threads)
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "_scratch", blocks._Scratch())
    blocks.cut.cache_clear()
    yield n_threads
    blocks.cut.cache_clear()


def model(seed: int) -> dict[str, np.ndarray]:
    """Tensors that share blocks, fill several, have no dimensions or no elements."""
    rng = np.random.default_rng(seed)
    weights = {
        "small": rng.normal(size=7).astype("f4"),
        "large": rng.normal(size=(123, 457)).astype("f4"),
        "none": np.zeros((0, 3), "f4"),
        "half": rng.normal(size=999).astype("f2"),
        "steps": np.array(seed, "i8"),
        "double": rng.normal(size=(3, 1000)),
        "gaps": rng.normal(size=(60, 50)).astype("f4").T,
        "flags": rng.integers(0, 2, 5).astype(bool),
    }
    for array in weights.values():
        array.flags.writeable = False
    return weights


def test_a_fold_is_the_same_bits_in_any_blocks_and_threads(cores):
    running, means = RunningMean(), None
    shares = [3, 5, 1]
    for k, share in enumerate(shares):
        running.add(model(k), share)
    total = 0
    for k, share in enumerate(shares):  # West's formula, element by element
        total += share
        wide = {
            n: a.astype("f4" if a.dtype in ("f2", "f4") else "f8")
            for n, a in model(k).items()
        }
        if means is None:
            means = wide
            continue
        for name, mean in means.items():
            factor = mean.dtype.type(share / total)
            means[name] = np.asarray(mean + (wide[name] - mean) * factor)
    assert list(running.mean) == list(means)
    for name, mean in means.items():
        assert running.mean[name].dtype == mean.dtype, name
        assert running.mean[name].shape == mean.shape, name
        assert (running.mean[name] == mean).all(), name


def test_equal_models_fold_to_themselves(cores):
    running = RunningMean()
    for share in (1, 7, 1000):
        running.add(model(0), share)
    for name, array in model(0).items():
        assert (running.mean[name] == array).all()


def test_the_mean_is_memory_of_its_own():
    first, running = {"w": np.ones(3, "f4")}, RunningMean()
    running.add(first, 1)
    running.add({"w": np.full(3, 3, "f4")}, 1)
    assert first["w"].tolist() == [1, 1, 1]
    assert running.mean["w"].tolist() == [2, 2, 2]
    assert RunningMean().mean == {}


def test_one_bad_number_is_found_wherever_it_is(cores):
    assert non_finite(model(0)) is None
    for name, place, bad in [
        ("small", 6, np.nan),
        ("large", 56_000, -np.inf),
        ("half", 998, np.inf),
        ("double", 1234, np.nan),
        ("gaps", 0, np.inf),
    ]:
        weights = model(0)
        array = weights[name] = weights[name].copy()
        array.flat[place] = bad
        assert non_finite(weights) == name


def test_the_first_bad_tensor_is_named(cores):
    weights = model(0) | {"large": np.full(60_000, np.nan, "f4")}
    assert non_finite(weights | {"half": np.full(3, np.inf, "f2")}) == "large"


def test_large_but_finite_numbers_pass_without_a_warning(cores):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in ("f2", "f4", "f8"):
            most = np.full(100_000, np.finfo(dtype).max, dtype)
            assert non_finite({"w": most}) is None


def test_distance_is_euclidean_over_the_named_tensors(cores):
    far = {"a": np.full(90_000, 3, "f4"), "b": np.ones(1, "f4"), "c": np.ones(9)}
    zero = {name: np.zeros_like(array) for name, array in far.items()}
    assert distance(far, zero, ["a"]) == pytest.approx(900)  # 3 · √90000
    assert distance(far, zero, ["b", "c"]) == pytest.approx(10**0.5)
    assert distance(far, zero, []) == 0


def test_distance_between_half_floats_does_not_overflow(cores):
    far = {"w": np.full(10_000, 60_000, "f2")}
    found = distance(far, {"w": np.zeros(10_000, "f2")}, ["w"])
    assert found == pytest.approx(6e6, rel=1e-5)  # 60000 · √10000


def test_a_cast_rounds_integers_and_copies_only_what_changes(cores):
    needed = schema(
        {"n": np.zeros(5000, "i8"), "w": np.zeros(2), "h": np.zeros(1, "f2")}
    )
    given = {"w": np.ones(2), "n": np.full(5000, 2.6), "h": np.array([0.5], "f4")}
    found = cast(given, needed)
    assert found["w"] is given["w"]
    assert (found["n"] == 3).all()
    assert (found["n"].dtype, found["h"].dtype) == (np.int64, np.float16)


def test_blocks_cover_every_element_once(cores):
    sizes = (5, 0, 2500, 1000, 1)
    covered = [[] for _ in sizes]
    for block in blocks.cut(sizes):
        assert block.size == sum(at.stop - at.start for _, _, at in block.pieces)
        for i, cut, _ in block.pieces:
            cut = cut or slice(0, sizes[i])
            covered[i] += range(cut.start, cut.stop)
    assert covered == [list(range(size)) for size in sizes]


def test_an_error_in_one_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(blocks, "_n_cores", lambda: 3)
    layout = blocks.cut((100 * blocks.BLOCK,))

    def fail_late(block):
        if block.whole.start == 57 * blocks.BLOCK:
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        blocks.each(layout, fail_late)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_works_without_the_threads_it_lost(monkeypatch):
    monkeypatch.setattr(blocks, "_n_cores", lambda: 2)
    layout = blocks.cut((20 * blocks.BLOCK,))
    assert blocks.each(layout, lambda block: block.size) == [blocks.BLOCK] * 20
    child = os.fork()
    if not child:
        done = blocks.each(layout, lambda block: 1)
        os._exit(0 if sum(done) == 20 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def stack_of(*values) -> dict:
    """Three parties: a float tensor of their own, a half one, a counter for all."""
    rows = np.array(values, "f4").reshape(-1, 1, 1) * np.ones((1, 2, 3), "f4")
    same = np.broadcast_to(np.array(7, np.int64), (len(values),))
    return {"w": rows, "h": rows.astype("f2"), "n": same}


def test_the_mean_of_a_stack_by_hand():
    mean = mean_of_stack(stack_of(1, 2, 6), np.array([1, 1, 2]))  # (1 + 2 + 12) / 4
    assert (mean["w"] == 3.75).all()
    assert (mean["h"] == 3.75).all()
    assert mean["n"] == 7
    assert [a.shape for a in mean.values()] == [(2, 3), (2, 3), ()]
    assert [str(a.dtype) for a in mean.values()] == ["float32", "float32", "float64"]


def test_distances_in_a_stack_are_each_ones_own():
    start = {"w": np.ones((2, 3), "f4"), "h": np.zeros((2, 3), "f2")}
    found = distances(stack_of(1, 2, 4), start, ["w"])  # six numbers, each 0, 1, 3 off
    np.testing.assert_allclose(found, [0, 6**0.5, 54**0.5], rtol=1e-6)
    assert distances(stack_of(3), start, ["w"]) == pytest.approx([24**0.5])


def test_distances_of_many_parties_do_not_depend_on_blocks(monkeypatch):
    draw = np.random.default_rng(0)
    stack = {"w": draw.normal(size=(50, 30)).astype("f4")}
    start = {"w": draw.normal(size=30).astype("f4")}
    whole = distances(stack, start, ["w"])
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(blocks, "_scratch", blocks._Scratch())
    assert (distances(stack, start, ["w"]) == whole).all()
    alone = [distance({"w": row}, start, ["w"]) for row in stack["w"]]
    np.testing.assert_allclose(whole, alone, rtol=1e-5)


def test_the_digest_of_weights_depends_on_all_that_they_are_and_not_on_their_order():
    whole = {"w": np.arange(6, dtype="f4").reshape(2, 3), "n": np.array(7)}
    text = b"1:n int64[] 8:"  # by hand: sorted names, forms, numbers
    text = text.replace(b"int64", b"<i8") + np.array(7).tobytes()
    text += b"1:w <f4[2, 3] 24:" + whole["w"].tobytes()
    assert digest(whole) == hashlib.sha256(text).digest()
    assert digest(dict(reversed(whole.items()))) == digest(whole)
    turned = {**whole, "w": np.asfortranarray(whole["w"])}
    assert digest(turned) == digest(whole)
    others = [
        {**whole, "w": whole["w"].reshape(3, 2)},
        {**whole, "w": whole["w"].view("i4")},
        {**whole, "w": whole["w"] + 1},
        {"v": whole["w"], "n": whole["n"]},
        {"w": whole["w"]},
        {**whole, "e": np.zeros(0)},
    ]
    assert len({digest(one) for one in [whole, *others]}) == 7
