"""Runs with DP-SGD on the cluster: kills, resume, budgets over runs, and refusals."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import yaml
from support.comparison import assert_close
from support.kills import DRIVER, TESTS
from support.waiting import PATIENCE_S

import fedray
from fedray import cli, data, fusion, models
from fedray.checkpoint import RunFolder
from fedray.checkpoint.run_inputs import read_run_id
from fedray.config import parse, read_yaml
from fedray.errors import JoinFailed, RunFolderError
from fedray.messages import ActorLocation
from fedray.party import GroupPlan, PartyGroup
from fedray.privacy.data_accounts import data_set_of
from fedray.privacy.party_book import TRAINING, PartyBook

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def private(settings, tmp_path):
    return settings | {
        "dp_sgd": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-3},
        "party_dir": str(tmp_path / "party"),
        "rounds": 4,
        "keep_checkpoints": 10,
    }


def trainings(settings: dict) -> list[dict]:
    book = PartyBook(Path(settings["party_dir"]))
    with book.locked():
        return [line for line in book.lines if line["kind"] == TRAINING]


def retrain(folder: Path) -> None:
    """Train every round of a run again, from its checkpoints, in this process.

    The same bits follow, and nothing more is spent.
    """
    config, _ = parse(read_yaml(folder / "config.yaml"))
    blueprint, weights = models.named(config.model_type).read(config)
    handler, run = data.named(config.data_handler), read_run_id(folder)
    torch.set_num_threads(1)  # as in an actor of one core
    parties = [
        PartyGroup(
            GroupPlan(
                party.name, range(i, i + 1), config, blueprint, handler,
                own_folder=f"{config.party_dir}/{run}",
            ),
            lambda: ActorLocation("n"),
        )
        for i, party in enumerate(config.parties)
    ]  # fmt: skip
    rule, saved = fusion.from_config(config, blueprint.parameters), RunFolder(folder)
    state, rule.n_parties = rule.init(weights), len(parties)
    for round in saved.saved_rounds():
        checkpoint = saved.checkpoint_of(round)
        context = fusion.RoundContext(round, weights, state)
        updates = [
            party.train(round, np.array(party.plan.parties), weights, state)[1]
            for party in parties
        ]
        terms = (rule.to_additive(one, weights, state) for one in updates)
        combined = fusion.combine(rule, terms, context)
        weights, state = rule.step(weights, combined, state)
        assert_close(weights, checkpoint.weights, 0)


def test_kills_and_resume_change_no_bits_and_cost_nothing(private, tmp_path):
    config, run_dir = tmp_path / "killed.yaml", tmp_path / "killed"
    config.write_text(yaml.safe_dump(private))
    address = ray.get_runtime_context().gcs_address
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    env = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": path}
    victims = ("party", "aggregator", "driver")
    command = [sys.executable, str(DRIVER), str(config), str(run_dir), "a", *victims]
    done = subprocess.run(
        command, env=env, timeout=PATIENCE_S, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    result = fedray.run(private, run_dir=run_dir, resume=True)
    lines = trainings(private)
    assert Counter(line["party"] for line in lines) == {"a": 4, "b": 4}
    retrain(run_dir)
    assert trainings(private) == lines
    report = result.history[-1]
    assert report.privacy["samples"]["epsilon"] > 0
    moved = {**private, "party_dir": str(tmp_path / "elsewhere"), "rounds": 5}
    with pytest.raises(RunFolderError, match="party_dir was"):
        fedray.run(moved, run_dir=run_dir, resume=True)


def test_runs_of_other_names_share_one_budget(private, tmp_path, capsys):
    private["rounds"] = 1
    fedray.run(private, run_dir=tmp_path / "first")
    private["parties"][0]["name"] = "renamed"
    with pytest.raises(JoinFailed) as refused:
        fedray.run(private | {"name": "other"}, run_dir=tmp_path / "second")
    assert sorted(refused.value.reasons) == ["b", "renamed"]
    for why in refused.value.reasons.values():
        assert "this run would bring epsilon of the party's data over all runs" in why
        assert f"fedray privacy limit EPSILON {private['party_dir']}" in why
    assert len(trainings(private)) == 2
    assert cli.main(["privacy", "limit", "1000", private["party_dir"]]) == 0
    notes = []
    fedray.run(
        private | {"name": "other"},
        run_dir=tmp_path / "third",
        watch=lambda progress: notes.extend(progress.notes),
    )
    assert len(trainings(private)) == 4
    assert any("party renamed: all rounds of this run bring eps" in n for n in notes)
    capsys.readouterr()
    assert cli.main(["privacy", "show", "--json", private["party_dir"]]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [len(one["runs"]) for one in summary["data"]] == [2, 2]


def test_a_party_whose_budget_ends_in_a_run_is_one_that_failed(private, tmp_path):
    private |= {"quorum": 0.5, "rounds": 60}  # whichever round is seen, others follow
    book, spent = PartyBook(Path(private["party_dir"])), []

    def spend(progress) -> None:
        """As another run does meanwhile, on the data of party a."""
        if not progress.reports or spent:
            return
        spent.append(progress.reports[0].round)
        with book.locked():
            line = next(x for x in book.lines if x.get("party") == "a" and "tag" in x)
            fields = {k: v for k, v in line.items() if k not in ("kind", "at")}
            more = fields | {"run": "another", "tag": "aa" * 32, "n_steps": 100_000}
            assert data_set_of(more) == data_set_of(line)
            book.add(TRAINING, **more)

    result = fedray.run(private, run_dir=tmp_path / "run", watch=spend)
    outcomes = [
        {line.name: line.outcome for line in report.parties}
        for report in result.history
    ]
    assert outcomes[-1]["b"] == "fused"
    assert outcomes[-1]["a"].startswith("failed: ")
    assert "would bring epsilon of the party's data" in outcomes[-1]["a"]
    of_run = [line for line in trainings(private) if line["run"] != "another"]
    assert Counter(line["party"] for line in of_run)["b"] == 60
