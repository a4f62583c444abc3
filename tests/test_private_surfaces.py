"""Two runs that differ in one party's data look alike once their releases are alike.

Every surface is compared byte for byte: the history, checkpoints, report, terminal,
progress, trackers' numbers, logs and names of actors and tasks. Apart are clock times,
random ids, operator.jsonl, and the secrets beside it (`SECRET`).
"""

import io
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import ray
from test_privacy_config import CENTRAL, DISTRIBUTED

import fedray
from fedray.checkpoint import RunFolder, read_for_operator
from fedray.errors import RoundFailed
from fedray.metrics.tracking import metric_values
from fedray.progress_display import ProgressDisplay

# runs in the aggregator, where the metric is measured on test_data: whatever the
# parties sent, each round's release is the same vector
FIXED = """
    import dataclasses
    import numpy as np
    from fedray.fusion import private_mean

    real = private_mean.PrivateMean.step

    def step(self, weights, update, state):
        total = np.arange(len(update.weights["/sum"])) % 7 - 3
        self.n_expected = self.n_expected or 3.0
        return real(
            self, weights, dataclasses.replace(update, weights={"/sum": total}), state
        )

    import ray
    is_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id()
    if is_actor and real.__module__ == private_mean.__name__:
        private_mean.PrivateMean.step = step

    def fixed(output, target):
        return float(len(target))
"""
# for the run's owner alone; the ledger's links are of a secret key
SECRET = {
    "operator.jsonl",
    "privacy.key",
    "privacy.jsonl",
    "releases",
    "ledger.json",
    "secure_sum",
}
CLOCK = ("seconds", "evaluate_seconds")
TIMES = re.compile(r"\b[\d.,]+ ?(ms|s|min)\b|\d\d:\d\d:\d\d[.,\d]*")
SECONDS_CHART = re.compile(
    r"<figure><figcaption>(?:(?!</figure>).)*Seconds.*?</figure>"
)
N_PARTIES = 3


def make_run(folder: Path, digits, mlp, own: str, **changes) -> dict:
    """Settings of a run of three parties; `own` is the data of the first."""
    (folder / "fixed.py").write_text(textwrap.dedent(FIXED))
    data = [own, digits("b", 64, skip=100), digits("c", 50, skip=200)]
    parties = [{"name": n, "data": d} for n, d in zip("abc", data, strict=True)]
    return {
        "name": "tiny", "architecture": mlp, "rounds": 2, "learning_rate": 0.1,
        "batch_size": 16, "loss": "cross_entropy", "data_handler": "npz",
        "parties": parties, "test_data": digits("test", 20, 20, skip=300),
        "metrics": [f"{folder}/fixed.py:fixed"], "privacy": CENTRAL,
        "party_dir": f"{folder}/parties",
    } | changes  # fmt: skip


@pytest.fixture
def surfaces(cluster, tmp_path, monkeypatch, digits, mlp):
    """Run with this data of the first party; all that there is to see of the run."""

    def run(own: str, **changes) -> dict[str, object]:
        folder = tmp_path / "tiny"
        settings = make_run(tmp_path, digits, mlp, own, **changes)
        before, progress, out = log_sizes(), [], io.StringIO()
        display = ProgressDisplay(2, out)

        def watch(one):
            progress.append(one)
            display(one)

        try:
            result, failure = fedray.run(settings, run_dir=folder, watch=watch), None
        except fedray.FedrayError as error:
            result, failure = None, f"{error} {error!r}"
            assert folder.exists(), failure
        moved = folder.rename(tmp_path / f"done-{len(list(tmp_path.glob('done-*')))}")
        return {
            **files_of(moved),
            "terminal": TIMES.sub("TIME", out.getvalue()),
            "progress": facts_of(progress),
            "metrics": [sorted(numbers_of(r)) for r in RunFolder(moved).history()],
            "logs": new_lines(before),
            "names": names_of("tiny"),
            "failure": failure,
            "result": result and (result.loss, result.accuracy),
            "folder": moved,
        }

    return run


def files_of(folder: Path) -> dict[str, bytes | str]:
    """Every file of a run but its secrets, without clock times and random ids."""
    run_id = json.loads((folder / "inputs.json").read_text())["run_id"]
    files: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or {*name.parts} & {*SECRET, ".lock"}:
            continue
        if name.suffix in (".jsonl", ".json", ".html", ".yaml", ".txt"):
            text = path.read_text("utf-8").replace(run_id, "RUN")
            if name.name == "normalization.json":  # its digest is of the run's id too
                text = re.sub(r'"digest": "\w+"', '"digest": ""', text)
            files[str(name)] = without_clock(text, name.suffix)
        else:
            files[str(name)] = path.read_bytes()
    return files


def without_clock(text: str, suffix: str) -> str:
    if suffix == ".html":
        text = re.sub("git commit</dt><dd>.*?</dd>", "", text.replace("\n", " "))
        return TIMES.sub("TIME", SECONDS_CHART.sub("", text))
    return re.sub(rf'"({"|".join(CLOCK)})": [\d.e-]+', r'"\1": 0', text)


def numbers_of(report):
    return [(n, v) for n, v in metric_values(report) if n not in CLOCK]


def facts_of(each: list) -> str:
    """What a follower sees in the end, however often it looked."""
    reports = [
        without_clock(json.dumps(r.to_json()), "") for p in each for r in p.reports
    ]
    parties = [{*one.troubled, *one.working} for one in each]
    return repr((reports, each[-1].notes, set().union(*parties)))


def logs() -> list[Path]:
    return [*Path(ray._private.worker._global_node.get_logs_dir_path()).glob("worker*")]


def log_sizes() -> dict[str, int]:
    return {file.name: file.stat().st_size for file in logs()}


def new_lines(before: dict[str, int]) -> list[str]:
    """What actors of fedray logged since, in no order."""
    lines = []
    for file in logs():
        with file.open(errors="replace") as opened:
            opened.seek(before.get(file.name, 0))
            lines += [line for line in opened if "party:" in line]
    return sorted(re.sub(r"^[\d-]+ [\d:,]+ ", "", line) for line in lines)


def names_of(run: str) -> list[str]:
    """Names and classes of the run's actors, as Ray's state has them."""
    actors = ray._private.state.actors().values()
    names = {f"{actor['Name']} {actor['ActorClassName']}" for actor in actors}
    return sorted(name for name in names if f":{run}" in name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"party_fraction": 0.67, "privacy": CENTRAL | {"sampling": "poisson"}},
        {"secure_aggregation": True, "privacy": DISTRIBUTED},
    ],
    ids=["all", "poisson", "distributed"],
)
def test_another_partys_data_shows_on_no_surface(surfaces, digits, changes):
    first = surfaces(digits("own", 40), **changes)
    second = surfaces(digits("own", 90, skip=500), **changes)
    folders = [one.pop("folder") for one in (first, second)]
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name
    assert first["failure"] is None
    assert {"history.jsonl", "report.html", "config.yaml"} <= first.keys()
    seen = [read_for_operator(folder) for folder in folders]
    for lines, n_samples in zip(seen, (40, 90), strict=True):
        own = [
            party["n_samples"]
            for line in lines
            for party in line.get("parties", ())
            if party["name"] == "a"
        ]
        assert changes or own == [n_samples] * 2


def test_a_party_that_sends_no_finite_update_shows_on_no_surface(
    surfaces, digits, tmp_path
):
    first = surfaces(digits("own", 40), quorum=1.0)
    with np.load(digits("own", 40)) as arrays:
        changed = dict(arrays)
    # finite, but a step from it is not: the loss of such a sample overflows
    changed["x_train"] = np.full_like(changed["x_train"], 3e38)
    np.savez(tmp_path / "own.npz", **changed)
    second = surfaces(str(tmp_path / "own.npz"), quorum=1.0)
    folder = second.pop("folder")
    first.pop("folder")
    for name in first:
        assert first[name] == second[name], name
    outcomes = [line for line in read_for_operator(folder) if "parties" in line]
    assert "refused" in outcomes[0]["parties"][0]["outcome"]


def test_a_failed_round_gives_no_partys_reason(surfaces, digits, tmp_path, mlp):
    file = tmp_path / "failing.py"
    file.write_text(
        textwrap.dedent(
            """
            from torch import nn
            class Failing(nn.Module):
                n = 0
                def forward(self, x):
                    Failing.n += self.training
                    if len(x) == 7 and Failing.n > 1:
                        raise ValueError("Jane Doe is sample 7")
                    return x
            def mlp():
                return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), Failing())
            """
        )
    )
    seen = surfaces(digits("own", 7), architecture=f"{file}:mlp", loss="cross_entropy")
    folder = seen.pop("folder")
    assert "round 1 failed: 2 reported, 3 needed" in seen["failure"]
    assert "operator.jsonl" in seen["failure"]
    for name, surface in seen.items():
        for part in ("Jane", "ValueError", "failed: call"):
            assert part not in str(surface), name
    errors = [line["error"] for line in read_for_operator(folder) if "error" in line]
    assert [RoundFailed.__name__ in error for error in errors] == [True]
    assert "ValueError" in errors[0]


def test_rest_answers_tell_nothing_of_a_single_party(client, service):
    id = client.ready(privacy=json.dumps(CENTRAL))
    assert client.train(id).status_code == 200
    state = client.state(id)
    assert len(state["history"]) == 2
    for line in state["history"]:
        for name in ("refused", "restarts", "bytes_moved", "train_seconds"):
            assert line[name] is None, name
        assert (line["loss"], line["accuracy"], line["fused"]) == (None, None, 2)
        assert [party.pop("name") for party in line["parties"]] == [
            "party-0",
            "party-1",
        ]
        assert all(set(party.values()) == {None, ""} for party in line["parties"])
    assert state["metrics"]["bytes_moved"] is None
    assert state["metrics"]["loss"] is None
    page = client.get(f"/aggregators/{id}/report").text
    assert "operator.jsonl alone" in page
    (file,) = Path(service.settings.root).rglob("operator.jsonl")
    assert file.stat().st_mode & 0o777 == 0o600
    counts = {
        party["name"]: party["n_samples"]
        for line in read_for_operator(file.parent)
        for party in line.get("parties", ())
    }
    assert counts == {"party-0": 40, "party-1": 64}
