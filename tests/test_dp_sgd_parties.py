"""Parties that train with DP-SGD: the same again is free, all else is charged."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.comparison import assert_close

from fedray import data, models
from fedray.config import parse
from fedray.errors import PartyError
from fedray.messages import ActorLocation, Report
from fedray.party import GroupPlan, PartyGroup, probe_party
from fedray.privacy.party_book import PartyBook

DP_SGD = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-3}
RUN = "tiny-0123456789ab"


@pytest.fixture
def one_thread():
    """As in an actor of one core: bits depend on how many share a product."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def private(settings, tmp_path):
    return settings | {
        "dp_sgd": DP_SGD,
        "party_dir": str(tmp_path / "party"),
        "rounds": 3,
    }


def group_of(
    settings: dict, run: str = RUN, parties: range = range(1), name: str = "a"
) -> tuple[PartyGroup, dict]:
    """An actor's parties as a plain object, as in a run with this id."""
    config, mistakes = parse(settings)
    assert mistakes == []
    blueprint, weights = models.named(config.model_type).read(config)
    handler = data.named(config.data_handler)
    folder = f"{config.party_dir}/{run}" if run else ""
    plan = GroupPlan(name, parties, config, blueprint, handler, own_folder=folder)
    return PartyGroup(plan, lambda: ActorLocation("n")), weights


def train(settings: dict, round: int = 1, weights=None, **how) -> tuple[Report, dict]:
    """Train a round in a new actor; its report and the weights that it sends."""
    group, initial = group_of(settings, **how)
    places = np.array(group.plan.parties)
    report, update = group.train(round, places, weights or initial)
    return report, {name: array.copy() for name, array in update.weights.items()}


def trainings(settings: dict) -> list[dict]:
    book = PartyBook(Path(settings["party_dir"]))
    with book.locked(may_make=False):
        return [line for line in book.lines if line["kind"] == "training"]


def are_equal(a: dict, b: dict) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_the_same_round_again_gives_the_same_bits_and_is_free(private):
    report, first = train(private)
    again, second = train(private)
    assert are_equal(first, second)
    assert len(trainings(private)) == 1
    spending = report.spending
    assert spending.epsilon == again.spending.epsilon > 0
    assert (spending.sampling_rate, spending.n_steps) == (16 / 40, 3)
    assert (spending.noise_multiplier, spending.delta) == (1.0, 1e-3)
    assert np.isnan(report.loss).all()


def test_epsilon_grows_with_each_round(private):
    reports = [train(private, round)[0] for round in (1, 2, 3)]
    epsilons = [report.spending.epsilon[0] for report in reports]
    assert epsilons == sorted(epsilons)
    assert [report.spending.run_epsilon[0] for report in reports] == epsilons
    assert len(trainings(private)) == 3


def changed(settings: dict, **changes) -> dict:
    return settings | changes


ALTERED = {
    "epochs": {"epochs": 2},
    "batch_size": {"batch_size": 8},
    "learning_rate": {"learning_rate": 0.2},
    "proximal_mu": {"proximal_mu": 0.1},
    "seed": {"seed": 1},
    "max_grad_norm": {"dp_sgd": DP_SGD | {"max_grad_norm": 0.5}},
    "noise_multiplier": {"dp_sgd": DP_SGD | {"noise_multiplier": 1.5}},
}


@pytest.mark.parametrize("what", ALTERED)
def test_another_setting_is_another_release_with_noise_of_its_own(private, what):
    allow_all(private)
    _, first = train(private)
    run = "other-run" if what == "noise_multiplier" else RUN  # a run keeps its noise
    _, second = train(private | ALTERED[what], run=run)
    assert len(trainings(private)) == 2
    assert not are_equal(first, second)


def allow_all(settings: dict, epsilon: float = 1e6) -> None:
    """Set the owner's limit."""
    book = PartyBook(Path(settings["party_dir"]))
    with book.locked():
        book.add("owner_limit", epsilon=epsilon)


def test_other_weights_other_rounds_and_other_runs_are_other_releases(private):
    allow_all(private)
    _, first = train(private)
    initial = group_of(private)[1]
    moved = {name: array + 1e-7 for name, array in initial.items()}
    others = [
        train(private, weights=moved),
        train(private, round=2),
        train(private, run="another-run"),
    ]
    assert len({line["tag"] for line in trainings(private)}) == 4
    for _, weights in others:
        assert not are_equal(first, weights)
        distance = max(np.abs(weights[name] - first[name]).max() for name in first)
        assert distance > 1e-3  # not a little: the noise is another one


def test_what_may_not_repeat_to_the_last_bit_counts_every_time(private):
    allow_all(private)
    group, weights = group_of(private)
    loaded = group.local_data
    sent = []
    for is_in_memory in (False, False, True, True):
        group._local_data = loaded._replace(is_in_memory=is_in_memory)
        update = group.train(1, np.array([0]), weights)[1]
        sent.append({name: array.copy() for name, array in update.weights.items()})
    assert len(trainings(private)) == 3
    assert not are_equal(sent[0], sent[1])
    assert are_equal(sent[2], sent[3])
    torch.set_num_threads(2)  # the fixture sets it back
    train(private)
    assert len(trainings(private)) == 4


def test_settings_that_reach_no_training_change_nothing(private):
    _, first = train(private)
    same = {"quorum": 0.5, "evaluate_every": 2, "round_timeout_s": 30.0, "rounds": 2}
    _, second = train(private | same)
    assert are_equal(first, second)
    assert len(trainings(private)) == 1


def test_a_budget_that_is_spent_refuses_before_any_training(private, monkeypatch):
    group, weights = group_of(private | {"rounds": 2})
    for round in (1, 2):
        group.train(round, np.array([0]), weights)
    monkeypatch.setattr(group.local_data.model, "train_each", None)
    with pytest.raises(PartyError) as refused:
        group.train(3, np.array([0]), weights)
    text = str(refused.value)
    assert "training round 3 would bring epsilon of the party's data over all" in text
    assert "fedray privacy limit EPSILON" in text
    assert len(trainings(private)) == 2


def test_rounds_that_were_trained_are_free_though_the_budget_is_spent(private):
    private["rounds"] = 1
    _, first = train(private)
    _, again = train(private)
    assert are_equal(first, again)


def test_joining_says_what_the_run_would_spend_and_refuses_what_is_too_much(private):
    group, weights = group_of(private)
    text = str(group.join(weights).budget)
    assert text.startswith("all rounds of this run bring epsilon of its samples to")
    assert "spent so far, over all runs: 0 (delta 0.001)" in text
    for round in (1, 2, 3):
        train(private, round)
    with pytest.raises(PartyError, match="this run would bring epsilon"):
        group_of(private, run="renamed-run")[0].join(weights)
    resumed = group_of(private)[0].join(weights)  # all of its rounds are paid
    assert resumed.budget.spent == resumed.budget.would_be
    with pytest.raises(PartyError, match="this run would bring epsilon"):
        group_of(private | {"rounds": 4})[0].join(weights)


def probe(settings: dict) -> str:
    """What `fedray check` says of the budget of party a."""
    group, weights = group_of(settings, run="")
    result = probe_party(group.plan, lambda: ActorLocation("n"), weights)
    return " ".join(result.notes)


def test_a_dry_run_says_what_would_be_spent_and_writes_nothing(private):
    text = "all rounds of this run bring epsilon of its samples to"
    assert text in probe(private)
    assert "spent so far, over all runs: 0 (delta 0.001)" in probe(private)
    assert not Path(private["party_dir"], "privacy").exists()
    private["rounds"] = 1
    train(private)
    allow_all(private, 9.0)
    lines = trainings(private)
    assert "of at most 9; spent so far, over all runs: 3." in probe(private)
    allow_all(private, 4.0)
    with pytest.raises(
        PartyError, match=r"this run would bring .* its limit is 4 \(set by its owner\)"
    ):
        probe(private)
    assert trainings(private) == lines


def test_noise_that_follows_from_epsilon_spends_it_in_all_rounds(private):
    private["dp_sgd"] = {"epsilon": 3.0, "max_grad_norm": 1.0, "delta": 1e-3}
    reports = [train(private, round)[0] for round in (1, 2, 3)]
    assert 2.97 <= reports[-1].spending.epsilon[0] <= 3.0
    with pytest.raises(PartyError, match=r"its limit is 3 \(set by its first run\)"):
        train(private, 4)
    with pytest.raises(PartyError, match=r"its limit is 3 \(set by its first run\)"):
        train(private | {"name": "renamed"}, run="renamed-run")


def test_delta_must_be_below_one_in_the_number_of_samples(private):
    private["dp_sgd"] = DP_SGD | {"delta": 1 / 40}
    group, weights = group_of(private)
    with pytest.raises(PartyError, match=r"needed less than 1 / 40"):
        group.join(weights)


def test_a_copied_or_renamed_file_has_the_same_account(private, tmp_path):
    allow_all(private)
    train(private)
    source = Path(private["parties"][0]["data"])
    copy = tmp_path / "renamed.npz"
    copy.write_bytes(source.read_bytes())
    parties = [{"name": "other", "data": str(copy)}, private["parties"][1]]
    report, _ = train(private | {"parties": parties}, run="other-run")
    assert report.spending.epsilon > report.spending.run_epsilon
    linked = tmp_path / "link.npz"
    linked.symlink_to(source)
    parties = [{"name": "linked", "data": str(linked)}, private["parties"][1]]
    linked_report, _ = train(private | {"parties": parties}, run="third-run")
    assert linked_report.spending.epsilon > report.spending.epsilon
    other, _ = train(private, parties=range(1, 2))  # b has other data
    assert other.spending.epsilon == other.spending.run_epsilon


def test_books_that_are_lost_stop_the_party_until_its_owner_begins_anew(private):
    train(private)
    Path(private["party_dir"], "privacy/books/secret.key").unlink()
    with pytest.raises(PartyError, match=r"secret is lost.*fedray privacy reset"):
        train(private, 2)


def test_a_secret_shows_nowhere(private):
    group, weights = group_of(private)
    seen = []
    model = group.local_data.model
    train_each = model.train_each
    model.train_each = lambda w, parts, s: seen.extend(parts) or train_each(w, parts, s)
    group.train(1, np.array([0]), weights)
    secret = seen[0].private.secret
    assert secret.hex() not in repr(seen) + repr(vars(group.private))
    assert repr(secret) not in repr(seen)
    ledger = Path(private["party_dir"], "privacy/books/ledger.jsonl").read_bytes()
    assert secret.hex().encode() not in ledger
    with pytest.raises(TypeError):
        seen[0].private.__getstate__()


# several parties in one actor


@pytest.fixture
def many(private):
    """Six parties cut from the shipped digits, of unequal sizes."""
    del private["parties"]
    partition = {"samples_per_party": 60, "size_alpha": 1.0}
    more = {"partition": partition, "num_parties": 6, "stacked": "false"}
    return private | more | {"dp_sgd": DP_SGD | {"delta": 1e-4}}


def test_parties_of_a_partition_have_an_account_each_and_one_flush(many, monkeypatch):
    group, weights = group_of(many, parties=range(6))
    group.join(weights)
    flushes, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: flushes.append(fd) or fsync(fd))
    report, _ = group.train(1, np.arange(6), weights)
    assert len(flushes) <= 4  # the ledger, its end and their folder
    assert len(trainings(many)) == 6
    rates = report.spending.sampling_rate
    assert rates.tolist() == np.minimum(1, 16 / report.n_samples).tolist()
    again, _ = group.train(1, np.arange(6), weights)
    assert len(trainings(many)) == 6
    assert again.spending.epsilon.tolist() == report.spending.epsilon.tolist()


@pytest.mark.parametrize("rule", ["fedavg", "median"])
def test_those_whose_budget_is_spent_are_left_out(many, rule):
    many |= {"fusion_algorithm": rule, "rounds": 1}
    group, weights = group_of(many, parties=range(6))
    alone, _ = group_of(many, parties=range(6))
    epsilons = group.train(1, np.arange(6), weights)[0].spending.epsilon
    limit = float(np.median(epsilons)) * 1.4
    allow_all(many, limit)
    report, *updates = group.train(2, np.arange(6), weights)
    refused = sorted(report.refused)
    assert 0 < len(refused) < 6
    codes = {rejection.code for rejection in report.refused.values()}
    assert codes == {"budget"}
    assert "would bring epsilon" in str(report.refused[refused[0]])
    allowed = [i for i in range(6) if i not in refused]
    assert np.isnan(report.drift[refused]).all()
    assert np.isfinite(report.drift[allowed]).all()
    allow_all(many)
    expected = alone.train(2, np.array(allowed), weights)[1:]
    if rule == "median":
        assert [i for i, update in enumerate(updates) if update] == allowed
        updates = [update for update in updates if update]
    assert len(updates) == len(expected)
    for ours, theirs in zip(updates, expected, strict=True):
        assert_close(ours.weights, theirs.weights, 0)
        assert ours.n_samples == theirs.n_samples


# killed at every stage


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from fedray.privacy import party_book
from test_dp_sgd_parties import group_of
import json, numpy as np
torch.set_num_threads(1)
settings, stage = json.loads(sys.argv[1]), sys.argv[2]
group, weights = group_of(settings)
group.join(weights)

def kill(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

model = group.local_data.model
if stage == "before the line":
    party_book.PartyBook.flush = kill
elif stage == "after the line":
    party_book._write_end = kill
elif stage == "during training":
    model.on_progress = kill
group.train(1, np.array([0]), weights)
"""


@pytest.mark.parametrize(
    "stage", ["before the line", "after the line", "during training"]
)
def test_a_party_that_is_killed_trains_the_same_bits_and_pays_once(private, stage):
    code = KILLED.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, json.dumps(private), stage]
    path = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": path}
    killed = subprocess.run(command, env=env, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    there = trainings(private)
    assert len(there) == (stage != "before the line")
    _, first = train(private)
    _, second = train(private)
    assert are_equal(first, second)
    lines = trainings(private)
    assert len(lines) == 1
    assert there in ([], lines)


# releases of aggregators


def test_a_party_records_each_central_round_once(private):
    del private["dp_sgd"]
    privacy = {"mechanism": "central", "epsilon": 4.0, "delta": 1e-3, "clip_norm": 1.0}
    private |= {"privacy": privacy, "num_parties": 2}
    group, weights = group_of(private)
    for round in (1, 1, 2):
        group.train(round, np.array([0]), weights)
    book = PartyBook(Path(private["party_dir"]))
    with book.locked():
        (spent,) = book.central.spent()
    assert [line["kind"] for line in book.lines] == ["start", "central", "central"]
    assert 0 < spent.epsilon < 4.0
    (run,) = spent.releases
    assert (run.epsilon, run.is_secure) == (4.0, False)
    longer, _ = group_of(private | {"rounds": 50})
    longer.train(3, np.array([0]), weights)  # the noise of a run stays what it was
    with book.locked():
        assert len(next(iter(book.central.spent())).releases) == 1


def test_a_run_without_privacy_leaves_no_books(settings, tmp_path):
    settings["party_dir"] = str(tmp_path / "party")
    report, _ = train(settings)
    assert report.spending is None
    assert not (tmp_path / "party" / "privacy").exists()
