"""`fedray sweep`: runs side by side that share actors, on the session's cluster."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import yaml

import fedray
from fedray.checkpoint import RunFolder
from fedray.cli import main
from fedray.errors import ConfigError, RunFolderError
from fedray.federation.shared_actors import can_share
from fedray.sweep import SweepStopped, sweep
from fedray.sweep.conductor import runs_side_by_side

N_KILLS = int(os.environ.get("FEDRAY_SWEEP_KILLS", "2"))


def weights_of(folder):
    return RunFolder(folder).last_checkpoint().weights


def lines_of(folder):
    """What the rounds of a run have computed: all but times and nodes."""
    rounds = []
    for text in (folder / "history.jsonl").read_text().splitlines():
        line = json.loads(text)
        values = (line["round"], line["loss"], line["accuracy"], line["fused"])
        parties = [(p["name"], p["n_samples"], p["loss"]) for p in line["parties"]]
        rounds.append((values, parties))
    return rounds


def assert_same(one, other):
    assert lines_of(one) == lines_of(other)
    before, after = weights_of(one), weights_of(other)
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert np.array_equal(array, after[name]), name


def hosts_started():
    """How many actors for sweeps this cluster has had."""
    names = [actor["ActorClassName"] for actor in ray._private.state.actors().values()]
    return names.count("PartyHost"), names.count("AggregatorHost")


def as_alone(settings, results, folder):
    """Each run of a sweep, run alone with the settings that it had."""
    for record in results.runs:
        own = yaml.safe_load((record.folder / "config.yaml").read_text())
        alone = folder / record.folder.name
        fedray.run({**settings, "sweep": None, **own}, run_dir=alone)
        yield record.folder, alone


def test_a_run_of_a_sweep_has_the_bits_that_it_has_alone(cluster, settings, tmp_path):
    values = {"fusion_algorithm": ["fedavg", "scaffold", "fedadam"], "epochs": [1, 2]}
    before = hosts_started()
    results = sweep(settings, values, jobs=2, out=tmp_path / "sweep")
    assert len(results.runs) == 6
    started = np.subtract(hosts_started(), before)
    assert started.tolist() == [4, 2]  # two parties and an aggregator, two at a time
    for inside, alone in as_alone(settings, results, tmp_path / "alone"):
        assert_same(inside, alone)
        model = fedray.load(inside)
        assert model.predict(np.zeros((1, 1, 28, 28), np.float32)).shape == (1, 10)
        assert (inside / "report.html").exists()


def test_parties_that_are_cut_from_one_data_set_have_the_bits_that_they_have_alone(
    cluster, mlp, tmp_path
):
    settings = {
        "architecture": mlp, "loss": "cross_entropy", "rounds": 2, "batch_size": 16,
        "num_parties": 12, "partition": {"samples_per_party": 20},
        "data_handler": "mnist_pytorch", "model_type": "pytorch",
    }  # fmt: skip
    values = {"partition.samples_per_party": [20, 30]}
    results = sweep(settings, values, seeds=2, out=tmp_path / "sweep")
    assert results.compare().columns == ["partition.samples_per_party"]
    for inside, alone in as_alone(settings, results, tmp_path / "alone"):
        assert_same(inside, alone)


def test_one_run_fails_and_the_others_go_on(cluster, settings, tmp_path, capfd):
    out, moved = tmp_path / "sweep", tmp_path / "moved.npz"
    parties = [dict(party) for party in settings["parties"]]
    other = [parties[0], {**parties[1], "data": str(moved)}]
    values = {"parties": [parties, other]}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**settings, "sweep": values}))
    command = ["sweep", str(file), "--out", str(out)]
    assert main(command) == 1
    printed = capfd.readouterr().out
    assert "2 of 2: " in printed
    assert "failed: 1 party cannot take part" in printed
    assert "failed   1 of 2; --retry-failed tries them again" in printed
    shutil.copy(parties[1]["data"], moved)
    before = lines_of_all(out)
    assert main(command) == 1  # it is not tried again unless asked
    assert lines_of_all(out) == before
    assert "failed before: " in capfd.readouterr().out
    assert main([*command, "--retry-failed"]) == 0
    assert len(lines_of_all(out)) == 2
    assert main(command) == 0
    table = capfd.readouterr().out
    assert "2 done before" in table


def lines_of_all(out):
    return {p.parent.name: p.read_bytes() for p in sorted(out.glob("*/history.jsonl"))}


def test_ctrl_c_ends_with_the_rounds_under_way_and_the_same_call_goes_on(
    cluster, settings, tmp_path
):
    values = {"learning_rate": [0.05, 0.1, 0.2]}
    settings = {**settings, "rounds": 6}
    whole = sweep(settings, values, out=tmp_path / "whole")
    seen, has_begun = [], []

    def press_once(progress):
        seen.append([run.state for run in progress.runs.values()])
        if not has_begun and any(run.round >= 1 for run in progress.runs.values()):
            has_begun.append(True)
            raise KeyboardInterrupt

    out = tmp_path / "sweep"
    with pytest.raises(SweepStopped, match=r"with . of 3 runs done, kept in .* same"):
        sweep(settings, values, jobs=1, out=out, watch=press_once)
    for folder in out.glob("*/"):
        history = RunFolder(folder)
        assert history.last_saved_round() == len(history.history())
    sweep(settings, values, jobs=2, out=out)
    for record in whole.runs:
        assert_same(record.folder, out / record.folder.name)


def test_what_is_done_is_not_run_again_and_what_is_begun_goes_on(
    cluster, settings, tmp_path
):
    out = tmp_path / "sweep"
    values = {"epochs": [1, 2], "seed": [0, 1]}
    sweep(settings, values, out=out)
    before = lines_of_all(out)
    times = {name: (out / name / "history.jsonl").stat().st_mtime_ns for name in before}
    begun, new = "epochs=1,seed=1", "epochs=2,seed=0"
    record = (out / "sweep.jsonl").read_text().splitlines(keepends=True)
    left_out = [line for line in record if begun not in line and new not in line]
    (out / "sweep.jsonl").write_text("".join(left_out))
    shutil.rmtree(out / new)
    shutil.copytree(out / begun, tmp_path / "before")
    (out / begun / "global_model.pt").unlink()
    sweep(settings, values, out=out)
    assert_same(out / begun, tmp_path / "before")
    assert (out / begun / "global_model.pt").exists()
    assert RunFolder(out / new).last_saved_round() == 2
    for name in set(before) - {begun, new}:
        assert (out / name / "history.jsonl").stat().st_mtime_ns == times[name]
    results = sweep(settings, {"epochs": [1, 2, 3], "seed": [0, 1]}, out=out)
    assert len(results.runs) == 6  # values may be added
    longer = sweep({**settings, "rounds": 3}, values, out=out)
    assert {record.rounds[-1] for record in longer.runs} >= {3}  # and rounds


def test_other_settings_or_code_under_runs_that_have_begun_are_refused(
    cluster, settings, tmp_path
):
    out, values = tmp_path / "sweep", {"epochs": [1, 2]}
    sweep(settings, values, out=out)
    before = lines_of_all(out)
    with pytest.raises(RunFolderError, match=r"batch_size was 16, is 8") as raised:
        sweep({**settings, "batch_size": 8}, values, out=out)
    assert str(raised.value).count("batch_size") == 1
    with pytest.raises(RunFolderError, match="rounds is 1, and more are done"):
        sweep({**settings, "rounds": 1}, values, out=out)
    with pytest.raises(RunFolderError, match=r"learning_rate was 0\.1, is 0\.2"):
        sweep({**settings, "learning_rate": 0.2}, values, out=out)
    file = Path(settings["architecture"].partition(":")[0])
    file.write_text(file.read_text() + "\n# another\n")
    with pytest.raises(RunFolderError, match=r"architecture mlp.py is not what it was"):
        sweep(settings, values, out=out)
    assert lines_of_all(out) == before


def test_damaged_folders_are_lines_of_the_table_and_nothing_else_is_lost(
    cluster, settings, tmp_path, capfd
):
    out = tmp_path / "sweep"
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = ["sweep", str(file), "epochs=1,2,3", "--out", str(out)]
    assert main(command) == 0
    config = out / "epochs=1" / "config.yaml"
    config.write_text("rounds: [")
    history = out / "epochs=2" / "history.jsonl"
    history.write_bytes(b"garbage\n" + history.read_bytes())
    capfd.readouterr()
    assert main(command) == 1
    printed = capfd.readouterr().out
    assert "failed before: epochs=1: " in printed
    assert "altered" in printed
    assert "failed before: epochs=2: " in printed
    assert "line 1 is no round's" in printed
    assert "1 done before, 2 failed before" in printed


def test_a_full_disk_is_told_and_the_runs_before_it_stay(
    cluster, settings, tmp_path, monkeypatch
):
    from fedray.sweep.record import SweepRecord

    def refuse(record, run, end):
        raise OSError(28, "No space left on device", str(record.file))

    out = tmp_path / "sweep"
    monkeypatch.setattr(SweepRecord, "add", refuse)
    with pytest.raises(OSError, match="No space left"):
        sweep(settings, {"epochs": [1, 2]}, jobs=1, out=out)
    monkeypatch.undo()
    results = sweep(settings, {"epochs": [1, 2]}, out=out)
    assert [record.state for record in results.runs] == ["ended", "ended"]


def test_a_killed_party_or_aggregator_does_not_change_a_bit(
    cluster, settings, tmp_path
):
    settings = {**settings, "rounds": 8}
    whole = sweep(settings, {"epochs": [3, 4]}, jobs=1, out=tmp_path / "whole")
    killed = []

    def kill_once(progress):
        if any(1 <= run.round < 8 for run in progress.runs.values()):
            for process in psutil.process_iter(["cmdline"]):
                title = " ".join(process.info["cmdline"] or [])
                kind = next((k for k in HOSTS if title.startswith(f"ray::{k}")), None)
                if kind and kind not in killed:
                    killed.append(kind)
                    process.kill()

    sweep(settings, {"epochs": [3, 4]}, jobs=1, out=tmp_path / "sweep", watch=kill_once)
    for record in whole.runs:
        assert_same(record.folder, tmp_path / "sweep" / record.folder.name)


HOSTS = ("PartyHost", "AggregatorHost")


def test_runs_with_limits_of_memory_or_keys_of_their_own_have_actors_of_their_own():
    assert can_share(fedray.FederationConfig())
    assert not can_share(fedray.FederationConfig(max_memory=10**9))
    assert not can_share(fedray.FederationConfig(secure_aggregation=True))
    assert not can_share(fedray.FederationConfig(model_type="mine.py:Model"))


def test_runs_with_actors_of_their_own_have_the_same_bits(cluster, settings, tmp_path):
    limited = {**settings, "max_memory": 4 * 10**9, "party_cpus": 0.5}
    results = sweep(limited, {"epochs": [1, 2]}, out=tmp_path / "sweep")
    for inside, alone in as_alone(limited, results, tmp_path / "alone"):
        assert_same(inside, alone)


def test_as_many_runs_as_cores_hold_and_one_more_are_side_by_side(cluster, settings):
    config = fedray.FederationConfig.model_validate
    n_cpus = int(ray.cluster_resources()["CPU"])
    whole = config({"num_parties": 100, "partition": {}})  # has all cores
    assert runs_side_by_side([whole] * 9, True, None) == 2
    assert runs_side_by_side([whole] * 9, False, None) == 1
    assert runs_side_by_side([whole] * 9, True, 5) == 5
    assert runs_side_by_side([whole] * 9, False, 5) == 1
    assert runs_side_by_side([whole], True, None) == 1
    small = config({"num_parties": 1, "partition": {}, "party_cpus": 1})
    assert runs_side_by_side([small] * 9, False, None) == min(9, n_cpus)


def test_no_jobs_at_all_are_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match="jobs must be 1 or more, got 0"):
        sweep(settings, {"epochs": [1, 2]}, jobs=0, out=tmp_path / "sweep")


class Killed:
    """`fedray sweep` in a process of its own, with a Ray of its own."""

    def __init__(self, command, folder):
        env = {**os.environ, "RAY_TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
        env.pop("RAY_ADDRESS", None)
        self.output = folder / f"out-{time.monotonic_ns()}"
        with self.output.open("wb") as out:
            words = [sys.executable, "-m", "fedray", *command]
            self.process = subprocess.Popen(
                words, env=env, stdout=out, stderr=subprocess.STDOUT
            )

    def kill(self, victim):
        """Kill the command, or the head of its Ray; nothing of it stays."""
        own = psutil.Process(self.process.pid)
        with_children = [own, *own.children(recursive=True)]
        heads = [p for p in with_children if _name(p) in ("gcs_server", "raylet")]
        for process in heads if victim == "ray" else [own]:
            process.kill()
        self.process.wait(timeout=240)  # Ray ends a process whose cluster is lost
        psutil.wait_procs(with_children, timeout=60)
        for process in with_children:
            if process.is_running():
                process.kill()


def _name(process):
    try:
        return process.name()
    except psutil.Error:
        return ""


def rounds_over(out):
    return sum(len(p.read_bytes().splitlines()) for p in out.glob("*/history.jsonl"))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_same_table_and_models(
    cluster, worker_server, settings, tmp_path
):
    settings = {**settings, "rounds": 5}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    whole = sweep(settings, {"epochs": [1, 2]}, seeds=2, out=tmp_path / "whole")
    out, rng = tmp_path / "sweep", random.Random(20261130)
    temporary = Path(f"/tmp/fs{os.getpid() % 10_000}")
    temporary.mkdir()
    command = ["sweep", str(file), "epochs=1,2", "--seeds", "2", "--out", str(out)]
    n_rounds = 4 * 5
    moments = sorted(rng.sample(range(n_rounds - 1), min(N_KILLS, n_rounds - 1)))
    try:
        for place, moment in enumerate(moments):
            running = Killed(command, temporary)
            while rounds_over(out) <= moment and running.process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.random() / 5)  # a moment by chance, within a round
            if running.process.poll() is None:
                running.kill("ray" if place % 2 else "command")
        assert main(command) == 0  # on the session's cluster
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for record in whole.runs:
        assert_same(record.folder, out / record.folder.name)
    columns = ("accuracy", "loss", "seed", "epochs")
    tables = [
        [[row[c] for c in columns] for row in fedray.results(f).records]
        for f in (tmp_path / "whole", out)
    ]
    assert tables[0] == tables[1]


def test_threads_of_runs_end_with_the_sweep(cluster, settings, tmp_path):
    before = threading.active_count()
    sweep(settings, {"epochs": [1, 2]}, out=tmp_path / "sweep")
    assert threading.active_count() <= before + 1  # Ray may have begun one
