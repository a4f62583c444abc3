"""Many rounds of a tiny federation: what grows, grows here.

    python benchmarks/soak.py [--rounds 500] [--rule fedavg] [--json FILE]

Samples private memory and open files of the driver, the aggregator and every party a
few times a second, and the objects in Ray's store. Prints the slope of each over the
second half of the run, and what is left in the store at its end. Exits with 1 if a
process gains more than 20 kB a round, or open files or objects grow.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

import ray  # noqa: E402
import table  # noqa: E402

import fedray  # noqa: E402
from fedray.federation.connection import cluster_connection  # noqa: E402
from fedray.messages import Progress  # noqa: E402

NET = """
from torch import nn

def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
    )
"""
SAMPLE_S = 0.3
MOST_KB = 20.0  # that a process may gain a round; a leaked model would be 200
MOST_OTHER = 0.02  # open files or objects a round: ten in 500


class Soak:
    """A watch of a run that samples what may grow."""

    def __init__(self) -> None:
        self.round, self.sampled = 0, 0.0
        self.samples: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def __call__(self, progress: Progress) -> None:
        """Take a sample now and then."""
        self.round = max([self.round, *(report.round for report in progress.reports)])
        if not self.round or time.monotonic() - self.sampled < SAMPLE_S:
            return
        self.sampled = time.monotonic()
        for name, pid in processes():
            self.samples[f"{name}, private kB"].append((self.round, private_kb(pid)))
            self.samples[f"{name}, open files"].append((self.round, n_open(pid)))
        self.samples["objects in the store"].append((self.round, stored()[0]))

    def slopes(self) -> dict[str, tuple[float, float, float]]:
        """First and last sample of the second half, and its slope per round."""
        found = {}
        for what, samples in self.samples.items():
            half = [(x, y) for x, y in samples if x >= self.round / 2]
            if len(half) > 2:
                x, y = np.array(half).T
                slope = float(np.polyfit(x, y, 1)[0])
                found[what] = float(y[0]), float(y[-1]), slope
        return found


def processes() -> Iterator[tuple[str, int]]:
    """This process, and its cluster's actors of this run."""
    yield "driver", os.getpid()
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        parents[int(folder.name)] = int(after[1]), words
    for pid, (parent, words) in sorted(parents.items()):
        while parent in parents and parent != os.getpid():
            parent = parents[parent][0]
        kinds = {"PartyGroup": "party", "Aggregator": "aggregator"}
        for word, kind in kinds.items():
            if parent == os.getpid() and word in words:
                yield f"{kind} {pid}", pid


def private_kb(pid: int) -> float:
    """Memory that is this process's alone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return np.nan
    return next(float(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def n_open(pid: int) -> float:
    """Open files of a process."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return np.nan


def stored() -> tuple[int, int]:
    """Objects in this node's store, and their bytes."""
    from ray._private.internal_api import node_stats

    node = ray.nodes()[0]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
    return stats.num_local_objects, stats.object_store_bytes_used


def soak(rounds: int, rule: str, folder: Path) -> dict[str, Any]:
    """Run it; slopes, and what is left in the store once the run is over."""
    (folder / "net.py").write_text(NET)
    watch = Soak()
    settings = {
        "architecture": f"{folder}/net.py:mlp",
        "fusion_algorithm": rule,
        "partition": {"samples_per_party": 40},
        "num_parties": 4,
        "parties_per_actor": 2,
        "rounds": rounds,
    }
    with cluster_connection():
        started = time.monotonic()
        fedray.run(settings, run_dir=folder / "run", watch=watch)
        took = time.monotonic() - started
        left, until = stored(), time.monotonic() + 20
        while left[0] and time.monotonic() < until:  # dropped references take a moment
            time.sleep(0.5)
            left = stored()
    return {"slopes": watch.slopes(), "left": left, "seconds": took}


def main() -> int:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--rule", default="fedavg")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = soak(arguments.rounds, arguments.rule, Path(folder))
    rows, grows = [], []
    for what, (first, last, slope) in done["slopes"].items():
        rows.append([what, f"{first:,.0f}", f"{last:,.0f}", f"{slope:+.4f}"])
        if slope > (MOST_KB if "kB" in what else MOST_OTHER):
            grows.append(what)
    table.show(["second half of the rounds", "from", "to", "a round"], rows)
    n_left, n_bytes = done["left"]
    print(f"{arguments.rounds} rounds in {done['seconds']:.0f} s")
    print(f"left in the store afterwards: {n_left} objects, {n_bytes} bytes")
    print(f"grows: {', '.join(grows)}" if grows else "nothing grows")
    table.write(arguments.json, {"conditions": table.conditions(), **done})
    return 1 if grows or done["left"][0] else 0


if __name__ == "__main__":
    sys.exit(main())
