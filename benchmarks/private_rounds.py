"""What noise for parties costs, measured: pieces on one core, and whole rounds.

`python benchmarks/private_rounds.py` prints CPU seconds of clipping, of noise and of
the step for 1.2 and 25 million numbers (best of 5), then the seconds of a round of the
tutorial's CNN, 10 parties with 500 digits, without and with central noise: both runs
alternate, the median of all rounds but the first of each counts.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fedray
from fedray.privacy.banded import BandedNoise
from fedray.privacy.grid import from_grid, to_grid
from fedray.privacy.noise import NoiseScale, add_noise

EXAMPLES = Path(__file__).resolve().parent.parent / "jobs"
SIZES = (1_200_000, 25_000_000)
N_RUNS, N_ROUNDS = 3, 4
NOISE = {
    "mechanism": "central",
    "noise_multiplier": 1.0,
    "delta": 1e-2,
    "clip_norm": 10.0,
}
CNN = {
    "architecture": f"{EXAMPLES}/mnist_cnn.py:cnn",
    "num_parties": 10,
    "partition": {"source": "mnist", "samples_per_party": 500, "replace": True},
    "rounds": N_ROUNDS,
    "learning_rate": 0.1,
    "batch_size": 50,
    "loss": "nll_loss",
    "evaluate_every": N_ROUNDS,
}


def best(work: Callable[[], object]) -> float:
    """CPU seconds of this process, the best of five."""
    seconds = []
    for _ in range(5):
        before = time.process_time()
        work()
        seconds.append(time.process_time() - before)
    return min(seconds)


def measure_pieces(size: int) -> None:
    """One line: clipping to the grid, noise, banded noise, and back."""
    rng, scale = np.random.default_rng(0), NoiseScale(2.0**20)
    base = {"w": rng.normal(size=size).astype("f4")}
    new = {"w": (base["w"] + 1e-3 * rng.normal(size=size)).astype("f4")}
    total = to_grid(new, base, 1.0).values.astype(np.int64)
    past = [np.rint(1e6 * rng.normal(size=size)).astype(np.int64) for _ in range(3)]
    seconds = {
        "clip": best(lambda: to_grid(new, base, 1.0)),
        "noise": best(lambda: add_noise(total, os.urandom(32), scale)),
        "banded noise (4 rounds)": best(
            lambda: BandedNoise(4, 5, past).next(size, os.urandom(32), scale)
        ),
        "back": best(lambda: from_grid(base, total, 1.0, 10)),
    }
    shown = ", ".join(f"{name} {of * 1e3:.1f} ms" for name, of in seconds.items())
    rate = size / seconds["noise"] / 1e6
    print(f"{size / 1e6:.1f} M numbers: {shown}; {rate:.0f} M/s of noise", flush=True)


def measure_rounds() -> None:
    """Seconds of the CNN's round without and with noise, and their ratio."""
    rounds: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(N_RUNS):
            for name, own in (("without", {}), ("with", {"privacy": NOISE})):
                result = fedray.run({**CNN, **own}, run_dir=Path(folder) / f"{name}{i}")
                rounds[name] += [line.seconds for line in result.history[1:-1]]
    without, noised = (statistics.median(own) for own in rounds.values())
    print(
        f"CNN, 10 parties x 500 digits: {without:.3f} s a round, {noised:.3f} s with "
        f"noise: {noised / without:.3f} x"
    )


if __name__ == "__main__":
    for n in SIZES:
        measure_pieces(n)
    measure_rounds()
