"""Run folders: whole or not there, whatever happens in between. No Ray."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedray.checkpoint import Checkpoint, RunFolder, open_run_folder
from fedray.config import parse
from fedray.errors import CheckpointError, RunFolderError
from fedray.messages import PartyLine, RoundReport

CONFIG, _ = parse(
    {
        "model_file": "m.pt",
        "num_parties": 2,
        "partition": {},
        "learning_rate": 0.01,
    }
)


def checkpoint(round: int, value: float = 0.0, size: int = 4) -> Checkpoint:
    report = RoundReport(
        round=round, chosen=2, reported=2, fused=2, aggregated=True, refused=0,
        loss=float("nan"), accuracy=None, bytes_moved=7, seconds=1.0, train_seconds=0.5,
        evaluate_seconds=0.1, evaluated=0, parties=[PartyLine("a", outcome="fused")],
    )  # fmt: skip
    weights = {"0.weight": np.full(size, value + round), "file": np.array(3)}
    return Checkpoint(round, weights, {"momentum": {"w": np.ones(2)}}, report)


def test_a_saved_checkpoint_is_read_back(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint(1))
    found, wrong = folder.newest_checkpoint()
    assert wrong == []
    assert found.round == 1
    assert list(found.weights) == ["0.weight", "file"]
    assert found.weights["0.weight"].tolist() == [1, 1, 1, 1]
    assert found.state["momentum"]["w"].tolist() == [1, 1]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    folder = RunFolder(tmp_path, keep=2)
    for round in range(1, 6):
        folder.save(checkpoint(round))
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["round-00004", "round-00005"]
    assert [report.round for report in folder.history()] == [1, 2, 3, 4, 5]


def test_history_lines_are_json_with_null_for_nan_and_infinity(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint(1))
    line = json.loads(folder.history_file.read_text())
    assert line["loss"] is None
    assert line["parties"][0]["outcome"] == "fused"


@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, harm):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint(1, size=1000))
    folder.save(checkpoint(2, size=1000))
    target = folder.checkpoints / "round-00002" / "weights.npz"
    data = bytearray(target.read_bytes())
    if harm == "cut":
        target.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        data[2000] ^= 1
        target.write_bytes(data)
    elif harm == "gone":
        target.unlink()
    else:
        (target.parent / "round.json").write_text("{")
    found, wrong = folder.newest_checkpoint()
    assert found.round == 1
    assert len(wrong) == 1
    assert "round-00002 is damaged" in wrong[0]
    assert [report.round for report in folder.rewind(found)] == [1]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint(1))
    (folder.checkpoints / "round-00001" / "weights.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="round-00001 is damaged"):
        folder.newest_checkpoint()


def test_a_crash_between_checkpoint_and_history_line_is_repaired(tmp_path):
    folder = RunFolder(tmp_path)
    for round in (1, 2, 3):
        folder.save(checkpoint(round))
    lines = folder.history_file.read_text().splitlines(keepends=True)
    folder.history_file.write_text("".join(lines[:2]))  # round 3's line is missing
    reports = folder.rewind(folder.newest_checkpoint()[0])
    assert [report.round for report in reports] == [1, 2, 3]
    folder.history_file.write_text("".join(lines) + lines[2][:40])  # a line cut short
    folder.rewind(folder.newest_checkpoint()[0])
    assert folder.history_file.read_text() == "".join(lines)


def test_a_partly_written_checkpoint_is_ignored(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint(1))
    (folder.checkpoints / "round-00002.part").mkdir()
    (folder.checkpoints / "round-00002.part" / "weights.npz").write_bytes(b"PK")
    assert folder.last_checkpoint().round == 1
    folder.save(checkpoint(2))
    assert folder.last_checkpoint().round == 2


KILLED = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_checkpoint import RunFolder, checkpoint
folder = RunFolder(Path(sys.argv[1]))
folder.save(checkpoint(1, size=2_000_000))
print("saved", flush=True)
for round in range(2, 1000):
    folder.save(checkpoint(round, size=2_000_000))
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    root = Path(__file__).parent.parent
    for delay in (0.01, 0.05, 0.13):
        target = tmp_path / str(delay)
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE,
            cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        try:
            assert writer.stdout.readline() == b"saved\n"
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(delay)
        finally:
            writer.kill()
            writer.wait()
        found, wrong = RunFolder(target).newest_checkpoint()
        assert wrong == []
        assert (found.weights["0.weight"] == found.round).all()


def test_a_full_disk_is_an_error_and_earlier_checkpoints_stay(small_disk):
    folder = RunFolder(small_disk)
    folder.save(checkpoint(1, size=50_000))  # 400 kB
    with pytest.raises(CheckpointError, match=r"No space left.*earlier .* are kept"):
        folder.save(checkpoint(2, size=100_000))  # 800 kB more
    assert folder.last_checkpoint().round == 1
    assert not list(folder.checkpoints.glob("*.part"))
    assert [report.round for report in folder.history()] == [1]


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    with open_run_folder(tmp_path, CONFIG, resume=False) as (folder, _):
        folder.save(checkpoint(1))
    with (
        pytest.raises(RunFolderError, match=r"already holds a run \(1 round done\)"),
        open_run_folder(tmp_path, CONFIG, resume=False),
    ):
        pass
    assert RunFolder(tmp_path).last_checkpoint().round == 1


def test_a_run_resumes_only_with_its_own_config(tmp_path):
    with open_run_folder(tmp_path, CONFIG, resume=False) as (folder, _):
        folder.save(checkpoint(1))
    other, _ = parse({**CONFIG.to_dict(), "batch_size": 8, "rounds": 9})
    told = "cannot go on with another config: batch_size was 64, is 8$"
    with (
        pytest.raises(RunFolderError, match=told),
        open_run_folder(tmp_path, other, resume=True),
    ):
        pass
    more, _ = parse({**CONFIG.to_dict(), "rounds": 9})
    with open_run_folder(tmp_path, more, resume=True) as (folder, _):
        assert folder.last_checkpoint().round == 1


def test_two_drivers_cannot_share_a_folder(tmp_path):
    with (
        open_run_folder(tmp_path, CONFIG, resume=False),
        pytest.raises(RunFolderError, match="another process is running in it"),
        open_run_folder(tmp_path, CONFIG, resume=False),
    ):
        pass


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [("run", "Name a folder with"), (".fedray/runs/run", "Set HOME to a folder of")],
)
def test_a_read_only_folder_is_an_error(tmp_path, folder, remedy):
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunFolderError, match=rf"cannot be written: .*\. {remedy}"),
        open_run_folder(tmp_path / "file" / folder, CONFIG, resume=False),
    ):
        pass


def test_a_folder_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("# mine")
    with (
        pytest.raises(RunFolderError, match=r"has a config\.yaml that no run wrote"),
        open_run_folder(tmp_path, CONFIG, resume=False),
    ):
        pass
    assert (tmp_path / "config.yaml").read_text() == "# mine"


def test_a_lost_history_does_not_move_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    for round in (1, 2, 3):
        folder.save(checkpoint(round))
    folder.history_file.write_text("")
    found, _ = folder.newest_checkpoint()
    assert found.round == 3
    assert [report.round for report in folder.rewind(found)] == [3]


def of_group(group: str, round: int, aggregated: bool = True) -> Checkpoint:
    whole = checkpoint(round)
    report = dataclasses.replace(whole.report, group=group, aggregated=aggregated)
    return dataclasses.replace(whole, report=report)


def test_groups_share_a_history_and_have_checkpoints_of_their_own(tmp_path):
    eu, us, all_ = (RunFolder(tmp_path, group=g) for g in ("eu", "us", None))
    followed = all_.follow()
    told = []
    for round in (1, 2):
        for folder in (eu, us):
            folder.save(of_group(folder.group, round))
            told += [(line.round, line.group) for line in next(followed)]
    assert told == [(1, "eu"), (1, "us"), (2, "eu"), (2, "us")]
    us.append_line(of_group("us", 3, aggregated=False).report)
    assert (all_.groups(), all_.last_saved_round()) == (["eu", "us"], 2)
    assert eu.last_checkpoint().round == us.last_checkpoint().round == 2
    # us was not fused in round 3: only its own line goes
    assert [line.round for line in us.rewind(us.newest_checkpoint()[0])] == [1, 2]
    eu.append_line(of_group("eu", 3, aggregated=False).report)
    lines = all_.history_file.read_bytes()
    with pytest.raises(CheckpointError, match="has 2 rounds of us, and every check"):
        us.rewind(None)
    assert all_.history_file.read_bytes() == lines


def test_rounds_that_did_not_fuse_are_rewound_to_the_last_that_did(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(checkpoint(1))
    for round in (2, 3):
        line = dataclasses.replace(checkpoint(round).report, aggregated=False)
        folder.append_line(line)
    assert [line.round for line in folder.history()] == [1, 2, 3]
    assert folder.last_saved_round() == 1
    assert [line.round for line in folder.rewind(folder.newest_checkpoint()[0])] == [1]
