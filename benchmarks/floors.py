"""What the same work costs without a federation: the floors of the benchmarks."""

import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from workloads import (  # noqa: E402
    WORKLOADS,
    Workload,
    build,
    evaluate,
    large_arrays,
    train,
)

from fedray.data import MnistPytorch  # noqa: E402

MOST = 1000  # parties trained for a floor; more are scaled up from these
REPEATS = 5


def plain_loop(workload: Workload) -> float:
    """Seconds of a round in one thread: train each party in turn, average, evaluate."""
    torch.set_num_threads(1)
    n_chosen = round(workload.n_parties * workload.settings.get("party_fraction", 1))
    n_parties = min(n_chosen, MOST)
    x, y, x_test, y_test = digits()
    rng = np.random.default_rng(0)
    rows = rng.integers(len(x), size=(n_parties, workload.n_samples))
    parties = [(x[r], y[r]) for r in torch.from_numpy(rows)]
    net = build(workload)
    tensors = net.state_dict()

    def one_round() -> None:
        start = {name: tensor.clone() for name, tensor in tensors.items()}
        total = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        for i, (images, labels) in enumerate(parties):
            for name, tensor in tensors.items():
                tensor.copy_(start[name])
            train(workload, net, images, labels, seed=i)
            for name, tensor in tensors.items():
                total[name] += tensor
        for name, tensor in tensors.items():
            tensor.copy_(total[name] / n_parties)
        if workload.evaluates:
            evaluate(workload, net, x_test, y_test)

    return median_of(one_round) * n_chosen / n_parties


def perturb_loop(workload: Workload) -> float:
    """Seconds to copy, shift and sum large models in one process, in one thread."""
    start, mine, total = (large_arrays(workload.n_parameters) for _ in range(3))

    def one_round() -> None:
        for k in range(workload.n_parties):
            for a, b, c in zip(start, mine, total, strict=True):
                np.copyto(b, a)
                b += np.float32(1e-3 * k)
                if k:
                    c += b
                else:
                    np.copyto(c, b)
        for a, c in zip(start, total, strict=True):
            np.multiply(c, np.float32(1 / workload.n_parties), out=a)

    return median_of(one_round)


def copy_of(n_parameters: int) -> float:
    """Seconds of numpy's copy of one such model."""
    source, target = large_arrays(n_parameters), large_arrays(n_parameters)

    def copy() -> None:
        for a, b in zip(source, target, strict=True):
            np.copyto(b, a)

    return median_of(copy)


@contextmanager
def adding_in_place(
    targets: list[np.ndarray], sources: list[np.ndarray], n_threads: int
) -> Iterator[Callable[[], object]]:
    """Give a call of ``a += b`` over all arrays, each cut evenly among the threads."""

    def add(i: int) -> None:
        for a, b in zip(targets, sources, strict=True):
            mine = slice(len(a) * i // n_threads, len(a) * (i + 1) // n_threads)
            a[mine] += b[mine]

    with ThreadPoolExecutor(n_threads) as pool:
        yield lambda: list(pool.map(add, range(n_threads)))


def threads_of(call: Callable[[], object]) -> int:
    """Threads of this process that took a fair part in a call."""
    before = _ticks()
    call()
    spent = [ticks - before.get(task, 0) for task, ticks in _ticks().items()]
    return sum(ticks > max(spent) / 4 for ticks in spent) or 1


def _ticks() -> dict[str, int]:
    ticks = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[task.name] = int(fields[11]) + int(fields[12])  # user, system
    return ticks


def bare_processes(workload: Workload) -> dict[str, float]:
    """Seconds of training, and of training and evaluating: a process for each party."""
    with _started(workload) as processes:
        _ask(processes, "both")  # warms up
        calls = [functools.partial(_ask, processes, what) for what in ("train", "both")]
        train_s, both_s = medians_of(*calls, n_cold=0)
    return {"bare_train_s": train_s, "bare_both_s": both_s}


@contextmanager
def _started(workload: Workload) -> Iterator[list[subprocess.Popen]]:
    command = [sys.executable, __file__, workload.name]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = []
    try:
        for party in range(workload.n_parties):
            words = [*command, str(party)]
            processes.append(subprocess.Popen(words, env=env, **pipes))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _ask(processes: list[subprocess.Popen], what: str) -> None:
    for process in processes:
        process.stdin.write(what + "\n")
        process.stdin.flush()
    for process in processes:
        if not process.stdout.readline():
            raise RuntimeError("a bare process has ended")


def _be_bare(workload: Workload, party: int) -> None:
    """Train and evaluate one party whenever asked to."""
    torch.set_num_threads(1)
    x, y, x_test, y_test = digits()
    mine = slice(workload.n_samples * party, workload.n_samples * (party + 1))
    share = len(x_test) // workload.n_parties
    tests = slice(share * party, share * (party + 1))
    net = build(workload)
    for what in sys.stdin:
        train(workload, net, x[mine], y[mine], seed=party)
        if what.strip() == "both":
            evaluate(workload, net, x_test[tests], y_test[tests])
        print("done", flush=True)


def median_of(call: Callable[[], object], n_cold: int = 1) -> float:
    """Median seconds of a call, after `n_cold` that do not count."""
    return medians_of(call, n_cold=n_cold)[0]


def medians_of(*calls: Callable[[], object], n_cold: int = 1) -> list[float]:
    """Median seconds of each of several calls that take turns."""
    seconds = []
    for _ in range(n_cold + REPEATS):
        turn = []
        for call in calls:
            started = time.perf_counter()
            call()
            turn.append(time.perf_counter() - started)
        seconds.append(turn)
    return [statistics.median(each) for each in zip(*seconds[n_cold:], strict=True)]


def digits() -> tuple[torch.Tensor, ...]:
    """x_train, y_train, x_test, y_test of the shipped digits, as a party has them."""
    train, test = MnistPytorch("mnist").get_data()
    return tuple(torch.from_numpy(array) for array in (*train, *test))


if __name__ == "__main__":
    _be_bare(WORKLOADS[sys.argv[1]], int(sys.argv[2]))
