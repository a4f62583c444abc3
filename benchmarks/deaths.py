"""The same worker death on both sides: one of two processes is killed in round 2.

benchmark_flower.py plays it as `worker_dies`: 20 parties on 2 workers, ten rounds.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import measure
import table
from workloads import DEATH


def ours(folder: Path) -> dict[str, Any]:
    """fedray: who was missing from which round, and what it came to."""
    folder.mkdir(parents=True)
    flag, over = folder / "death", threading.Event()

    def arm() -> None:
        """Let a worker die as soon as round 1 is in the history."""
        while not over.wait(0.005):
            if any(f.read_text() for f in folder.glob("run/*/history.jsonl")):
                return flag.touch()

    watcher = threading.Thread(target=arm)
    watcher.start()
    env = {key: v for key, v in os.environ.items() if not key.startswith("RAY_")}
    try:
        done = measure.federated(
            DEATH, folder / "run", env | {"BENCHMARK_DEATH": str(flag)}
        )
    finally:
        over.set()
        watcher.join()
    (history,) = folder.glob("run/*/history.jsonl")
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    return {
        "died": Path(f"{flag}.taken").exists(),
        "lost": [line["chosen"] - line["fused"] for line in lines],
        "round_s": [line["seconds"] for line in lines],
        "accuracy": done["accuracies"][-1],
    }


def theirs(folder: Path, run_peer: Any) -> dict[str, Any]:
    """Flower likewise; `run_peer(workload, folder)` plays a workload on it.

    A run that ends in an error, or not in time, is told as that.
    """
    flag = folder / "death"
    os.environ["BENCHMARK_DEATH"] = str(flag)
    started = time.monotonic()
    try:
        done = run_peer(DEATH, folder)
    except RuntimeError as error:
        last = str(error).splitlines()[-1]
        return {"error": last, "seconds": time.monotonic() - started}
    finally:
        del os.environ["BENCHMARK_DEATH"]
    rounds = [0.0, *done["warm_s"]]
    return {"died": Path(f"{flag}.taken").exists(), **done, "round_s": rounds}


def both(folder: Path, run_peer: Any) -> dict[str, Any]:
    """One run of each side."""
    print(f"{DEATH.name} ...", file=sys.stderr, flush=True)
    return {
        "fedray": ours(folder / "fedray"),
        "flower": theirs(folder / "flower", run_peer),
    }


def rows(done: dict[str, Any]) -> list[table.Row]:
    """Clients lost by round, the slowest round, the last accuracy."""
    sides = [done["fedray"], done["flower"]]

    def of(key: str, show: Any) -> tuple[str, ...]:
        return tuple(show(s[key]) if key in s else s["error"][:60] for s in sides)

    def lost(by_round: list[int]) -> str:
        told = [f"{n} in round {i}" for i, n in enumerate(by_round, 1) if n]
        return ", ".join(told) or "none"

    rounds = of("round_s", lambda seconds: table.seconds(max(seconds[1:])))
    accuracies = of("accuracy", lambda accuracy: f"{accuracy:.3f}")
    return [
        ("worker_dies, clients lost", *of("lost", lost), "", "none"),
        ("  slowest round", *rounds, "", ""),
        (f"  accuracy after {DEATH.n_rounds} rounds", *accuracies, "", ""),
    ]
