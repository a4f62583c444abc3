"""Runs whose parties are surveyed first: names, statistics, who joins late, resume."""

import json

import numpy as np
import pytest
import yaml
from support.cluster_runs import BackgroundRun, assert_repeats
from test_survey import named, rows_of

import fedray
from fedray.cli import main
from fedray.errors import JoinFailed, RunFolderError
from fedray.federation import join

pytestmark = pytest.mark.usefixtures("cluster")
__all__ = ["named"]


@pytest.fixture
def two(named):
    """Settings of two parties whose inputs are normalized, and whose labels differ."""
    parties = named(
        a=rows_of("dog", "cat", "dog", "cat", "dog", "cat"),
        b=rows_of("emu", "cat", "cat", "dog", "cat"),
    )
    return parties | {"normalize": "federated", "rounds": 2, "learning_rate": 0.1}


@pytest.fixture
def file(tmp_path):
    def write(settings):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


def test_who_joins_late_and_who_goes_on_read_their_data_by_the_first_codes(
    two, named, tmp_path
):
    run = BackgroundRun(two, tmp_path / "run")
    run.wait_for_round(1)
    saved = json.loads((tmp_path / "run/normalization.json").read_text())
    assert [row[0] for row in saved["labels"]] == ["cat", "dog", "emu"]
    pooled = np.array([0, 10, 20, 30, 0, 10, 20])
    column = saved["inputs"][""]
    assert column["mean"] == pytest.approx([pooled.mean(), 1], rel=1e-12)
    assert column["deviation"] == pytest.approx([pooled.std(), 0], rel=1e-12)
    late = named(c=rows_of("cat", "cat", "cat", "dog"))["parties"][0]
    strange = named(d=rows_of("gnu", "cat", "cat", "dog"))["parties"][0]
    assert join("run", late).n_train == 2
    with pytest.raises(JoinFailed, match=r"d: .* row 1 that no party had before"):
        join("run", strange)
    run.wait_for_round(run.round + 2)
    run.stop()
    again = fedray.run(two, run_dir=tmp_path / "run", resume=True, rounds=run.round + 4)
    assert again.history[-1].round == run.round + 4
    assert_repeats(tmp_path / "run", tmp_path / "again")
    one, other = (
        json.loads((tmp_path / name / "normalization.json").read_text())
        for name in ("run", "again")
    )
    assert [one[key] for key in ("inputs", "labels")] == [
        other[key] for key in ("inputs", "labels")
    ]
    (tmp_path / "run/normalization.json").unlink()
    with pytest.raises(RunFolderError, match=r"normalization\.json is lost"):
        fedray.run(two, run_dir=tmp_path / "run", resume=True, rounds=1_000)


def test_a_check_finds_what_a_run_would_stop_at_and_stats_show_no_rare_name(
    two, file, named, tmp_path, capsys
):
    assert main(["check", file(two)]) == 0
    assert main(["stats", file(two)]) == 0
    shown = capsys.readouterr().out
    assert "7 training samples of 2 parties" in shown
    assert "labels: 3 values\n  3 are not shown: fewer than 5 samples" in shown
    assert main(["stats", file(two), "--min-count", "2", "--json", "--extremes"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in told["categories"]["y"]["values"]] == ["cat", "dog"]
    assert told["categories"]["y"]["n_left_out"] == 1
    assert told["columns"][0]["maximum"] == 30
    (tmp_path / "b.json").write_text(json.dumps([[1, 2, "cat"]] * 4))
    why = "x holds 3 columns, not 2 columns, other than at party a"
    assert main(["check", file(two)]) == 1
    assert f"party b: {why}" in capsys.readouterr().out
    with pytest.raises(JoinFailed, match=f"b: {why}"):
        fedray.run(two, run_dir=tmp_path / "run")
    tests = named(tests=rows_of("gnu", "cat", "cat"))["parties"][0]["data"]
    named(b=rows_of("emu", "cat", "cat", "dog", "cat"))
    with pytest.raises(fedray.FedrayError, match="row 1 that no party had before"):
        fedray.run(two, run_dir=tmp_path / "run", test_data=tests)
