"""Ledger, key and release files in a run's folder: made, found, moved on, ended."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from fedray.aggregator.round_record import Evaluation, RoundRecord
from fedray.config import FederationConfig
from fedray.errors import LedgerError
from fedray.messages import FAILED, FUSED, Outcome, Rejection, Report
from fedray.privacy import keys
from fedray.privacy.central import ReleaseLine
from fedray.privacy.ledger import RELEASE, Ledger
from fedray.privacy.release_files import Release, ReleaseFiles
from fedray.privacy.run_ledger import (
    RunLedger,
    become_new_run,
    end_secrets,
    require_own_folder,
)

ID = "ab" * 16


@pytest.fixture
def folder(tmp_path):
    """Of a run with two releases."""
    folder = tmp_path / "run"
    folder.mkdir()
    run = RunLedger(folder, ID)
    run.key()
    for round in (1, 2):
        run.ledger.append(RELEASE, round=round)
    return folder


def test_key_and_ledger_are_made_when_they_are_needed(tmp_path):
    run = RunLedger(tmp_path, ID)
    assert list(tmp_path.iterdir()) == []
    assert run.run_id == ID
    key = run.key()
    assert run.key() is key
    assert RunLedger(tmp_path, "another").key().id == key.id
    assert RunLedger(tmp_path, "another").run_id == ID
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"privacy.key": 0o600, "privacy.jsonl": 0o600}


def test_a_key_that_was_put_there_is_taken(tmp_path):
    secret = keys.make_secret(tmp_path / keys.RUN_KEY)
    assert RunLedger(tmp_path, ID).key().id == keys.SecretKey(secret).id
    assert keys.read_secret(tmp_path / keys.RUN_KEY) == secret


def test_a_lost_key_is_replaced_by_one_of_another_id(folder):
    before = RunLedger(folder, ID).key().id
    (folder / keys.RUN_KEY).unlink()
    run = RunLedger(folder, ID)
    assert run.key().id != before
    assert [line["kind"] for line in run.ledger.lines].count("start") == 2
    assert len(RunLedger(folder, ID).ledger.releases) == 2


def test_a_key_that_does_not_fit_is_refused(folder):
    keys.make_secret(folder / keys.RUN_KEY)
    with pytest.raises(LedgerError, match="Restore the key that belongs to it"):
        RunLedger(folder, ID)


def test_a_torn_line_counts_also_when_the_key_is_lost(folder):
    path = folder / "privacy.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    (folder / keys.RUN_KEY).unlink()
    run = RunLedger(folder, ID)
    run.key()
    assert len(run.ledger.releases) == 2
    assert len(RunLedger(folder, ID).ledger.releases) == 2


def test_a_copied_folder_is_refused_until_it_is_a_run_of_its_own(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(LedgerError, match=r"in a copy of the run's.*--as-new-run"):
        RunLedger(copy, ID)
    (copy / "releases" / "noise").mkdir(parents=True)
    run_id = become_new_run(copy)
    assert len(bytes.fromhex(run_id)) == 16
    new, old = RunLedger(copy, "another"), RunLedger(folder, ID)
    assert new.run_id == run_id != old.run_id == ID
    assert new.key().id != old.key().id
    assert len(new.ledger.releases) == 2
    assert not (copy / "releases" / "noise").exists()


def test_a_folder_that_was_renamed_is_the_same_run(folder, tmp_path):
    os.replace(folder, tmp_path / "renamed")
    assert len(RunLedger(tmp_path / "renamed", ID).ledger.releases) == 2


def test_a_run_without_a_ledger_cannot_be_a_new_one(tmp_path):
    with pytest.raises(LedgerError, match=r"only a run with privacy.*Go on without"):
        become_new_run(tmp_path)
    require_own_folder(tmp_path)


def test_an_altered_ledger_is_no_new_run(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "privacy.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round": 2', b'"round": 1'))
    with pytest.raises(LedgerError, match="has been altered"):
        become_new_run(copy)


def test_the_secrets_of_a_run_that_is_done_are_deleted(folder):
    ReleaseFiles(folder).write_noise("0a", 1, np.ones(3))
    ReleaseFiles(folder, "g").write_noise("0a", 1, np.ones(3))
    end_secrets(folder)
    end_secrets(folder)
    assert not (folder / keys.RUN_KEY).exists()
    assert [*(folder / "releases").rglob("*.npz")] == []
    assert len(Ledger(folder / "privacy.jsonl").releases) == 2


LINE = ReleaseLine(ID, None, 3, "0f", "12", 1.1, 0.5, 1.0)


def release(round: int, **total) -> Release:
    return Release(LINE._replace(round=round), total, {"chosen": [0, 1]})


@pytest.mark.parametrize("group", [None, "north"])
def test_a_release_is_read_as_it_was_written(tmp_path, group):
    files = ReleaseFiles(tmp_path, group)
    total = {"w": np.array([[1, -5], [7, 2**31 - 1]]), "b": np.array([2**31])}
    files.write(release(3, **total))
    again = ReleaseFiles(tmp_path, group).read(3)
    assert again.line == LINE
    assert again.record == {"chosen": [0, 1]}
    assert again.total.keys() == total.keys()
    for name, array in total.items():
        assert (again.total[name] == array).all()
    assert files.read(2) is None
    assert ReleaseFiles(tmp_path, "other").read(3) is None
    mode = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.npz")}
    assert mode == {0o600}


def test_a_damaged_release_is_refused(tmp_path):
    files = ReleaseFiles(tmp_path)
    files.write(release(3, w=np.arange(9)))
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for damaged in (b"", whole[:200], whole.replace(b'"round": 3', b'"round": 4')):
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match=r"is damaged .*Delete it"):
            files.read(3)


def test_a_release_lives_as_long_as_the_checkpoint_of_its_round(tmp_path):
    files = ReleaseFiles(tmp_path)
    for round in range(1, 8):
        files.write(release(round, w=np.arange(2)))
        files.write_noise("0a", round, np.ones(2))
    files.remove_old([2, 5, 6], n_noise=0)  # 2 is the best, 7 is not saved yet
    there = [round for round in range(1, 8) if files.read(round)]
    assert there == [2, 5, 6, 7]
    files.remove_old([5, 6], n_noise=2)
    there = [
        round for round in range(1, 8) if files.read_noise("0a", round) is not None
    ]
    assert there == [4, 5, 6, 7]


def test_a_disk_that_refuses_is_an_error_before_anything_was_released(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LedgerError, match=r"No space left.*Nothing was released"):
        ReleaseFiles(tmp_path).write(release(1, w=np.arange(2)))
    with pytest.raises(LedgerError, match="No space left"):
        RunLedger(tmp_path, ID).key()
    monkeypatch.undo()
    assert ReleaseFiles(tmp_path).read(1) is None
    assert RunLedger(tmp_path, ID).key()


def record_of(chosen) -> RoundRecord:
    names = [{"name": name, "data": f"{name}.npz"} for name in "abcd"]
    config = FederationConfig.model_validate({"parties": names, "num_parties": 4})
    return RoundRecord(3, np.array(chosen), config)


def test_a_record_is_restored_as_it_was():
    before = record_of([0, 1, 3])
    refused = {3: Rejection("norm", "too long")}
    values = np.array([0.5, np.nan]), np.array([1.0, 2.0])
    before.add_report(
        Report(3, "n1", np.array([1, 3]), np.array([5, 6]), *values, 2.0, 8, refused)
    )
    before.settle(np.array([1]), Outcome(FUSED))
    before.settle(np.array([0]), Outcome(FAILED, "call", "it broke"))
    before.bytes_moved, before.restarts = 77, 1
    after = record_of([1, 2])
    after.restore(before.to_json())
    done = Evaluation()
    assert dataclasses.replace(after.close(done, 1.0), combine_seconds=0.0) == (
        dataclasses.replace(before.close(done, 1.0), combine_seconds=0.0)
    )
    assert after.places_of(FUSED).tolist() == [1]
    assert after.n_reported == before.n_reported == 2
