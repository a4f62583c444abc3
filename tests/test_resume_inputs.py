"""A resumed run whose files are not what it began with: refused, or said."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import ray

import fedray
from fedray.aggregator.data_changes import DataChanges
from fedray.checkpoint import add_inputs, digest_inputs, open_run_folder, write_config
from fedray.config import parse
from fedray.data import load_samples
from fedray.data.text import check_documents
from fedray.errors import RunFolderError
from fedray.messages import CHANGED, FIRST, SAME
from fedray.party.data_record import compare_with_record

HANDLER = """
import numpy as np
class Mine:
    def __init__(self, path): self.file = np.load(path)
    def get_data(self):
        f = self.file
        return (f["x_train"], f["y_train"]), (f["x_test"], f["y_test"])
"""


@pytest.fixture
def files(settings, tmp_path):
    """Settings whose code, model and data are files of the test's own."""
    handler = tmp_path / "mine.py"
    handler.write_text(HANDLER + "import reading")
    (tmp_path / "reading.py").write_text("x = 1")
    own = tmp_path / "own.py"
    own.write_text(HANDLER)
    settings["data_handler"] = f"{handler}:Mine"
    settings["parties"][1]["data_handler"] = f"{own}:Mine"
    settings["party_dir"] = str(tmp_path / "parties")
    return settings


def open_folder(folder: Path, settings: dict, is_started: bool = True):
    """What `fedray run` does to a run's folder before any actor starts."""
    config, mistakes = parse(settings)
    assert mistakes == []
    if is_started:
        begun = Path(__file__).parent / "data/written-by-0.1.0/runs/digits"
        shutil.copyfile(begun / "history.jsonl", folder / "history.jsonl")
        shutil.copytree(
            begun / "checkpoints", folder / "checkpoints", dirs_exist_ok=True
        )
    with open_run_folder(folder, config, is_started, digest_inputs(config)) as opened:
        return opened[1]


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("mlp.py", "architecture mlp.py"),
        ("mine.py", "data_handler mine.py"),
        ("own.py", "data_handler own.py of party b"),
        ("first.pt", "model_file first.pt"),
        ("reading.py", "data_handler reading.py (imported by mine.py)"),
    ],
)
def test_a_run_does_not_go_on_with_other_code_or_another_model(
    files, tmp_path, file, what
):
    (tmp_path / "first.pt").write_bytes(b"a model")
    files["model_file"] = str(tmp_path / "first.pt")
    open_folder(tmp_path / "run", files, is_started=False)
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    text = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(text + b"\n# edited")
    with pytest.raises(RunFolderError) as caught:
        open_folder(tmp_path / "run", files | {"rounds": 9})
    assert f"cannot go on: {what} is not what it was when the run" in str(caught.value)
    assert "Restore it, or begin a new run" in str(caught.value)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == config
    (tmp_path / file).write_bytes(text)
    assert open_folder(tmp_path / "run", files).changed_data == []


def test_files_may_move_and_be_touched(files, tmp_path):
    first = open_folder(tmp_path / "run", files, is_started=False)
    (tmp_path / "other").mkdir()
    for file in ("mlp.py", "mine.py", "reading.py", "own.py"):
        shutil.move(tmp_path / file, tmp_path / "other" / file)
    other = tmp_path / "other"
    files |= {"architecture": f"{other}/mlp.py:mlp"}
    files |= {"data_handler": f"{other}/mine.py:Mine"}
    files["parties"][1]["data_handler"] = f"{other}/own.py:Mine"
    assert open_folder(tmp_path / "run", files) == first


def test_a_run_that_is_begun_anew_takes_the_files_as_they_are(files, tmp_path):
    first = open_folder(tmp_path / "run", files, is_started=False)
    (tmp_path / "mlp.py").write_text((tmp_path / "mlp.py").read_text() + "\n")
    second = open_folder(tmp_path / "run", files, is_started=False)
    assert first.run_id != second.run_id
    assert first.digests != second.digests


def test_a_run_without_digests_goes_on_and_has_them_from_then_on(files, tmp_path):
    open_folder(tmp_path / "run", files, is_started=False)
    (tmp_path / "run" / "inputs.json").unlink()
    inputs = open_folder(tmp_path / "run", files)
    assert inputs.first_round == 3  # two were done
    (tmp_path / "mlp.py").write_text("def mlp(): ...")
    with pytest.raises(RunFolderError, match=r"architecture mlp\.py is not what"):
        open_folder(tmp_path / "run", files)


def test_digests_that_cannot_be_read_are_not_taken_for_none(files, tmp_path):
    open_folder(tmp_path / "run", files, is_started=False)
    (tmp_path / "run" / "inputs.json").write_text('{"run_id": "a"')
    with pytest.raises(RunFolderError, match=r"inputs\.json is damaged.*Delete .*/inp"):
        open_folder(tmp_path / "run", files)


def test_code_of_a_party_that_joins_is_compared_when_the_run_is_resumed(
    files, tmp_path
):
    open_folder(tmp_path / "run", files, is_started=False)
    add_inputs(tmp_path / "run", {"data_handler mine.py of party c": "0"})
    joined = {**files["parties"][0], "name": "c", "joined": 2}
    joined["data_handler"] = files["data_handler"]
    files["parties"].append(joined)
    write_config(tmp_path / "run", parse(files)[0])
    with pytest.raises(RunFolderError) as caught:
        open_folder(tmp_path / "run", files)
    assert "data_handler mine.py of party c is not what it was" in str(caught.value)


def test_a_party_keeps_a_digest_and_says_only_whether_data_is_the_same(tmp_path):
    file = tmp_path / "parties" / "run-1" / "a" / "data.sha256"
    assert compare_with_record(str(file), lambda: "0") == FIRST
    assert compare_with_record(str(file), lambda: "0") == SAME
    assert compare_with_record(str(file), lambda: "1") == CHANGED
    assert compare_with_record(str(file), lambda: "0") == SAME
    assert file.stat().st_mode & 0o777 == 0o600
    assert compare_with_record("/dev/null/x", lambda: "1") == FIRST
    assert compare_with_record("~nobody-of-this-name/x", lambda: "1") == FIRST
    assert compare_with_record("", lambda: "1") == SAME


class Fixed:
    """A handler of arrays that a test makes."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def get_data(self):
        return self.arrays[:2], self.arrays[2:]


def test_every_bit_of_the_samples_counts_and_their_shape():
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4)
    arrays = (x, y, x[:1], y[:1])
    digest = load_samples(Fixed(*arrays), "").digest()
    assert load_samples(Fixed(*map(np.copy, arrays)), "").digest() == digest
    others = [(-x, y, *arrays[2:]), (x, y[::-1], *arrays[2:]), (x, y, -x[:1], y[:1])]
    others += [(x.astype(np.float64), y, x[:1], y[:1]), (x, y, x[:0], y[:0])]
    others += [(x.reshape(4, 1, 3), y, x[:1].reshape(1, 1, 3), y[:1])]
    digests = {load_samples(Fixed(*other), "").digest() for other in others}
    assert len(digests | {digest}) == 7


def test_every_word_tag_and_group_of_documents_counts():
    texts = [
        [("a", ["red", "hat"]), ("b", ["sea"])],
        [("a", ["red"]), ("b", ["hat", "sea"])],
        [("b", ["red", "hat"]), ("a", ["sea"])],
        [("a", ["red", "hat"], "g"), ("b", ["sea"], "g")],
        [("a", ["red", "hat"], "None"), ("b", ["sea"], "None")],
    ]
    digests = [check_documents(text, "").digest() for text in texts]
    assert len(set(digests)) == 5
    assert check_documents(texts[0], "").digest() == digests[0]


def test_who_has_other_data_is_said_once_and_in_one_line(settings):
    config, _ = parse(settings)
    changes = DataChanges(config, recorded_rounds=2)
    changes.note("a", SAME)
    changes.note("b", CHANGED)
    changes.note("new", FIRST)  # has joined since
    assert changes.sentences(3) == [
        "the data of party b is not what it was when the run began; it is used as it "
        "is now, from round 3 on"
    ]
    changes.note("b", CHANGED)
    assert changes.sentences(4) == []
    changes.note("a", FIRST)  # had a digest in round 1
    changes.note("new", FIRST, is_restarted=True)
    (line,) = changes.sentences(4)
    assert line.startswith("the data of parties a, new may be other than when the run")


def test_a_data_set_that_all_parties_share_is_named_once(settings):
    del settings["parties"]
    settings |= {"partition": {}, "num_parties": 2000}
    changes = DataChanges(parse(settings)[0])
    for i in range(4):
        changes.note(f"group-{i}", CHANGED)
    (line,) = changes.sentences(1)
    assert line.startswith("the data set mnist that parties are cut from is not what")


@pytest.mark.usefixtures("cluster")
def test_actors_that_hold_parts_of_one_data_set_agree_that_it_is_the_same(
    settings, tmp_path
):
    del settings["parties"]
    settings |= {"partition": {"samples_per_party": 20}, "num_parties": 3}
    settings |= {"parties_per_actor": 2}
    notes: list[str] = []
    for rounds in (1, 2):
        run = {"run_dir": tmp_path / "run", "rounds": rounds, "resume": True}
        fedray.run(settings, **run, watch=lambda p: notes.extend(p.notes))
    assert set(notes) == {"going on after round 1"}


def change_data(file: str) -> None:
    """Give samples the labels of others."""
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays |= {name: np.roll(arrays[name], 1) for name in ("y_train", "y_test")}
    np.savez(file, **arrays)


@pytest.mark.usefixtures("cluster")
def test_other_data_is_said_in_terminal_history_and_report(files, digits, tmp_path):
    files["test_data"] = digits("test", 1, n_test=20)
    notes, killed = [], []
    run = {"run_dir": tmp_path / "run", "resume": True}
    fedray.run(files, **run, rounds=1, watch=lambda p: notes.extend(p.notes))
    assert notes == []
    change_data(files["parties"][1]["data"])
    change_data(files["test_data"])

    def watch(progress):
        notes.extend(progress.notes)
        if any(report.round > 1 for report in progress.reports) and not killed:
            killed.append(progress.round)
            change_data(files["parties"][0]["data"])
            actor = ray.get_actor("party:run:a", namespace="fedray")
            ray.kill(actor, no_restart=False)

    history = fedray.run(files, **run, rounds=200, watch=watch).history
    test_data, b, a = [
        f"{whose} is not what it was when the run began; it is used as it is now"
        for whose in (
            f"test_data {files['test_data']}",
            "the data of party b",
            "the data of party a",
        )
    ]
    assert history[0].notes == []
    said = {f"{test_data}, from round 2 on", f"{b}, from round 2 on"}
    assert set(history[1].notes) == said
    (later,) = [note for report in history[2:] for note in report.notes]
    assert later.startswith(a)
    assert said | {later} <= set(notes)
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(text in report for text in (test_data, a, b))
    digests = [file.read_text().strip() for file in tmp_path.rglob("data.sha256")]
    assert len(digests) == 2
    kept_by_aggregator = (tmp_path / "run" / "inputs.json").read_text()
    assert not any(digest in kept_by_aggregator for digest in digests)
    (tmp_path / "mlp.py").write_text((tmp_path / "mlp.py").read_text() + "\n# new")
    with pytest.raises(RunFolderError, match=r"architecture mlp\.py is not what it"):
        fedray.run(files, **run, rounds=201)
