"""`track`: every round's numbers reach MLflow and TensorBoard, once."""

import json
import sys

import pytest

import fedray
from fedray.checkpoint import RunFolder
from fedray.errors import MissingExtra

pytestmark = pytest.mark.usefixtures("cluster")


def history_values(folder) -> dict[str, list[tuple[int, float]]]:
    """What the history says, under the names of the table: [(round, value)]."""
    found: dict[str, list[tuple[int, float]]] = {}
    for text in (folder / "history.jsonl").read_text().splitlines():
        line = json.loads(text)
        numbers = {name: line[name] for name in ("loss", "accuracy", "bytes_moved",
                                                 "reported")}  # fmt: skip
        for party in line["parties"]:
            numbers[f"party_loss/{party['name']}"] = party["loss"]
        for name, value in numbers.items():
            found.setdefault(name, []).append((line["round"], value))
    return found


def test_tensorboard_reads_every_round_of_a_resumed_run_once(settings, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    fedray.run(settings, run_dir=folder, track="tensorboard")
    fedray.run(settings, run_dir=folder, track="tensorboard", rounds=3, resume=True)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name, points in history_values(folder).items():
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert seen == [(n, pytest.approx(value)) for n, value in points], name
        assert [n for n, _ in seen] == [1, 2, 3]
    assert "outcomes/fused" in events.Tags()["scalars"]


def test_mlflow_has_every_round_and_the_settings(settings, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    fedray.run(settings, run_dir=folder, track="mlflow")
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "fedray"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["learning_rate"] == "0.1"
    for name, points in history_values(folder).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.value) for m in history] == points, name


@pytest.mark.parametrize("track", ["mlflow", "tensorboard"])
def test_a_missing_tracker_package_is_named(settings, tmp_path, monkeypatch, track):
    monkeypatch.setitem(sys.modules, track, None)
    for name in [name for name in sys.modules if name.startswith(f"{track}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'fedray\[{track}\]'"):
        fedray.run(settings, run_dir=tmp_path / "run", track=track)


def test_following_a_history_survives_a_rewind(settings, tmp_path):
    fedray.run(settings, run_dir=tmp_path / "run", rounds=4)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines(keepends=True)
    folder = RunFolder(tmp_path / "other")
    folder.path.mkdir()
    history, file = folder.follow(), folder.history_file
    assert next(history) == []
    file.write_text(lines[0] + lines[1] + lines[2][:50])  # one is being written
    assert [report.round for report in next(history)] == [1, 2]
    file.write_text(lines[0])  # an aggregator that was killed goes on after round 1
    assert next(history) == []
    file.write_text("".join(lines))
    rounds = [report.round for _ in range(3) for report in next(history)]
    assert rounds == [3, 4]
