"""What a federation costs beyond its training, measured against floors of the same run.

python jobs/benchmark.py [--only tutorial|memory] [--json FILE]

tutorial: 2 parties × 500 digits, the tutorial's network, 3 epochs. The floor is a plain
  PyTorch loop over both parties in one process with one thread.
memory: rounds of a 25M-parameter model over 4 and over 32 parties; the peak of the
  aggregator's own memory, and the time of a round against numpy's copy bandwidth.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CONFIG = ROOT / "jobs" / "mnist_fedavg.yaml"
BIG = 25_000_000  # parameters of the memory workload


def big():
    """A network that is large to send and cheap to train: most of it is frozen."""
    from torch import nn

    body = nn.Linear(784, BIG // 785)
    body.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.AdaptiveAvgPool1d(10))


def small():
    """The frozen body, and a layer that trains."""
    from torch import nn

    return nn.Sequential(*big(), nn.Linear(10, 10))


def tutorial(folder: Path) -> dict:
    """Start-up, round, and what a round costs beyond its slowest party."""
    run_dir, started = folder / "tutorial", time.time()
    words = ["run", str(CONFIG), "rounds=6", "--run-dir", str(run_dir)]
    subprocess.run([sys.executable, "-m", "fedray", *words], cwd=ROOT, check=True)
    whole = time.time() - started
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").open()]
    warm = lines[1:]
    overheads = [
        line["seconds"] - line["evaluate_seconds"] - line["train_seconds"]
        for line in warm
    ]
    ended = (run_dir / "history.jsonl").stat().st_mtime  # the last round's line
    rounds = sum(line["seconds"] for line in lines)
    done = {
        "start_to_first_round_s": ended - started - rounds,
        "whole_run_s": whole,
        "round_s": statistics.median(line["seconds"] for line in warm),
        "train_s": statistics.median(line["train_seconds"] for line in warm),
        "evaluate_s": statistics.median(line["evaluate_seconds"] for line in warm),
        "overhead_ms": 1000 * statistics.median(overheads),
        "overhead_max_ms": 1000 * max(overheads),
        "plain_loop_s": plain_loop(),
        "accuracy_after_5": lines[4]["accuracy"],
    }
    done["train_over_half_plain"] = done["train_s"] / (done["plain_loop_s"] / 2)
    return done


def plain_loop() -> float:
    """Seconds in which one thread trains both parties, one after the other."""
    import numpy as np
    import torch

    from fedray import source
    from fedray.data import MnistPytorch

    torch.set_num_threads(1)
    (x, y), _ = MnistPytorch("mnist").get_data()
    net = source.run(source.read(f"{ROOT}/jobs/mnist_cnn.py:cnn", "benchmark"))()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for party in range(2):
            rows = slice(500 * party, 500 * party + 500)
            images, labels = torch.tensor(x[rows]), torch.tensor(y[rows])
            optimizer = torch.optim.Adadelta(net.parameters(), lr=1.0)
            for _ in range(3):
                order = torch.tensor(np.random.default_rng(0).permutation(500))
                for batch in order.split(64):
                    optimizer.zero_grad()
                    out = net(images[batch])
                    torch.nn.functional.nll_loss(out, labels[batch]).backward()
                    optimizer.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def memory(folder: Path) -> dict:
    """Peaks of the aggregator with few and with many parties, one after the other."""
    done = {}
    for n_parties in (4, 32):
        command = [sys.executable, __file__, "--memory", str(n_parties), str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
        done[n_parties] = json.loads((folder / f"memory-{n_parties}.json").read_text())
    ratio = done[32]["private_peak_mb"] / done[4]["private_peak_mb"]
    return {"4_parties": done[4], "32_parties": done[32], "peak_ratio": ratio}


def memory_of(n_parties: int, folder: Path) -> dict:
    """Run one large federation and watch the aggregator's process."""
    import numpy as np

    import fedray

    peaks, over = {"RssAnon": 0, "RssShmem": 0}, threading.Event()
    sampler = threading.Thread(target=_sample, args=(peaks, over))

    def watch(progress):
        if not sampler.is_alive() and not over.is_set():
            peaks["pid"] = _pid_of(f"aggregator:memory-{n_parties}-run")
            sampler.start()

    result = fedray.run(
        {
            "architecture": f"{__file__}:small", "num_parties": n_parties, "rounds": 4,
            "partition": {"samples_per_party": 2}, "evaluate_every": 0,
            "optimizer": "SGD", "placement_timeout_s": 300, "keep_checkpoints": 1,
        },
        run_dir=folder / f"memory-{n_parties}-run",
        watch=watch,
    )  # fmt: skip
    over.set()
    sampler.join()
    source, target = np.ones(BIG, "f4"), np.zeros(BIG, "f4")
    started = time.perf_counter()
    target[:] = source
    copy_s = time.perf_counter() - started
    warm = result.history[1:-1]
    return {
        "private_peak_mb": peaks["RssAnon"] / 1024,
        "shared_peak_mb": peaks["RssShmem"] / 1024,
        "round_s": statistics.median(r.seconds for r in warm),
        "copy_of_one_model_s": copy_s,
    }


def _pid_of(actor: str) -> int:
    import ray

    call = ray.get_actor(actor).__ray_call__.options(concurrency_group="control")
    return ray.get(call.remote(lambda self: os.getpid()))


def _sample(peaks: dict, over: threading.Event) -> None:
    while not over.wait(0.02):
        try:
            lines = Path(f"/proc/{peaks['pid']}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return
        for line in lines:
            key, _, rest = line.partition(":")
            if key in ("RssAnon", "RssShmem"):
                peaks[key] = max(peaks[key], int(rest.split()[0]))


def main() -> None:
    """Run the workloads one after the other; print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["tutorial", "memory"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.memory:
        n_parties, folder = int(words.memory[0]), Path(words.memory[1])
        told = json.dumps(memory_of(n_parties, folder))
        (folder / f"memory-{n_parties}.json").write_text(told)
        return
    done = {"cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory() as folder:
        for workload in (tutorial, memory):
            if words.only in (None, workload.__name__):
                done[workload.__name__] = workload(Path(folder))
    _print(done)
    if words.json:
        words.json.write_text(json.dumps(done, indent=2))


def _print(done: dict, indent: str = "") -> None:
    for key, value in done.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            _print(value, indent + "  ")
        else:
            shown = f"{value:.3f}" if isinstance(value, float) else value
            print(f"{indent}{key:<24} {shown}")


if __name__ == "__main__":
    main()
