"""Integer sums of parties that share an actor or a node, and what a whole run adds."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from support.local_rounds import group_of
from test_releases import SIZE, config_of, sum_of

import fedray
from fedray.aggregator.node_combiner import CombineStep, combine_on_node
from fedray.aggregator.releases import Releaser
from fedray.aggregator.validation import UpdateValidator
from fedray.fusion import ExpectedUpdate, RoundContext, combine
from fedray.fusion.private_mean import SUM
from fedray.messages import Origin, Rejection, Update
from fedray.privacy.grid import GRID, n_coordinates
from fedray.privacy.keys import RUN_KEY, write_secret
from fedray.privacy.ledger import RUN_LEDGER, Ledger
from fedray.privacy.release_files import ReleaseFiles
from fedray.privacy.run_ledger import RunLedger
from fedray.weights import load, schema

PRIVACY = {"mechanism": "central", "noise_multiplier": 1.0, "delta": 1e-3}
FIXED, ADAPTIVE = ({"clip_norm": 0.05}, {"clip_norm": "adaptive", "clip_start": 0.05})


@pytest.fixture
def many(settings):
    """Parties cut from the shipped digits, with noise for them."""
    del settings["parties"]
    partition = {"samples_per_party": 12, "replace": True}
    privacy = PRIVACY | FIXED
    return settings | {"partition": partition, "num_parties": 40, "privacy": privacy}


def train(group, parties, weights) -> tuple:
    state = group.rule.party_state(group.rule.init(weights))
    return group.train(1, np.asarray(parties), weights, state)


@pytest.mark.parametrize("clip", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_a_stack_is_summed_whole_to_the_integers_of_its_parties(
    many, clip, monkeypatch
):
    many |= {"privacy": PRIVACY | clip, "stacked": "true", "num_parties": 60}
    group, weights = group_of(many, range(60))
    _, whole = train(group, range(3, 60), weights)
    monkeypatch.setattr(type(group.rule), "can_merge", False)
    _, each = train(group, range(3, 60), weights)
    assert whole.weights.keys() == {SUM}
    assert whole.weights[SUM].dtype == np.int32
    assert (whole.weights[SUM] == each.weights[SUM]).all()
    assert (whole.n_parties, whole.n_samples) == (each.n_parties, each.n_samples)
    n_counts = clip is ADAPTIVE
    assert len(whole.weights[SUM]) == n_coordinates(weights) + n_counts


def test_parties_of_one_actor_are_summed_as_those_of_their_own(many):
    many |= {"num_parties": 4, "stacked": "false"}
    group, weights = group_of(many, range(4))
    _, update = train(group, [0, 2, 3], weights)
    rule, terms = group.rule, []
    for place in (0, 2, 3):
        alone, _ = group_of(many, range(place, place + 1))
        _, own = train(alone, [place], weights)
        assert own.weights.keys() == weights.keys()  # one party's own travel as ever
        terms.append(rule.to_additive(own, weights, {}))
    expected = combine(rule, terms, RoundContext(1, weights))
    assert (update.weights[SUM] == expected.weights[SUM]).all()
    squares = [(t.weights[SUM].astype(np.int64) ** 2).sum() for t in terms]
    assert max(squares) <= GRID**2
    assert min(squares) > 0.99 * GRID**2  # all were cut


def test_a_party_of_a_stack_that_is_not_finite_adds_nothing(many, monkeypatch):
    many |= {"stacked": "true"}
    group, weights = group_of(many, range(40))
    train_each = group.local_data.model.train_each

    def with_nan(*arguments):
        for losses, stack in train_each(*arguments):
            stack["1.weight"][5, 0, 0] = np.nan
            yield losses, stack

    _, expected = train(group, np.delete(np.arange(40), 5), weights)
    monkeypatch.setattr(group.local_data.model, "train_each", with_nan)
    report, update = train(group, range(40), weights)
    assert list(report.refused) == [5]
    assert update.n_parties == expected.n_parties == 39
    difference = update.weights[SUM].astype(np.int64) - expected.weights[SUM]
    assert np.abs(difference).max() < GRID / 1000  # stacks of other sizes train alike


def test_a_node_adds_up_parties_and_sums_of_parties(many):
    group, weights = group_of(many, range(3, 40))
    rule = group.rule
    _, of_group = train(group, range(3, 40), weights)
    rng, form = np.random.default_rng(0), schema(weights)
    own = {k: np.asarray(a + rng.normal(size=a.shape), a.dtype)
           for k, a in weights.items()}  # fmt: skip
    single = Update(own, 5, origin=Origin("run", 1, 0))
    bad = replace(single, weights={k: a * np.nan for k, a in own.items()})
    checks = UpdateValidator(form, "float32", sums=rule.sum_schema(form))
    expected = ExpectedUpdate(single.origin, 5)
    first = CombineStep(rule, checks, [expected, None], False)
    partial, refused = combine_on_node._function(
        first, weights, {}, None, single, of_group
    )
    assert refused == {}
    other = replace(expected, origin=Origin("run", 1, 1))
    bad = replace(bad, origin=other.origin)
    last = CombineStep(rule, checks, [other, None], True)
    total, refused = combine_on_node._function(last, weights, {}, partial, bad, None)
    assert refused[1].code == "non_finite"
    additive = rule.to_additive(single, weights, {}).weights[SUM].astype(np.int64)
    assert (total.weights[SUM] == additive + of_group.weights[SUM]).all()
    assert (total.n_parties, total.n_samples) == (38, 5 + of_group.n_samples)
    assert not isinstance(checks.validate(total, weights, None), Rejection)


def test_a_node_refuses_a_sum_that_is_too_large(many):
    group, weights = group_of(many, range(2))
    rule, form = group.rule, schema(weights)
    checks = UpdateValidator(form, "float32", sums=rule.sum_schema(form))
    size = n_coordinates(weights)
    lie = Update({SUM: np.full(size, 2 * GRID + 1, np.int32)}, 24, 2)
    step = CombineStep(rule, checks, [None], True)
    with pytest.raises(ValueError, match="no clipped updates of 2 parties add up to"):
        combine_on_node._function(step, weights, {}, None, lie)


@pytest.mark.usefixtures("cluster")
def test_a_run_with_next_to_no_noise_is_the_run_without_it(settings, tmp_path, digits):
    """The grid, m, the clip norm and the step, through actors of several parties.

    By hand: all are within 5, so the clip norm falls by exp(−0.1) a round, but for the
    noise of the count, of deviation ½ in 5.
    """
    test = digits("test", 20, n_test=50, skip=300)
    del settings["parties"]
    settings |= {
        "partition": {"samples_per_party": 30},
        "num_parties": 5,
        "parties_per_actor": 2,
        "fusion_algorithm": "fedavgm",
        "test_data": test,
        "rounds": 2,
    }
    noise = {"mechanism": "central", "noise_multiplier": 1e-6, "delta": 1e-3}
    noise |= {"clip_norm": "adaptive", "clip_start": 5.0}
    private = settings | {"privacy": noise}
    found = [
        fedray.run(own, run_dir=tmp_path / name)
        for name, own in (("plain", settings), ("private", private))
    ]
    assert found[1].loss == pytest.approx(found[0].loss, rel=1e-3)
    plain, noised = (load(next((tmp_path / name).glob("checkpoints/*2/weights.npz")))
                     for name in ("plain", "private"))  # fmt: skip
    for name, array in plain.items():
        assert np.abs(noised[name] - array).max() < 1e-4
    lines = Ledger(tmp_path / "private" / RUN_LEDGER).releases
    assert [line["clip_norm"] for line in lines] == pytest.approx([5, 4.52], rel=0.1)


def test_the_releases_of_two_runs_differ_by_gaussian_noise(tmp_path):
    """What really was added to one sum of 10⁶ numbers, as it is on disk.

    KS of the whole difference, chi-square of the lowest digits, which tell nothing.
    """
    size = 10**6
    of = replace(sum_of(1), total=np.resize(sum_of(1).total, size))
    assert size % SIZE == 0
    sums = []
    for name, secret in (("one", 1), ("other", 2)):
        folder = tmp_path / name
        folder.mkdir()
        write_key(folder, secret)
        run = RunLedger(folder, "ab" * 16)
        Releaser(run, config_of(), None, 8, size).release(of)
        sums.append(ReleaseFiles(folder).read(1).total[SUM].astype(np.int64))
    added = (sums[0] - sums[1]) / (2.0 * GRID * 2**0.5)
    assert added.std() == pytest.approx(1, rel=0.01)
    assert scipy.stats.kstest(added, "norm").pvalue > 0.001
    digits = np.bincount((sums[0] - sums[1]) % 1000, minlength=1000)
    assert scipy.stats.chisquare(digits).pvalue > 0.001


def write_key(folder, secret: int) -> None:
    """A fixed key, so that the test always does the same."""
    write_secret(folder / RUN_KEY, bytes([secret]) * 32)
