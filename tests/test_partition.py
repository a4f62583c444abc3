"""Partitions of one data set into parties, counted by hand; `fedray split`."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config import PartitionSpec
from fedray.data import (
    Samples,
    partition_by,
    partition_samples,
    partition_test,
    partition_train,
    to_labels,
)
from fedray.data.split import split
from fedray.errors import ConfigError, DataError
from fedray.untrusted_text import name_problem

TEN_EACH = np.repeat(np.arange(10), 10)  # 100 samples, ten of each digit
WARNING = "Warning: test set and train set contain different labels:"
LABEL_4 = "* Label  4  samples:  4"
SCHEMES = ("iid", "dirichlet", "shards")


def spec(size=None, scheme="iid", **settings):
    return PartitionSpec(samples_per_party=size, scheme=scheme, **settings)


def sizes(parts):
    return [len(part) for part in parts]


def same(a, b):
    return len(a) == len(b) and all(map(np.array_equal, a, b))


partitions = st.builds(
    spec,
    st.none() | st.integers(1, 20),
    st.sampled_from(SCHEMES),
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e3, 1e308]),
    shards_per_party=st.integers(1, 4),
    replace=st.booleans(),
)
seeds = st.integers(0, 2**63 - 1)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 150), st.integers(1, 12), partitions, seeds)
def test_any_partition_is_refused_or_gives_every_party_its_size(n, n_parties, p, seed):
    y, shards = np.random.default_rng(n).integers(0, 6, n), p.shards_per_party
    each = p.samples_per_party or max(1, n // n_parties)
    few = n_parties * (p.samples_per_party or 1) > n and not p.replace
    if few or (p.scheme == "shards" and each < shards):
        with pytest.raises(DataError):
            partition_train(y, n_parties, p, seed)
        return
    parts = partition_train(y, n_parties, p, seed)
    drawn = np.concatenate(parts)
    assert len(parts) == n_parties
    assert set(drawn.tolist()) <= set(range(n))
    assert min(sizes(parts)) > 0  # no party is empty
    assert p.replace or len(np.unique(drawn)) == len(drawn)  # disjoint
    if p.samples_per_party:
        whole = each // shards * shards if p.scheme == "shards" else each
        assert set(sizes(parts)) == {whole}
    elif not p.replace:
        assert len(drawn) == n  # all samples are shared out
    assert same(parts, partition_train(y, n_parties, p, seed))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 150), st.integers(1, 12), partitions, seeds, st.booleans())
def test_unequal_sizes_are_exact_in_total_and_leave_no_party_empty(
    n, n_parties, p, seed, is_tiny
):
    p = p.with_changes(size_alpha=1e-300 if is_tiny else 0.5)
    y = np.random.default_rng(n).integers(0, 6, n)
    n_all = n_parties * p.samples_per_party if p.samples_per_party else n
    n_all = max(n_all, n_parties) if p.replace else n_all
    least = p.shards_per_party if p.scheme == "shards" else 1
    if (n_all > n and not p.replace) or n_all < least * n_parties:
        with pytest.raises(DataError):
            partition_train(y, n_parties, p, seed)
        return
    parts = partition_train(y, n_parties, p, seed)
    drawn = np.concatenate(parts)
    assert (len(parts), len(drawn)) == (n_parties, n_all)
    assert min(sizes(parts)) >= least
    assert set(drawn.tolist()) <= set(range(n))
    assert p.replace or len(np.unique(drawn)) == len(drawn)
    assert same(parts, partition_train(y, n_parties, p, seed))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_size_alpha_makes_parties_of_unlike_sizes_by_seed_alone(scheme):
    y = np.repeat(np.arange(10), 1000)
    wide, close = (
        sizes(partition_train(y, 20, spec(scheme=scheme, size_alpha=alpha), 3))
        for alpha in (0.5, 1e4)
    )
    # of Dir(1/2, ..., 1/2) a share's deviation is 1.3 times its mean, of Dir(1e4) 0.01
    assert np.std(wide) > 300 > 30 > np.std(close)
    if scheme == "shards":  # one for each shard goes before what is drawn
        return
    assert wide == sizes(partition_train(y, 20, spec(size_alpha=0.5), 3))


def test_a_column_gives_each_value_its_rows_in_order():
    rows = partition_by(np.array(["b", "a", "b", "c"]), ["a", "b", "none"])
    assert [row.tolist() for row in rows] == [[1], [0, 2], []]
    assert partition_by(np.array([3, 1, 3]), ["3"])[0].tolist() == [0, 2]


def test_values_of_a_column_become_names_of_parties_no_two_alike():
    values = ("St. Mary/North", "St. Mary:North", "..", "7", "Łódź", "x" * 200)
    named = PartitionSpec(by="hospital", values=values).names
    assert named[:2] == ("St.-Mary-North", "St.-Mary-North-2")
    assert named[2:5] == ("party", "7", "Łódź")
    assert [name for name in named if name_problem(name)] == []


def test_shards_of_unequal_sizes_have_few_labels_each():
    partition = spec(scheme="shards", size_alpha=5.0)
    parts = partition_train(np.repeat(np.arange(10), 100), 10, partition, 0)
    assert len(set(sizes(parts))) > 5
    n_labels = [len(set((part // 100).tolist())) for part in parts]
    assert np.mean(n_labels) < 5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("replace", [False, True])
def test_another_seed_gives_another_partition(scheme, replace):
    partition = spec(20, scheme, replace=replace)
    assert not same(
        partition_train(TEN_EACH, 4, partition, 0),
        partition_train(TEN_EACH, 4, partition, 1),
    )


def test_without_a_size_all_samples_are_distributed_evenly():
    assert sizes(partition_train(TEN_EACH, 3, spec(), 0)) == [
        34,
        33,
        33,
    ]  # by hand: 100 over 3
    assert sizes(partition_train(TEN_EACH, 3, spec(scheme="dirichlet"), 0)) == [
        34,
        33,
        33,
    ]


def test_an_error_about_too_few_samples_gives_the_numbers_and_the_remedies():
    with pytest.raises(DataError, match="100 training samples") as caught:
        partition_train(TEN_EACH, 3, spec(34), 0)
    assert "at least 102 for 3 parties" in str(caught.value)
    assert "replace: true" in str(caught.value)
    assert sizes(partition_train(TEN_EACH, 3, spec(34, replace=True), 0)) == [
        34,
        34,
        34,
    ]


def test_no_samples_at_all_is_refused_even_with_replacement():
    with pytest.raises(DataError, match="got 0 training samples"):
        partition_train(np.array([], int), 2, spec(5, replace=True), 0)


def test_shards_of_whole_labels_give_every_party_two_labels():
    parts = partition_train(
        TEN_EACH, 5, spec(scheme="shards"), 0
    )  # by hand: ten runs of ten
    assert [len(set(TEN_EACH[part])) for part in parts] == [2] * 5
    assert sorted(label for part in parts for label in set(TEN_EACH[part])) == [
        *range(10)
    ]


def test_small_shards_still_cover_all_labels():
    # by hand: 5 parties x 4 samples are 20, two of each digit: a run is one digit
    parts = partition_train(TEN_EACH, 5, spec(4, "shards"), 0)
    counts = np.bincount(TEN_EACH[np.concatenate(parts)], minlength=10)
    assert counts.tolist() == [2] * 10
    assert [len(set(TEN_EACH[part])) for part in parts] == [2] * 5


def test_a_rare_label_is_used_up_and_others_replace_it():
    y = np.array([0] * 8 + [1] * 1 + [2] * 8)
    parts = partition_train(y, 1, spec(9, "shards", shards_per_party=1), 0)
    # by hand: turns 0 1 2, then 0 2 until nine are there
    assert np.bincount(y[parts[0]]).tolist() == [4, 1, 4]


def test_a_tiny_alpha_gives_one_label_and_a_huge_one_the_mix_of_the_data():
    y = np.repeat(np.arange(4), 1000)
    one = partition_train(y, 30, spec(50, "dirichlet", alpha=1e-4, replace=True), 0)
    assert all(len(set(y[part])) == 1 for part in one)
    even = partition_train(y, 30, spec(400, "dirichlet", alpha=1e6, replace=True), 0)
    # 400 draws at 1/4: mean 100, standard deviation 8.7; five of those are 43
    assert all(abs(np.bincount(y[part]) - 100).max() < 44 for part in even)


def test_dirichlet_mixes_vary_as_the_formula_says():
    # Dir(a) over K labels: Var q = (1/K)(1 - 1/K) / (K a + 1) = 0.25 / 2 here
    y = np.repeat([0, 1], 500)
    parts = partition_train(y, 4000, spec(200, "dirichlet", alpha=0.5, replace=True), 3)
    q = np.array([y[part].mean() for part in parts])
    assert abs(q.mean() - 0.5) < 0.03
    # sampling 200 adds E[q(1-q)] / 200 = 0.125 / 200
    assert abs(q.var() - (0.125 + 0.125 / 200)) < 0.01


def test_dirichlet_follows_the_shares_of_the_data():
    y = np.repeat([0, 1], [900, 100])
    parts = partition_train(
        y, 20, spec(50, "dirichlet", alpha=1e6), 0
    )  # takes all 1,000
    # by hand: 10 % of 50 is 5; a mix even over labels would have emptied label 1 early
    assert max(y[part].sum() for part in parts) <= 20


@pytest.mark.parametrize("scheme", ["dirichlet", "shards"])
@pytest.mark.parametrize(
    "y", [np.linspace(0, 1, 10), np.ones((10, 2)), np.zeros((10, 3, 3), int)]
)
def test_schemes_by_label_refuse_targets_that_are_not_labels(scheme, y):
    with pytest.raises(DataError, match="not labels"):
        partition_train(y, 2, spec(4, scheme), 0)
    assert sizes(partition_train(y, 2, spec(4), 0)) == [4, 4]  # iid needs none


def test_an_unknown_scheme_lists_those_that_exist():
    with pytest.raises(ConfigError, match="dirichlet"):
        partition_train(TEN_EACH, 2, spec(4, "dirichlett"), 0)


def test_labels_are_whole_numbers_or_one_hot_rows():
    for y in ([3, 1], [[3], [1]], [3.0, 1.0], [[0, 0, 0, 1], [0, 1, 0, 0]]):
        assert to_labels(np.array(y)).tolist() == [3, 1]
    assert to_labels(np.array([True, False])).tolist() == [1, 0]
    assert to_labels(np.array([])).tolist() == []
    for y in ([0.5], [np.nan], [1e300], [2**63], [[1, 1], [1, 0]], [[3, 7]], 3):
        assert to_labels(np.array(y)) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.integers(1, 40), seeds)
def test_every_test_sample_is_at_exactly_one_party(n_test, n_parties, seed):
    parts = partition_test(n_test, n_parties, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n_test))
    assert len(parts) == n_parties
    assert max(sizes(parts)) - min(sizes(parts)) <= 1
    assert same(parts, partition_test(n_test, n_parties, seed))


def test_test_samples_are_shuffled_by_seed():
    assert not same(partition_test(100, 4, 0), partition_test(100, 4, 1))
    assert not np.array_equal(partition_test(100, 1, 0)[0], np.arange(100))


def test_each_party_selects_its_own_part_of_the_whole():
    x, tests = np.arange(100), np.arange(1000, 1010)
    whole = Samples(x, TEN_EACH, tests, np.zeros(10, int), 100)
    cut_so = 3, spec(20, "dirichlet"), 5
    parts = partition_train(TEN_EACH, *cut_so)
    shares = [partition_samples(whole, range(i, i + 1), *cut_so) for i in range(3)]
    for (party, (places,), _), part in zip(shares, parts, strict=True):
        assert np.array_equal(party.x_train[places], part)
        assert np.array_equal(party.y_train[places], TEN_EACH[part])
        assert sorted(party.x_train) == sorted(part)  # nobody else's
    assert [n_tests for _, _, n_tests in shares] == [[4], [3], [3]]
    together = np.concatenate([party.x_test for party, _, _ in shares])
    assert sorted(together.tolist()) == tests.tolist()


def test_parties_that_share_an_actor_store_every_sample_once():
    x = np.arange(100)
    whole = Samples(x, TEN_EACH, x[:10], TEN_EACH[:10], 100)
    cut_so = 50, spec(8, replace=True), 5
    held, places, _ = partition_samples(whole, range(10, 30), *cut_so)
    assert len(np.unique(held.x_train)) == len(held.x_train) < 20 * 8
    for own, part in zip(
        places, partition_train(TEN_EACH, *cut_so)[10:30], strict=True
    ):
        assert np.array_equal(held.x_train[own], part)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hundred_thousand_parties_are_partitioned_in_seconds(scheme):
    y = np.tile(np.arange(10), 400)
    start = time.process_time()
    parts = partition_train(y, 100_000, spec(10, scheme, replace=True), 0)
    assert time.process_time() - start < 5
    assert set(sizes(parts)) == {10}


def test_split_writes_what_the_tutorial_shows(tmp_path):
    np.savez(
        tmp_path / "all.npz", x_train=np.arange(100, dtype=np.uint8), y_train=TEN_EACH,
        x_test=np.arange(200, 210, dtype=np.uint8), y_test=np.arange(10),
    )  # fmt: skip
    out = tmp_path / "new" / "out"
    lines = split(str(tmp_path / "all.npz"), out, 2, spec(50), 0)
    assert lines[:2] == ["data_party0.npz", "Party_ 0"]
    assert lines[2] == "nb_x_train:  (50,) nb_x_test:  (5,)"
    parties = [dict(np.load(out / f"data_party{i}.npz")) for i in range(2)]
    n_zeros = int((parties[0]["y_train"] == 0).sum())
    assert lines[3] == f"* Label  0  samples:  {n_zeros}"
    assert len(lines) == 2 * 13
    trains = np.concatenate([party["x_train"] for party in parties])
    tests = np.concatenate([party["x_test"] for party in parties])
    assert sorted(trains.tolist()) == list(range(100))
    assert sorted(tests.tolist()) == list(range(200, 210))
    assert trains.dtype == np.uint8  # as in the source
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(before) == ["data_party0.npz", "data_party1.npz"]
    with pytest.raises(DataError, match="nothing is overwritten"):
        split("mnist", out, 1, spec(50), 1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("y_train", "y_test", "lines"),
    [
        ([0, 1, 0, 1], [1, 0], ["* Label  0  samples:  2", "* Label  1  samples:  2"]),
        ([4, 4, 4, 4], [5], [f"{WARNING} [4, 5]", LABEL_4, "* Label  5  samples:  0"]),
        ([0.5, 1, 1, 2], [3.0], []),  # a regression has no labels to count
        ([1.0, 2, 3, 4], [5.0], []),
        ([4, 4, 4, 4], [], [LABEL_4]),
    ],
)
def test_split_warns_only_where_labels_differ(tmp_path, y_train, y_test, lines):
    np.savez(
        tmp_path / "all.npz", x_train=np.zeros((4, 3)), y_train=np.array(y_train),
        x_test=np.zeros((len(y_test), 3)), y_test=np.array(y_test, type(y_train[0])),
    )  # fmt: skip
    message = split(str(tmp_path / "all.npz"), tmp_path, 1, spec(), 0)
    assert [line for line in message if line.startswith(("Warn", "* "))] == lines


def test_split_refuses_numbers_that_no_config_may_have(tmp_path):
    with pytest.raises(ConfigError, match="num_parties must be between 1"):
        split("mnist", tmp_path, 0, spec(), 0)
