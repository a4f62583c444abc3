"""fedray beside Flower: the same workloads, in turns, on one machine.

python benchmarks/benchmark_flower.py [--only NAME[,NAME]] [--repeats 3] [--json FILE]
                                [--venv FOLDER]

Makes an environment of its own for the peer, runs each workload on both sides A B A B
A B, and prints medians over all warm rounds of all repeats. The same on both sides:
model, parties' digits, passes, batches, optimizer, loss, evaluation of each round by
the parties on their own test digits, a core for each party that is training, one
thread each. What differs is printed below the table. `worker_dies` is another matter:
once on each side, one of two workers is killed in round 2 (deaths.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

import deaths  # noqa: E402
import floors  # noqa: E402
import measure  # noqa: E402
import table  # noqa: E402
from workloads import DEATH, WORKLOADS, Workload  # noqa: E402

from fedray.config import PartitionSpec  # noqa: E402
from fedray.data.partition import partition_test, partition_train  # noqa: E402

PACKAGES = ("flwr[simulation]==1.41.*", "torch==2.13.0", "numpy")
HEAD = ("workload", "fedray", "Flower", "Flower / fedray", "target")
SPEED = {  # how many times faster a round must be
    "parties_100": 20,
    "parties_1000": 80,
    "weights_25m": 5,
    "weights_100m": 5,
}
MEMORY = {"weights_25m": 0.8, "weights_100m": 0.7}  # of the peer's peak, at most
WHOLE = {"tutorial": 0.75}  # of the peer's command to exit, at most
NAMES = ("tutorial", "parties_100", "parties_1000", "weights_25m", "weights_100m")
NAMES += (DEATH.name,)
PEER_ROUNDS = {"parties_1000": 3}  # of each repeat: half a minute each
DIFFERS = """\
What differs:
- fedray starts parties as actors that keep model and data, many parties in each where
  there are more than cores, and there trains equal ones together and sends their mean;
  Flower hands each message to one of as many workers as there are cores, and its app
  builds the model anew for each message, as apps of Flower do.
- Flower's digits are cached in each worker, and its training loop is the plain one of
  the floors, without a DataLoader: both in its favour.
- weights_*: fedray shifts the weights in the forward pass of a model with ten trainable
  numbers, Flower in its fit function, as numpy arrays.
- Flower runs by run_simulation, without the SuperLink that `flwr run` would add.
- fedray also checks every update, writes a checkpoint each round beside the next one,
  and a report at the end; `record to record` has the checkpoint in it.
- A round without evaluation ends with the new global model on both sides.
- Memory is the highest sum over all processes of a side, shared pages once."""


def peer_python(folder: Path) -> Path:
    """Python of the peer's environment, which is made where it is missing."""
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        print(f"installing {', '.join(PACKAGES)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
        subprocess.run(command, check=True)
        ready.touch()
    return python


def peer_versions(python: Path) -> dict[str, str]:
    """Versions of what the peer runs on."""
    code = (
        "import importlib.metadata as m, json; print(json.dumps("
        "{n: m.version(n) for n in ('flwr', 'ray', 'torch', 'numpy')}))"
    )
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True)
    return json.loads(done.stdout)


def write_data(workload: Workload, path: Path) -> None:
    """The digits, and each party's as fedray cuts them."""
    keys = ("x_train", "y_train", "x_test", "y_test")
    data = {k: v.numpy() for k, v in zip(keys, floors.digits(), strict=True)}
    n, seed = workload.n_parties, 0
    spec = PartitionSpec(samples_per_party=workload.n_samples, replace=workload.replace)
    parts = {
        "train": partition_train(data["y_train"], n, spec, seed),
        "test": partition_test(len(data["y_test"]), n, seed),
    }
    for part, rows in parts.items():
        data[f"{part}_rows"] = np.concatenate(list(rows))
        data[f"{part}_ends"] = np.cumsum([0, *map(len, rows)])
    np.savez(path, **data)


def peer_rounds(workload: Workload) -> int:
    """Rounds of the peer in each repeat."""
    return PEER_ROUNDS.get(workload.name, workload.n_rounds)


def ours(workload: Workload, folder: Path) -> dict[str, Any]:
    """One run of fedray, on a cluster of its own."""
    env = {key: v for key, v in os.environ.items() if not key.startswith("RAY_")}
    done = measure.federated(workload, folder, env)
    return {
        **{key: done[key] for key in ("whole_run_s", "peak_mb", "between_s", "warm_s")},
        "accuracy": done["accuracies"][peer_rounds(workload) - 1],
        "evaluate_s": done["evaluate_s"],
        "first_party_s": done["start_to_first_round_s"],
    }


def theirs(workload: Workload, folder: Path, python: Path) -> dict[str, Any]:
    """One run of Flower, on a cluster of its own."""
    folder.mkdir(parents=True)
    plan = {
        "workload": workload.name,
        "rounds": peer_rounds(workload),
        "data": str(folder / "digits.npz"),
        "out": str(folder / "out.json"),
    }
    write_data(workload, folder / "digits.npz")
    (folder / "plan.json").write_text(json.dumps(plan))
    env = {key: v for key, v in os.environ.items() if not key.startswith("RAY_")}
    env |= {
        "FEDRAY_PEER": str(folder / "plan.json"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONPATH": str(FOLDER),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [str(python), "-c", "import flower_app; flower_app.main()"]
    run = measure.run(command, folder, env)
    told = json.loads((folder / "out.json").read_text())
    clock, first = told["clock"], float((folder / "out.first").read_text())
    last = "end" if workload.evaluates else "fused"
    return {
        "whole_run_s": run["seconds"],
        "peak_mb": run["peak_mb"],
        "accuracy": told["accuracy"],
        "first_weight": told["first_weight"],
        "lost": told["lost"],
        "warm_s": [round[last] - round["start"] for round in clock[1:]],
        "evaluate_s": median(r.get("end", r["fused"]) - r["fused"] for r in clock[1:]),
        "first_party_s": first - run["started"],
    }


def in_turns(
    workload: Workload, folder: Path, python: Path, n_repeats: int
) -> dict[str, Any]:
    """A B A B A B, and the medians of each side."""
    runs: dict[str, list[dict[str, Any]]] = {"fedray": [], "flower": []}
    for i in range(n_repeats):
        turn = f"{workload.name}, turn {i + 1} of {n_repeats} ..."
        print(turn, file=sys.stderr, flush=True)
        at = folder / f"{workload.name}-{i}"
        runs["fedray"].append(ours(workload, at / "fedray"))
        runs["flower"].append(theirs(workload, at / "flower", python))
    return {side: {**together(done), "runs": done} for side, done in runs.items()}


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over runs; of rounds, over all warm rounds of all runs."""
    keys = [key for key in runs[0] if key != "warm_s" and runs[0][key] is not None]
    warm = [seconds for run in runs for seconds in run["warm_s"]]
    told = {key: [run[key] for run in runs] for key in keys}
    medians = {
        key: values[0] if isinstance(values[0], list) else median(values)
        for key, values in told.items()
    }
    return {**medians, "round_s": median(warm), "n_warm_rounds": len(warm)}


def rows(name: str, done: dict[str, Any]) -> list[table.Row]:
    """What was measured of one workload, and what it must reach."""
    us, peer = done["fedray"], done["flower"]
    faster = f">= {SPEED[name]}" if name in SPEED else ""
    whole = f">= {1 / WHOLE[name]:.2f}" if name in WHOLE else ""
    less = f">= {1 / MEMORY[name]:.2f}" if name in MEMORY else ""
    found = [_row(f"{name}, round", us["round_s"], peer["round_s"], faster)]
    if us["evaluate_s"] > 1e-3:
        sides = (side["round_s"] - side["evaluate_s"] for side in (us, peer))
        found.append(_row("  without evaluation", *sides, ""))
    found.append(_row("  record to record", us["between_s"], peer["round_s"], ""))
    if "first_party_s" in us:
        sides = (side["first_party_s"] for side in (us, peer))
        found.append(_row("  command to first party", *sides, ""))
    ran = WORKLOADS[name].n_rounds, peer_rounds(WORKLOADS[name])
    rounds = f", {ran[0]} and {ran[1]} rounds" if ran[0] != ran[1] else ""
    sides = (side["whole_run_s"] for side in (us, peer))
    found.append(_row(f"  command to exit{rounds}", *sides, whole))
    shown = table.megabytes(us["peak_mb"]), table.megabytes(peer["peak_mb"])
    ratio = f"{peer['peak_mb'] / us['peak_mb']:.2f}"
    found.append(("  peak memory, all processes", *shown, ratio, less))
    if "accuracy" in peer and WORKLOADS[name].evaluates:
        shown = f"{us['accuracy']:.3f}", f"{peer['accuracy']:.3f}"
        found.append((f"  accuracy after {ran[1]} rounds", *shown, "", ""))
    return found


def _row(what: str, us: float, peer: float, target: str) -> table.Row:
    shown = table.seconds(us), table.seconds(peer)
    return what, *shown, f"{peer / us:.2f}", target


def main() -> None:
    """Run both sides in turns; print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(NAMES), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    folder = Path.home() / ".cache" / "fedray" / "flower-1.41"
    parser.add_argument("--venv", type=Path, default=folder, help="the peer's packages")
    words = parser.parse_args()
    named = words.only.split(",")
    unknown = sorted(set(named) - set(NAMES))
    if unknown:
        parser.error(f"no workload {', '.join(unknown)} among {', '.join(NAMES)}")
    python = peer_python(words.venv.expanduser().absolute())
    done = {"conditions": table.conditions(), "peer": peer_versions(python)}
    found: list[table.Row] = []
    with tempfile.TemporaryDirectory(prefix="fedray-benchmark-") as path:
        for name in named:
            if name == DEATH.name:
                peer = partial(theirs, python=python)
                done[name] = deaths.both(Path(path) / name, peer)
                found += deaths.rows(done[name])
            else:
                one = WORKLOADS[name], Path(path), python, words.repeats
                done[name] = in_turns(*one)
                found += rows(name, done[name])
            table.write(words.json, done)
    for title in ("conditions", "peer"):
        told = (f"{key} {value}" for key, value in done[title].items())
        print(f"{title}: {', '.join(told)}")
    table.show(HEAD, found)
    print(DIFFERS)


if __name__ == "__main__":
    main()
