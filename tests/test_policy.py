"""Who trains, with which seed, and when a round counts. No Ray."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.config import FederationConfig
from fedray.messages import Scores
from fedray.policy import (
    SELECTIONS,
    count_chosen,
    merge_scores,
    needed,
    seed_for,
    select_random,
    split_by_load,
)


def choose(n_parties: int, fraction: float, seed: int, round: int):
    n_chosen = count_chosen(n_parties, fraction)
    return select_random(np.arange(n_parties), n_chosen, seed, round)


def test_only_candidates_are_chosen_wherever_they_stand_in_the_config():
    some = np.array([2, 3, 5, 7, 11])
    assert np.isin(select_random(some, 3, 0, 1), some).all()
    assert (select_random(some, 9, 0, 1) == some).all()


def test_choosing_is_seeded_and_keeps_config_order():
    first = choose(10, 0.3, seed=0, round=1).tolist()
    assert first == choose(10, 0.3, seed=0, round=1).tolist()
    assert len(set(first)) == 3
    assert first == sorted(first)


def test_rounds_choose_differently_and_everybody_gets_a_turn():
    rounds = [tuple(choose(10, 0.3, 0, round)) for round in range(1, 40)]
    assert len(set(rounds)) > 20
    assert {party for chosen in rounds for party in chosen} == set(range(10))


@pytest.mark.parametrize(
    ("fraction", "n_chosen"), [(1.0, 10), (0.01, 1), (0.25, 3), (0.24, 2), (0.99, 10)]
)
def test_the_fraction_is_rounded_and_never_zero(fraction, n_chosen):
    assert len(choose(10, fraction, 0, 1)) == n_chosen


@pytest.mark.parametrize(
    ("sizes", "n_actors", "runs"),
    [
        ([5, 5, 5, 5], 2, [[0, 1], [2, 3]]),
        ([1, 1, 1, 1, 4], 2, [[0, 1, 2, 3], [4]]),
        ([9, 1, 1, 1], 3, [[], [0], [1, 2, 3]]),  # each where its middle lies
        ([7], 3, [[], [0], []]),
        ([], 2, [[], []]),
    ],
)
def test_parties_are_dealt_by_samples_in_order(sizes, n_actors, runs):
    dealt = split_by_load(np.array(sizes, np.int64), n_actors)
    assert [list(range(len(sizes)))[run] for run in dealt] == runs


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 9))
def test_no_actor_has_more_than_its_share_and_one_party(sizes, n_actors):
    sizes = np.array(sizes)
    runs = [sizes[run] for run in split_by_load(sizes, n_actors)]
    assert np.concatenate(runs).tolist() == sizes.tolist()
    assert max(run.sum() for run in runs) <= sizes.sum() / n_actors + sizes.max()


@pytest.mark.parametrize(
    ("quorum", "n_chosen", "n_needed"),
    [(1.0, 3, 3), (0.5, 3, 2), (0.1, 3, 1), (0.7, 10, 7), (0.29, 100, 29)],
)
def test_quorum_is_rounded_up(quorum, n_chosen, n_needed):
    assert needed(quorum, n_chosen) == n_needed


def test_seeds_depend_on_seed_round_and_name_alone():
    seeds = {seed_for(s, r, n) for s in (0, 1) for r in (1, 2) for n in ("a", "b")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(0, 1, "a") == seed_for(0, 1, "a")


def score(n: int, loss=None, accuracy=None) -> Scores:
    return Scores(n, loss, accuracy)


def test_scores_are_weighed_by_test_samples():
    scores = [score(100, 1.0, 0.5), score(300, 2.0, 0.9), score(0)]
    assert merge_scores(scores) == (1.75, pytest.approx(0.8), 400)


def test_scores_of_labels_are_weighed_by_the_labels_that_count():
    """As many as the parties counted, for the loss and for the accuracy."""
    few = Scores(100, 1.0, 0.5, (1.0, 2))
    many = Scores(100, 2.0, 0.9, (3.0, 6))
    none = Scores(100, 0.0, None, (0.0, 0))
    assert merge_scores([few, many, none]) == (1.75, pytest.approx(0.8), 300)
    assert merge_scores([none]) == (None, None, 100)


def test_without_test_samples_there_is_no_score():
    assert merge_scores([score(0), score(0)]) == (None, None, 0)


def test_regression_has_a_loss_and_no_accuracy():
    assert merge_scores([score(10, 2.0), score(10, 4.0)]) == (3.0, None, 20)


def test_the_config_offers_every_way_of_choosing_and_no_other():
    declared = FederationConfig.model_fields["selection"].annotation
    assert set(get_args(declared)) == set(SELECTIONS)
