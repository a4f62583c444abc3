"""Runs with noise for parties on the cluster: ledger, budget, kills at every stage."""

import itertools
import json
import os
import shutil
import signal
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from ray import cloudpickle

import fedray
from fedray.aggregator import Aggregator
from fedray.aggregator.global_model import GlobalModel
from fedray.aggregator.releases import Releaser
from fedray.checkpoint import RunFolder, run_inputs
from fedray.errors import LedgerError, RoundFailed
from fedray.federation import actors, runs
from fedray.privacy import keys
from fedray.privacy.gaussian import epsilon_of_mu
from fedray.privacy.ledger import Ledger
from fedray.privacy.release_files import ReleaseFiles
from fedray.weights import load

pytestmark = pytest.mark.usefixtures("cluster")
PRIVACY = {
    "mechanism": "central",
    "noise_multiplier": 1.0,
    "clip_norm": 0.5,
    "delta": 1e-3,
}


class KillingAggregator(Aggregator):
    """Kills its process once at each stage that a file beside the run's folder names.

    From a kill to its round's end a file `absent` is there: party c is not asked.
    """

    def __init__(self, plan, pools):
        super().__init__(plan, pools)
        self.orders = Path(plan.folder).parent
        self.before(Releaser, "release", "before the release")
        self.after(ReleaseFiles, "write", "before the line")
        self.after(Releaser, "release", "before the step")
        self.before(GlobalModel, "save", "before the checkpoint")

    def open_step(self, model, number):
        step = super().open_step(model, number)
        if (self.orders / "absent").exists():
            step.items = [item for item in step.items if item.actor != "c"]
        return step

    def before(self, owner, name, stage):
        function = getattr(owner, name)

        def wrapped(*args, **words):
            self.die_if_ordered(stage)
            return function(*args, **words)

        setattr(owner, name, wrapped)

    def after(self, owner, name, stage):
        function = getattr(owner, name)

        def wrapped(*args, **words):
            result = function(*args, **words)
            self.die_if_ordered(stage)
            return result

        setattr(owner, name, wrapped)

    def die_if_ordered(self, stage):
        order = self.orders / f"{stage}, round {self.round}"
        if order.exists():
            if order.read_text() == "without files":
                first = self.orders / "first"
                shutil.copytree(self.releases, first, dirs_exist_ok=True)
                shutil.rmtree(self.releases)
            order.unlink()
            (self.orders / "absent").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def releases(self):
        return Path(self.plan.folder) / "releases"

    def publish(self, *arguments):
        for model in self.models:
            model.wait_until_saved()
        self.die_if_ordered("after the checkpoint")
        (self.orders / "absent").unlink(missing_ok=True)
        super().publish(*arguments)


@pytest.fixture
def private(settings, digits):
    """Three parties, each with noise."""
    settings["parties"].append({"name": "c", "data": digits("c", 40, skip=104)})
    return settings | {"privacy": PRIVACY, "quorum": 0.5, "keep_checkpoints": 9}


@pytest.fixture
def killing(monkeypatch):
    """Runs of this test have an aggregator that can be killed at a stage."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(actors, "Aggregator", KillingAggregator)
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


STAGES = (
    "before the release",
    "before the line",
    "before the step",
    "before the checkpoint",
    "after the checkpoint",
)


def play(private: dict, folder: Path, orders=(), text: str = "") -> fedray.Result:
    """A run with the same id and key as all others of this function."""
    folder.mkdir()
    run_dir = folder / "run"
    run_dir.mkdir()
    keys.write_secret(run_dir / keys.RUN_KEY, bytes(range(32)))
    for order in orders:
        (folder / order).write_text(text)
    ids = types.SimpleNamespace(token_hex=lambda n: "ab" * n)
    with mock.patch.object(run_inputs, "secrets", ids):
        return fedray.run(private, run_dir=run_dir)


def lines_of(folder: Path) -> list[dict]:
    return Ledger(folder / "run" / "privacy.jsonl").releases


def test_kills_at_every_stage_give_one_line_a_round_and_the_same_bits(
    private, tmp_path, killing
):
    private |= {"rounds": len(STAGES)}
    orders = [f"{stage}, round {i}" for i, stage in enumerate(STAGES, 1)]
    killed = play(private, tmp_path / "killed", orders)
    left = [order for order in orders if (tmp_path / "killed" / order).exists()]
    assert left == []  # every kill was carried out
    whole = play(private, tmp_path / "whole", ["absent"])  # c, in round 1
    lines, others = lines_of(tmp_path / "killed"), lines_of(tmp_path / "whole")
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["tag"] for line in lines] == [line["tag"] for line in others]
    for name, array in whole.weights().items():
        assert (killed.weights()[name] == array).all()
    for one, other in zip(killed.history, whole.history, strict=True):
        assert one.privacy == other.privacy
        assert (one.reported, one.fused) == (other.reported, other.fused)
    assert killed.history[-1].privacy["releases"] == 5
    folder = tmp_path / "killed" / "run"
    assert not (folder / keys.RUN_KEY).exists()  # the run is done


def test_with_the_release_file_gone_other_reporters_cost_more_and_show_no_update(
    private, tmp_path, killing
):
    private |= {"rounds": 3}
    orders = ["before the checkpoint, round 2", "before the step, round 3"]
    result = play(private, tmp_path / "run", orders, "without files")
    folder = tmp_path / "run"
    lines = lines_of(folder)
    assert [line["round"] for line in lines] == [1, 2, 2, 3, 3]
    assert len({line["tag"] for line in lines}) == 5
    spent = result.history[-1].privacy
    assert spent["releases"] == 5
    assert spent["epsilon"] == pytest.approx(epsilon_of_mu(5**0.5, 1e-3))
    assert [line.fused for line in result.history] == [3, 2, 2]
    first = load(next((folder / "first").rglob("rounds/round-00003.npz")))["/sum"]
    second = load(next((folder / "run").rglob("rounds/round-00003.npz")))["/sum"]
    # fresh noise twice: the difference has √2 of it, where c's update has 2²⁰ / √d
    deviation = (first.astype(float) - second).std() / 2**20
    assert deviation == pytest.approx(2**0.5, rel=0.05)


def test_a_failed_quorum_releases_nothing(private, tmp_path, killing):
    with pytest.raises(RoundFailed, match="2 reported, 3 needed"):
        play(private | {"quorum": 1.0}, tmp_path / "run", ["absent"])
    assert lines_of(tmp_path / "run") == []
    assert not (tmp_path / "run" / "run" / "releases").exists()


def test_a_run_ends_where_the_next_release_would_exceed_epsilon(private, tmp_path):
    limit = epsilon_of_mu(2**0.5, 1e-3) * 1.001  # of two releases
    private["privacy"] = PRIVACY | {"epsilon": limit}
    private["rounds"] = 5
    result = fedray.run(private, run_dir=tmp_path / "run")
    assert result.state == "budget_spent"
    assert len(result.history) == 2
    assert result.model.exists()
    assert "one more would make it" in result.stop_reason
    assert "above privacy.epsilon" in result.report.read_text()
    (state,) = runs.read_past(str(tmp_path / "run"))
    assert (state.stage, state.is_past) == ("budget_spent", True)
    notes = []
    again = fedray.run(
        private, run_dir=tmp_path / "run", resume=True,
        watch=lambda progress: notes.extend(progress.notes),
    )  # fmt: skip
    assert len(again.history) == 2
    assert any("change privacy.epsilon" in note for note in notes)
    private["privacy"] = PRIVACY | {"epsilon": epsilon_of_mu(3**0.5, 1e-3) * 1.001}
    more = fedray.run(private, run_dir=tmp_path / "run", resume=True)
    assert len(more.history) == 3
    assert len({line["key"] for line in lines_of(tmp_path)}) == 2


def test_a_copied_folder_is_refused_before_anything_starts(private, tmp_path):
    private["rounds"] = 1
    fedray.run(private, run_dir=tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    private["rounds"] = 2
    with pytest.raises(LedgerError, match=r"in a copy of the run's.*--as-new-run"):
        fedray.run(private, run_dir=tmp_path / "copy", resume=True)
    result = fedray.run(
        private, run_dir=tmp_path / "copy", resume=True, as_new_run=True
    )
    assert result.history[-1].privacy["releases"] == 2
    ids = {
        json.loads((tmp_path / name / "inputs.json").read_text())["run_id"]
        for name in ("run", "copy")
    }
    assert len(ids) == 2
    shutil.rmtree(tmp_path / "copy")
    shutil.copytree(tmp_path / "run", tmp_path / "short")
    (tmp_path / "run" / "privacy.jsonl").unlink()
    with pytest.raises(LedgerError, match="is gone or empty, and releases/ has"):
        fedray.run(private, run_dir=tmp_path / "run", resume=True)


@pytest.mark.parametrize("sampling", ["cyclic", "poisson"])
def test_a_part_of_the_parties_trains_and_an_empty_round_is_released_too(
    private, tmp_path, sampling
):
    private["privacy"] = PRIVACY | {"sampling": sampling}
    private |= {"rounds": 4, "party_fraction": 0.25}
    result = fedray.run(private, run_dir=tmp_path / "run")
    lines = lines_of(tmp_path)
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert result.history[-1].privacy["releases"] == 4
    folder = RunFolder(tmp_path / "run", keep=9)
    weights = [folder.checkpoint_of(round).weights for round in range(1, 5)]
    for before, after in itertools.pairwise(weights):
        moved = [np.abs(after[name] - before[name]).max() for name in after]
        assert min(moved) > 0  # noise, whoever was asked


def test_groups_have_budgets_of_their_own_in_one_ledger(private, tmp_path):
    limit = epsilon_of_mu(2**0.5, 1e-3) * 1.001
    for party in private["parties"]:
        party["fields"] = {"region": "north" if party["name"] == "c" else "south"}
    private |= {"groups": {"by": "region"}, "rounds": 3}
    private["privacy"] = PRIVACY | {"epsilon": limit}
    result = fedray.run(private, run_dir=tmp_path / "run")
    assert [line["group"] for line in lines_of(tmp_path)].count("north") == 2
    assert len(lines_of(tmp_path)) == 4
    spent = [line.privacy["epsilon"] for line in result.history if line.round == 2]
    assert spent == [pytest.approx(epsilon_of_mu(2**0.5, 1e-3))] * 2
    assert result.state == "budget_spent"
