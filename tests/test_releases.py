"""Releases: noise once, file and ledger first; what is repeated and what counts."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from fedray.aggregator.releases import Releaser, RoundSum
from fedray.aggregator.round_record import RoundRecord
from fedray.config import FederationConfig, parse
from fedray.errors import ConfigError, LedgerError, MissingExtra
from fedray.fusion.private_mean import SUM
from fedray.messages import FUSED, LATE, Outcome
from fedray.privacy import keys
from fedray.privacy.gaussian import epsilon_of_mu
from fedray.privacy.ledger import RELEASE, SETTINGS, Ledger
from fedray.privacy.release_files import ReleaseFiles
from fedray.privacy.run_ledger import RunLedger
from fedray.service.schemas import summarize
from fedray.service.store import TRAINED, TRAINING, State

ID = "ab" * 16
SIZE = 2000
BASE = {"w": np.linspace(-1, 1, SIZE, dtype=np.float32)}
ALL = {"mechanism": "central", "noise_multiplier": 2.0, "clip_norm": 0.5, "delta": 1e-3}


def config_of(rounds: int = 6, n_parties: int = 8, **changes) -> FederationConfig:
    settings = {
        "architecture": "net.py:net",
        "rounds": rounds,
        "parties": [{"name": f"p{i}", "data": f"{i}.npz"} for i in range(n_parties)],
        "privacy": ALL,
    }
    config, mistakes = parse(settings | changes)
    assert [one for one in mistakes if "net.py" not in one] == []
    return config


def releaser_of(folder: Path, config: FederationConfig | None = None, group=None):
    config = config or config_of()
    return Releaser(RunLedger(folder, ID), config, group, 8, SIZE)


def sum_of(round: int, reporters=range(8), seed: int = 0, base=BASE, clip=0.5):
    """A sum of what these parties would send; another one for other parties."""
    total = np.zeros(SIZE, np.int64)
    for place in reporters:
        rng = np.random.default_rng([seed, round, place])
        total += rng.integers(-(2**14), 2**14, SIZE)
    record = RoundRecord(round, np.arange(8), config_of())
    record.settle(np.arange(8), Outcome(LATE))
    record.settle(np.array(reporters, np.int64), Outcome(FUSED))
    return RoundSum(round, total, base, clip, record)


def noise_in(release, of: RoundSum) -> np.ndarray:
    return (release.total[SUM] - of.total) / (2.0 * 2**20)


def n_releases(folder: Path) -> int:
    return len(Ledger(folder / "privacy.jsonl").releases)


def remove_files(folder: Path) -> None:
    for path in (folder / "releases").rglob("rounds/**/*.npz"):
        path.unlink()


def test_a_release_has_noise_of_the_multiplier_and_a_line_of_its_own(tmp_path):
    releaser = releaser_of(tmp_path)
    of = sum_of(1)
    noise = noise_in(releaser.release(of), of)
    assert abs(noise.std() - 1) < 0.08  # 5 deviations of 2,000 numbers
    assert abs(noise.mean()) < 0.12
    (line,) = Ledger(tmp_path / "privacy.jsonl").releases
    assert (line["run"], line["round"], line["group"]) == (ID, 1, None)
    assert (line["noise_multiplier"], line["clip_norm"]) == (2.0, 0.5)
    assert releaser.spent == {
        "epsilon": pytest.approx(epsilon_of_mu(0.5, 1e-3)),
        "delta": 1e-3,
        "releases": 1,
    }


def test_file_and_line_are_flushed_in_this_order_before_a_release_is_returned(
    tmp_path, monkeypatch
):
    order = []
    write, append = ReleaseFiles.write, Ledger.append
    monkeypatch.setattr(
        ReleaseFiles, "write", lambda *a: (write(*a), order.append("file"))[0]
    )
    monkeypatch.setattr(
        Ledger, "append", lambda self, kind, **f: (
            append(self, kind, **f), order.append(kind)
        )[0],
    )  # fmt: skip
    releaser_of(tmp_path).release(sum_of(1))
    assert order == ["start", "file", SETTINGS, RELEASE]


def test_a_round_that_was_released_is_taken_from_its_file(tmp_path):
    first = releaser_of(tmp_path).release(sum_of(1))
    again = releaser_of(tmp_path).find(1)
    assert (again.total[SUM] == first.total[SUM]).all()
    assert again.line == first.line
    assert n_releases(tmp_path) == 1
    assert releaser_of(tmp_path).find(2) is None
    record = RoundRecord(1, np.arange(0), config_of())
    record.restore(again.record)
    assert record.places_of(FUSED).tolist() == list(range(8))


def test_a_crash_between_file_and_line_gives_one_line(tmp_path, monkeypatch):
    with monkeypatch.context() as crash:
        crash.setattr(Releaser, "_record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            releaser_of(tmp_path).release(sum_of(1))
    assert n_releases(tmp_path) == 0
    again = releaser_of(tmp_path)
    release = again.find(1)
    assert n_releases(tmp_path) == 1
    assert again.find(1).line == release.line
    assert n_releases(tmp_path) == 1


@pytest.mark.parametrize("n_cut", [1, 40, 200, 330])
def test_a_line_that_power_has_cut_is_made_whole(tmp_path, n_cut):
    releaser_of(tmp_path).release(sum_of(1))
    path = tmp_path / "privacy.jsonl"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -min(n_cut, len(last) - 1)])
    releaser_of(tmp_path).find(1)
    assert path.read_bytes() == whole


def test_a_cut_line_whose_file_is_gone_counts_beside_the_one_of_the_repetition(
    tmp_path,
):
    releaser_of(tmp_path).release(sum_of(1))
    path = tmp_path / "privacy.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    remove_files(tmp_path)
    again = releaser_of(tmp_path)
    assert again.find(1) is None
    again.release(sum_of(1, range(7)))
    assert again.spent["releases"] == 2
    assert again.spent["epsilon"] == pytest.approx(epsilon_of_mu(0.5**0.5, 1e-3))


def test_with_the_file_gone_the_same_sum_gives_the_same_bits_and_no_line(tmp_path):
    first = releaser_of(tmp_path).release(sum_of(1))
    remove_files(tmp_path)
    of = sum_of(1)
    again = releaser_of(tmp_path).release(of)
    assert (again.total[SUM] == first.total[SUM]).all()
    assert again.line == first.line
    assert n_releases(tmp_path) == 1
    assert of.record.release_notes == []


OTHERS = {
    "an absent party": {"reporters": range(7)},
    "other updates": {"seed": 1},
    "other weights": {"base": {"w": BASE["w"] + np.float32(1e-7)}},
    "another clip norm": {"clip": 0.5000001},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_with_the_file_gone_anything_else_has_independent_noise_and_counts(
    tmp_path, change
):
    of = sum_of(1)
    first = noise_in(releaser_of(tmp_path).release(of), of)
    remove_files(tmp_path)
    of = sum_of(1, **change)
    other = noise_in(releaser_of(tmp_path).release(of), of)
    # 5 deviations of a correlation of 2,000 numbers
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.12
    assert n_releases(tmp_path) == 2
    assert "is another release, which counts too" in of.record.release_notes[0]
    spent = releaser_of(tmp_path).spent
    assert spent["epsilon"] == pytest.approx(epsilon_of_mu(0.5**0.5, 1e-3))


def test_a_party_that_sends_nothing_is_no_less_hidden_than_one_that_is_absent(tmp_path):
    """The same sum of other reporters: without them in the tag both look alike."""
    of = sum_of(1, range(7))
    releaser_of(tmp_path).release(of)
    remove_files(tmp_path)
    of.record.settle(np.array([7]), Outcome(FUSED))
    releaser_of(tmp_path).release(of)
    assert n_releases(tmp_path) == 2


def test_a_lost_key_makes_other_noise_and_the_round_counts_again(tmp_path):
    of = sum_of(1)
    first = noise_in(releaser_of(tmp_path).release(of), of)
    remove_files(tmp_path)
    (tmp_path / keys.RUN_KEY).unlink()
    other = noise_in(releaser_of(tmp_path).release(of), of)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.12
    lines = Ledger(tmp_path / "privacy.jsonl").releases
    assert lines[0]["key"] != lines[1]["key"]


def test_two_runs_with_one_key_in_both_folders_are_alike(tmp_path):
    totals = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        keys.write_secret(folder / keys.RUN_KEY, bytes(range(32)))
        totals.append(releaser_of(folder).release(sum_of(1)).total[SUM])
    assert (totals[0] == totals[1]).all()


def test_a_disk_that_refuses_the_line_releases_nothing_and_then_one(
    tmp_path, monkeypatch
):
    releaser = releaser_of(tmp_path)
    append = Ledger.append

    def refuse(self, kind, **fields):
        if kind == RELEASE:
            raise LedgerError("privacy.jsonl", "cannot be written: no space")
        append(self, kind, **fields)

    monkeypatch.setattr(Ledger, "append", refuse)
    with pytest.raises(LedgerError, match="no space"):
        releaser.release(sum_of(1))
    monkeypatch.undo()
    again = releaser_of(tmp_path)
    assert again.find(1) is not None
    assert n_releases(tmp_path) == 1


def test_what_is_fixed_at_the_first_release_stays_with_other_rounds(tmp_path):
    privacy = ALL | {"epsilon": 4.0, "noise_multiplier": None}
    first = releaser_of(tmp_path, config_of(6, privacy=privacy))
    z = first.settings.noise_multiplier
    assert epsilon_of_mu(math.sqrt(6) / z, 1e-3) == pytest.approx(4.0, rel=0.01)
    first.release(sum_of(1))
    longer = releaser_of(tmp_path, config_of(60, privacy=privacy))
    assert longer.settings == first.settings
    (tmp_path / "other").mkdir()
    new = releaser_of(tmp_path / "other", config_of(60, privacy=privacy))
    assert new.settings.noise_multiplier > 2 * z


@pytest.mark.parametrize(
    ("privacy", "name"),
    [({"clip_norm": 0.6}, "clip_norm"), ({"clip_norm": "adaptive"}, "clip_norm")],
)
def test_other_noise_than_the_ledger_began_with_is_refused(tmp_path, privacy, name):
    releaser_of(tmp_path).release(sum_of(1))
    config = config_of(n_parties=50, privacy=ALL | privacy)
    with pytest.raises(ConfigError, match=f"{name} was .* at the first release"):
        releaser_of(tmp_path, config)


def test_an_epsilon_that_the_next_release_exceeds_ends_training(tmp_path):
    limit = epsilon_of_mu(math.sqrt(3) / 2.0, 1e-3) * 1.0001  # of three releases
    config = config_of(6, privacy=ALL | {"epsilon": limit})
    releaser = releaser_of(tmp_path, config)
    for round in (1, 2, 3):
        assert releaser.spent_reason(round) == ""
        releaser.release(sum_of(round))
    reason = releaser.spent_reason(4)
    assert reason.startswith("budget_spent: epsilon is ")
    assert "after 3 releases; one more would make it" in reason
    assert releaser.spent_reason(3) == ""  # its file is there
    assert releaser_of(tmp_path, config).spent_reason(4) == reason
    assert releaser_of(tmp_path).spent_reason(4) == ""  # without a limit
    remove_files(tmp_path)
    assert releaser.spent_reason(3)  # it might be another release


def test_rounds_that_count_again_spend_too(tmp_path):
    limit = epsilon_of_mu(math.sqrt(2) / 2.0, 1e-3) * 1.0001
    config = config_of(6, privacy=ALL | {"epsilon": limit})
    releaser = releaser_of(tmp_path, config)
    releaser.release(sum_of(1))
    remove_files(tmp_path)
    releaser.release(sum_of(1, range(7)))
    assert "after 2 releases" in releaser.spent_reason(2)


def test_after_the_last_round_nothing_is_missing(tmp_path):
    config = config_of(2, privacy=ALL | {"epsilon": 3.0})
    assert releaser_of(tmp_path, config).spent_reason(3) == ""


def test_an_epsilon_below_one_release_is_an_error_before_round_1(tmp_path):
    config = config_of(6, privacy=ALL | {"epsilon": 0.1})
    with pytest.raises(ConfigError, match="there would be no model: raise privacy"):
        releaser_of(tmp_path, config).require_budget()


def test_groups_have_their_own_rounds_and_budget_and_one_ledger(tmp_path):
    run, config = RunLedger(tmp_path, ID), config_of()
    north, south = (Releaser(run, config, g, 4, SIZE) for g in ("north", "south"))
    a, b = sum_of(1), sum_of(1)
    noise = [noise_in(north.release(a), a), noise_in(south.release(b), b)]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.12
    north.release(sum_of(2))
    assert (north.spent["releases"], south.spent["releases"]) == (2, 1)
    assert n_releases(tmp_path) == 3
    assert south.find(1)
    assert not south.find(2)
    assert releaser_of(tmp_path, group="north").spent["releases"] == 2


def test_a_checkpoint_knows_how_long_the_ledger_was(tmp_path):
    releaser = releaser_of(tmp_path)
    releaser.release(sum_of(1))
    anchor = releaser.anchor
    releaser.release(sum_of(2))
    releaser.require(anchor, 1)
    path = tmp_path / "privacy.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    anchor = releaser.anchor
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(LedgerError, match="has 3 lines, the checkpoint of round 2"):
        releaser_of(tmp_path).require(anchor, 2)
    path.unlink()
    (tmp_path / keys.RUN_KEY).unlink()
    remove_files(tmp_path)
    with pytest.raises(LedgerError, match="has 0 lines"):
        releaser_of(tmp_path).require(anchor, 2)
    with pytest.raises(LedgerError, match=r"Restore the checkpoint, with its ledger"):
        releaser_of(tmp_path).require(None, 2)


def test_a_release_of_another_run_is_refused(tmp_path):
    releasers = []
    for name in "ab":
        (tmp_path / name).mkdir()
        releasers.append(releaser_of(tmp_path / name))
        releasers[-1].release(sum_of(1))
    file = "releases/rounds/round-00001.npz"
    (tmp_path / "b" / file).write_bytes((tmp_path / "a" / file).read_bytes())
    with pytest.raises(LedgerError, match=r"is of another run.*Restore this run's"):
        releasers[1].find(1)


def test_a_ledger_that_is_gone_while_releases_are_there_is_refused(tmp_path):
    releaser_of(tmp_path).release(sum_of(1))
    (tmp_path / "privacy.jsonl").unlink()
    with pytest.raises(LedgerError, match=r"is gone or empty.*Restore it"):
        releaser_of(tmp_path)
    (tmp_path / keys.RUN_KEY).unlink()
    with pytest.raises(LedgerError, match="is gone or empty"):
        releaser_of(tmp_path)


CYCLIC = ALL | {"sampling": "cyclic", "band": 3}


def test_groups_in_turn_ask_every_party_once_in_a_cycle(tmp_path):
    config = config_of(8, n_parties=40, party_fraction=0.25, privacy=CYCLIC)
    releaser = Releaser(RunLedger(tmp_path, ID), config, None, 40, SIZE)
    names = [party.name for party in config.parties]
    rounds = np.array([releaser.choose(names, round) for round in range(1, 9)])
    assert (rounds[:4].sum(axis=0) == 1).all()
    assert (rounds[:4] == rounds[4:]).all()
    assert (rounds[0] == releaser.choose([*names, "new"], 1)[:40]).all()
    assert (releaser.settings.cycle, releaser.settings.participations) == (4, 2)
    assert releaser.settings.expected == 10


def test_noise_in_turns_goes_by_the_rounds_before_and_outlives_a_crash(tmp_path):
    config = config_of(8, party_fraction=0.25, privacy=CYCLIC)
    in_one = tmp_path / "one"
    totals: dict[str, list] = {"one": [], "two": []}
    for name, own in totals.items():
        folder = tmp_path / name
        folder.mkdir()
        keys.write_secret(folder / keys.RUN_KEY, bytes(range(32)))
        releaser = releaser_of(folder, config)
        for round in range(1, 6):
            if name == "two":
                releaser = releaser_of(folder, config)
            own.append(releaser.release(sum_of(round)).total[SUM])
            releaser.remove_old([max(1, round - 1), round])
    for one, two in zip(*totals.values(), strict=True):
        assert (one == two).all()
    noise = [t - sum_of(r).total for r, t in enumerate(totals["one"], 1)]
    assert np.corrcoef(noise[3], noise[4])[0, 1] < -0.3  # c_1 = 1/2 is taken back
    there = sorted(path.name for path in in_one.rglob("noise/**/*.npz"))
    assert there == [f"round-0000{n}.npz" for n in (2, 3, 4, 5)]


def test_lost_noise_of_the_rounds_before_begins_a_new_sequence_that_costs_more(
    tmp_path,
):
    config = config_of(8, party_fraction=0.25, privacy=CYCLIC)
    releaser = releaser_of(tmp_path, config)
    releaser.release(sum_of(1))
    before = releaser.run.key().id
    for path in tmp_path.rglob("noise/**/*.npz"):
        path.unlink()
    of = sum_of(2)
    again = releaser_of(tmp_path, config)
    again.release(of)
    assert again.run.key().id != before
    assert "the noise of round 1 is lost" in of.record.release_notes[0]
    assert again.spent["releases"] == 2


POISSON = ALL | {"sampling": "poisson"}


def test_draws_are_independent_secret_and_the_same_again(tmp_path):
    config = config_of(8, n_parties=40, party_fraction=0.25, privacy=POISSON)
    releaser = Releaser(RunLedger(tmp_path, ID), config, None, 40, SIZE)
    names = [f"p{i}" for i in range(4000)]
    draws = np.array([releaser.choose(names, round) for round in range(1, 9)])
    assert abs(draws.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / draws.size)
    pairs = (draws[:-1] & draws[1:]).mean()
    assert abs(pairs - 0.0625) < 5 * math.sqrt(0.0625 / draws[1:].size)
    again = Releaser(RunLedger(tmp_path, ID), config, None, 40, SIZE)
    assert (again.choose(names, 3) == draws[2]).all()
    (tmp_path / "b").mkdir()
    other = Releaser(RunLedger(tmp_path / "b", ID), config, None, 40, SIZE)
    assert (other.choose(names, 3) != draws[2]).any()  # by the key, not by the seed
    assert releaser.settings.expected == 10


def test_whose_draw_is_empty_is_released_with_noise_all_the_same(tmp_path):
    config = config_of(8, party_fraction=0.25, privacy=POISSON)
    of = sum_of(1, reporters=())
    noise = noise_in(releaser_of(tmp_path, config).release(of), of)
    assert abs(noise.std() - 1) < 0.08


def test_an_adaptive_clip_norm_has_its_count_noised_with_the_sum(tmp_path):
    config = config_of(n_parties=40, privacy=ALL | {"clip_norm": "adaptive"})
    releaser = Releaser(RunLedger(tmp_path, ID), config, None, 40, SIZE)
    of = sum_of(1, clip=1.0)
    total = np.append(of.total, 8)
    release = releaser.release(RoundSum(1, total, BASE, 1.0, of.record))
    assert release.total[SUM].shape == (SIZE + 1,)
    assert release.total[SUM][-1] != 8 or release.total[SUM][-2] != total[-2]
    assert Ledger(tmp_path / "privacy.jsonl").releases[0]["clip_norm"] == 1.0


def test_an_adaptive_clip_norm_needs_parties(tmp_path):
    config = config_of(privacy=ALL | {"clip_norm": "adaptive"})
    with pytest.raises(ConfigError, match="needs above 20 parties a round"):
        releaser_of(tmp_path, config)


def test_over_rest_a_spent_budget_is_a_state_of_its_own():
    reason = {"stop_reason": "budget_spent: epsilon is 1.9 after 3 releases; ..."}
    state = State("id", None, {}, 2, state=TRAINED, metrics=reason)
    assert summarize(state)["state"] == summarize(state)["status"] == "budget_spent"
    state.metrics = {"stop_reason": "loss is 0.1, its target was 0.2"}
    assert summarize(state)["state"] == "trained"
    state.state, state.metrics = TRAINING, reason
    assert summarize(state)["state"] == "training"


def test_without_the_extra_a_run_ends_before_round_1_and_says_what_to_install(
    tmp_path, monkeypatch
):
    there = [name for name in sys.modules if name.startswith("cryptography.")]
    for name in ("cryptography", *there):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'fedray\[privacy\]'"):
        releaser_of(tmp_path)
