"""The aggregator's own peak memory: python benchmarks/peak.py N_PARTIES OUT.json

Every party has an actor of its own and sends 25M parameters.
"""

import json
import os
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from measure import sizes_of  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

import fedray  # noqa: E402

N_ROUNDS = 4  # the first is cold, the last one evaluates


def peak(n_parties: int, folder: Path) -> dict[str, float]:
    """Run one large federation and watch the aggregator's process."""
    run = f"memory-{n_parties}-{os.getpid()}"  # others may run it on this cluster
    peaks, over = {"RssAnon": 0, "RssShmem": 0}, threading.Event()
    sampler = threading.Thread(target=_sample, args=(peaks, over))

    def watch(progress: Any) -> None:
        if not sampler.is_alive() and not over.is_set():
            peaks["pid"] = _pid_of(f"aggregator:{run}")
            sampler.start()

    config = WORKLOADS["weights_25m"].config(str(FOLDER))
    more = {"num_parties": n_parties, "rounds": N_ROUNDS, "parties_per_actor": 1}
    try:
        result = fedray.run({**config, **more}, run_dir=folder / run, watch=watch)
    finally:
        over.set()
    sampler.join()
    return {
        "private_peak_mb": peaks["RssAnon"] / 1024,
        "shared_peak_mb": peaks["RssShmem"] / 1024,
        "round_s": statistics.median(r.seconds for r in result.history[1:-1]),
    }


def _pid_of(actor: str) -> int:
    import ray

    call = ray.get_actor(actor).__ray_call__.options(concurrency_group="control")
    return ray.get(call.remote(lambda self: os.getpid()))


def _sample(peaks: dict, over: threading.Event) -> None:
    while not over.wait(0.02):
        now = sizes_of(peaks["pid"], "status")
        for key in ("RssAnon", "RssShmem"):
            peaks[key] = max(peaks[key], now.get(key, 0))


if __name__ == "__main__":
    out = Path(sys.argv[2])
    out.write_text(json.dumps(peak(int(sys.argv[1]), out.parent)))
