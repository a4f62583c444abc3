"""Real trouble: parties that hang, fail or lie, full disks. Who dies: tests/chaos."""

from contextlib import suppress

import pytest
import ray
from support.cluster_runs import outcomes
from support.comparison import assert_close
from support.local_rounds import fedray_rounds

import fedray
from fedray.checkpoint import RunFolder
from fedray.errors import CheckpointError, RoundFailed

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_failed_party_is_recorded_and_the_round_continues(
    trouble, settings, tmp_path
):
    trouble("fail")
    history = fedray.run(settings, run_dir=tmp_path / "run", quorum=0.5).history
    assert outcomes(history[0]) == ["failed", "fused"]
    assert (history[0].reported, history[0].fused) == (1, 1)
    assert outcomes(history[1]) == ["fused", "fused"]
    failed = next(p for p in history[0].parties if p.outcome != "fused")
    assert "ValueError: trouble was asked for" in failed.outcome


def test_a_party_that_hangs_is_late_killed_and_back_next_round(
    trouble, settings, tmp_path
):
    trouble("hang")
    settings |= {"quorum": 0.5, "round_timeout_s": 15, "rounds": 2}
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    assert outcomes(history[0]) == ["fused", "late"]
    assert outcomes(history[1]) == ["fused", "fused"]
    assert 15 <= history[0].seconds < 600


def test_an_update_of_nan_is_refused_and_named(trouble, settings, tmp_path):
    trouble("nan")
    result = fedray.run(settings, run_dir=tmp_path / "run", max_refused=1)
    first = result.history[0]
    assert (first.reported, first.fused, first.refused) == (2, 1, 1)
    refused = next(p for p in first.parties if p.outcome != "fused")
    assert "refused: tensor '2.weight' is not finite" in refused.outcome
    assert all(abs(array).max() < 1e3 for array in result.weights().values())
    assert outcomes(result.history[1]) == ["fused", "fused"]


def test_when_every_update_is_refused_the_round_fails(trouble, settings, tmp_path):
    settings["parties"] = settings["parties"][:1]
    trouble("nan")
    with pytest.raises(
        RoundFailed, match=r"1 of them refused, 1 needed.*\n.*not finite"
    ):
        fedray.run(settings, run_dir=tmp_path / "run")


def test_nothing_is_left_behind(settings, tmp_path):
    fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    for name in ("aggregator:run", "party:run:a", "party:run:b"):
        with pytest.raises(ValueError, match="Failed to look up actor"):
            ray.get_actor(name)


def test_a_disk_that_fills_stops_the_run_which_then_resumes_to_the_same_bits(
    settings, small_disk
):
    settings |= {"rounds": 80, "epochs": 4}
    filler = small_disk / "filler"

    def fill(progress):
        if progress.reports and not filler.exists():
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    continue

    with pytest.raises(CheckpointError, match=r"No space left on device.*--resume"):
        fedray.run(settings, run_dir=small_disk / "run", watch=fill)
    done = RunFolder(small_disk / "run").last_checkpoint().round
    assert 1 <= done < 80
    filler.unlink()
    result = fedray.run(settings, run_dir=small_disk / "run", resume=True)
    assert [report.round for report in result.history] == list(range(1, 81))
    assert_close(result.weights(), fedray_rounds(settings), 0)


def test_a_resume_without_history_continues_from_the_checkpoint(settings, tmp_path):
    fedray.run(settings, run_dir=tmp_path / "run", rounds=2)
    (tmp_path / "run" / "history.jsonl").write_text("")
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=3, resume=True)
    assert [report.round for report in result.history] == [2, 3]
    assert_close(result.weights(), fedray_rounds(settings | {"rounds": 3}), 0)


def test_fused_weights_that_would_not_be_finite_end_the_round(settings, tmp_path):
    settings |= {"fusion_algorithm": "fedavgm", "server_learning_rate": 1e39}
    with pytest.raises(RoundFailed, match=r"'1\.weight' would not be finite"):
        fedray.run(settings, run_dir=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").is_started()
