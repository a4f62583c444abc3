"""What masked rounds cost beside plain ones, measured: whole rounds on Ray.

`python benchmarks/secure_rounds.py` trains the tutorial's CNN at 3 and at 5 parties,
200 digits each, plain and with `secure_aggregation`: both runs alternate, the median of
all rounds but the first of each counts. In the first round keys are exchanged, too.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np

import fedray
from fedray.data import MnistPytorch

EXAMPLES = Path(__file__).resolve().parent.parent / "jobs"
N_RUNS, N_ROUNDS, N_DIGITS = 2, 5, 200
CNN = {
    "architecture": f"{EXAMPLES}/mnist_cnn.py:cnn",
    "rounds": N_ROUNDS,
    "learning_rate": 0.1,
    "batch_size": 50,
    "loss": "nll_loss",
    "evaluate_every": N_ROUNDS,
}
MASKED = {"secure_aggregation": True, "clip_norm": 10.0}


def parties(n: int, folder: Path) -> list[dict[str, str]]:
    """Parties with digits of their own in files."""
    (x, y), _ = MnistPytorch("mnist").get_data()
    listed = []
    for i in range(n):
        file = folder / f"{i}.npz"
        own = slice(i * N_DIGITS, (i + 1) * N_DIGITS)
        np.savez(file, x_train=x[own], y_train=y[own], x_test=x[:20], y_test=y[:20])
        listed.append({"name": f"party-{i}", "data": str(file)})
    return listed


def measure(n_parties: int) -> None:
    """One line: seconds of a round, plain and masked, and of the first ones."""
    rounds: dict[str, list[float]] = {"plain": [], "masked": []}
    first: dict[str, list[float]] = {"plain": [], "masked": []}
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        settings = CNN | {"parties": parties(n_parties, folder)}
        settings["party_dir"] = str(folder / "own")
        for i in range(N_RUNS):
            for name, own in (("plain", {}), ("masked", MASKED)):
                run_dir = folder / f"{name}{i}"
                history = fedray.run({**settings, **own}, run_dir=run_dir).history
                seconds = [r.seconds - r.evaluate_seconds for r in history]
                first[name].append(seconds[0])
                rounds[name] += seconds[1:]
    plain, masked = (statistics.median(rounds[name]) for name in rounds)
    start = {name: statistics.median(of) for name, of in first.items()}
    print(
        f"{n_parties} parties: plain {plain:.3f} s, masked {masked:.3f} s a round "
        f"({masked / plain:.2f} x, {1e3 * (masked - plain):+.0f} ms); the first "
        f"{start['plain']:.3f} and {start['masked']:.3f} s",
        flush=True,
    )


if __name__ == "__main__":
    for n in (3, 5):
        measure(n)
