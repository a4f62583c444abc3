"""A run's folder that was altered or has lost files: refused, and left as it is.

Or gone on with where that is safe: as a run whose newest checkpoint is not there. No
Ray.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from test_checkpoint import checkpoint

from fedray.checkpoint import RunFolder, digest_inputs, open_run_folder
from fedray.cli import main
from fedray.config import parse
from fedray.errors import CheckpointError, RunFolderError

ROUNDS = 4


@pytest.fixture
def run(settings, tmp_path):
    """A config file, and the folder of its run, of which four rounds are done."""
    settings |= {"rounds": 6}
    file, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(settings))
    config, mistakes = parse(settings)
    assert mistakes == []
    digests = digest_inputs(config)
    with open_run_folder(folder, config, False, digests) as (opened, _):
        for round in range(1, ROUNDS + 1):
            opened.save(checkpoint(round))
    return file, folder


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files but the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def edit_config(folder: Path, change) -> None:
    file = folder / "config.yaml"
    plain = yaml.safe_load(file.read_text())
    change(plain)
    file.write_text(yaml.safe_dump(plain, sort_keys=False))


def edit_history(folder: Path, change) -> None:
    file = folder / "history.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(change(lines)))


def party(**changes):
    return lambda config: config["parties"][1].update(changes)


HARMS = {  # what happens to a folder, and what is said
    "no checkpoints": (
        lambda folder: shutil.rmtree(folder / "checkpoints"),
        "history.jsonl has 4 rounds, and every checkpoint of them is gone. Restore "
        "checkpoints/, or begin a new run",
    ),
    "empty checkpoints": (
        lambda folder: [shutil.rmtree(p) for p in (folder / "checkpoints").iterdir()],
        "every checkpoint of them is gone",
    ),
    "joined: -5": (
        lambda folder: edit_config(folder, party(joined=-5)),
        "config.yaml is lost or has been altered: party 'b': joined must be a round "
        "from 1 on, got -5. Restore it",
    ),
    "left before joined": (
        lambda folder: edit_config(folder, party(joined=4, left=2)),
        "left (in round 2) before it joined (in round 4)",
    ),
    "a name twice": (
        lambda folder: edit_config(folder, party(name="a")),
        "party name 'a' is given more than once",
    ),
    "another name": (
        lambda folder: edit_config(folder, party(name="c")),
        "cannot go on with another config: parties was",
    ),
    "another seed": (
        lambda folder: edit_config(folder, lambda config: config.update(seed=3)),
        "cannot go on with another config: seed was 3, is 0",
    ),
    "an unknown key": (
        lambda folder: edit_config(folder, lambda config: config.update(sed=3)),
        "has been altered: unknown key 'sed'",
    ),
    "no YAML": (
        lambda folder: (folder / "config.yaml").write_text("{"),
        "config.yaml is lost or has been altered",
    ),
    "no config": (
        lambda folder: (folder / "config.yaml").unlink(),
        "config.yaml is lost or has been altered: cannot read config",
    ),
    "a line cut in the middle": (
        lambda folder: edit_history(folder, lambda x: [x[0], x[1][:40] + "\n", *x[2:]]),
        "history.jsonl has been altered: line 2 is no round's. Restore it",
    ),
    "a line twice": (
        lambda folder: edit_history(folder, lambda x: [*x[:2], *x[1:]]),
        "history.jsonl has been altered: round 2 follows round 2",
    ),
    "lines in another order": (
        lambda folder: edit_history(folder, lambda x: [x[1], x[0], *x[2:]]),
        "history.jsonl has been altered: round 1 follows round 2",
    ),
    "inputs that are no JSON": (
        lambda folder: (folder / "inputs.json").write_text("[]"),
        "inputs.json is damaged",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_altered_folder_is_refused_and_left_as_it_is(run, capsys, harm):
    file, folder = run
    change, said = HARMS[harm]
    change(folder)
    before = contents(folder)
    assert main(["run", str(file), "--run-dir", str(folder), "--resume"]) == 1
    assert said in capsys.readouterr().err
    after = contents(folder)
    for name in ("failure.txt", "report.html"):  # say why
        after.pop(name, None)
    assert after == before


def test_an_aggregator_that_is_restarted_does_not_begin_anew_either(run):
    _, folder = run
    shutil.rmtree(folder / "checkpoints")
    lines = (folder / "history.jsonl").read_bytes()
    opened = RunFolder(folder)
    found, _ = opened.newest_checkpoint()
    with pytest.raises(CheckpointError, match="every checkpoint of them is gone"):
        opened.rewind(found)
    assert (folder / "history.jsonl").read_bytes() == lines


def test_a_run_without_its_newest_checkpoint_goes_on_before_it_and_says_so(run):
    _, folder = run
    shutil.rmtree(folder / "checkpoints" / "round-00004")
    opened = RunFolder(folder)
    opened.check()
    found, damage = opened.newest_checkpoint()
    assert (found.round, damage) == (3, [])
    (note,) = opened.missing_rounds(found)
    assert note == (
        "history.jsonl has 1 round after round 3 as done, but checkpoints/ does not: "
        "trained again"
    )
    assert [line.round for line in opened.rewind(found)] == [1, 2, 3]


def test_what_a_crash_leaves_is_gone_on_with(run):
    _, folder = run
    opened, file = RunFolder(folder), folder / "history.jsonl"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    crashes = ("".join(lines[:3]), whole + '{"round": 5, "cho', whole + "\0" * 30, "")
    for text in crashes:
        file.write_text(text)
        opened.check()
        assert opened.newest_checkpoint()[0].round == 4
        assert opened.missing_rounds(checkpoint(4)) == []
        assert opened.rewind(checkpoint(4))[-1].round == 4


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    settings, tmp_path
):
    config, _ = parse(settings)
    folder = tmp_path / "run"
    digests = digest_inputs(config)
    with open_run_folder(folder, config, False, digests) as (opened, _):
        report = dataclasses.replace(checkpoint(1).report, aggregated=False)
        opened.append_line(report)  # an adaptive one, whose parties train apart
    with open_run_folder(folder, config, True, digests) as (opened, _):
        assert opened.newest_checkpoint() == (None, [])
        assert opened.rewind(None) == []


def test_groups_are_looked_at_one_by_one(run):
    _, folder = run
    for name in ("eu", "us"):
        own = RunFolder(folder, group=name)
        one = checkpoint(5)
        own.save(
            dataclasses.replace(one, report=dataclasses.replace(one.report, group=name))
        )
    shutil.rmtree(folder / "checkpoints" / "us")
    with pytest.raises(RunFolderError, match="has 1 round of us, and every checkpoint"):
        RunFolder(folder).check()
    line = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
    assert (line["round"], line["group"]) == (5, "us")
