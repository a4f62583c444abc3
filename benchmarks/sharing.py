"""Groups of similar parties, and adopting the best model: two federations, measured.

`python benchmarks/sharing.py` on the shipped digits, MLP 784-64-10, SGD 0.05, batches
of 20: 8 parties × 500, four of which have permuted labels, as one federation and in the
groups that similarity finds; then 8 parties of which one has 20 times the data, each
alone, as fedavg, and adopting the best model.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fedray
from fedray.data import MnistPytorch

EXAMPLES = Path(__file__).resolve().parent.parent / "jobs"
N_PARTIES = 8
PERMUTED = (1, 3, 4, 6)
BASE = {
    "architecture": f"{EXAMPLES}/mnist_mlp.py:mlp",
    "loss": "cross_entropy",
    "optimizer": "optim.SGD",
    "learning_rate": 0.05,
    "batch_size": 20,
    "rounds": 10,
}


def write(folder: Path, sizes: list[int], permuted: tuple[int, ...]) -> list[dict]:
    """Parties with so many digits each, and their share of the test digits."""
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    starts, tests = np.cumsum([0, *sizes]), np.array_split(np.arange(1000), len(sizes))
    otherwise = np.random.default_rng(0).permutation(10)
    parties = []
    for i, size in enumerate(sizes):
        called = otherwise if i in permuted else np.arange(10)
        train = slice(starts[i], starts[i] + size)
        path = folder / f"party{i}-{sum(sizes)}.npz"
        np.savez(path, x_train=x[train], y_train=called[y[train]],
                 x_test=x_test[tests[i]], y_test=called[y_test[tests[i]]])  # fmt: skip
        parties.append({"name": f"p{i}", "data": str(path)})
    return parties


def run(folder: Path, name: str, **settings: Any) -> fedray.Result:
    """One federation, its numbers printed."""
    result = fedray.run({**BASE, **settings}, run_dir=folder / name.replace(" ", "-"))
    megabytes = sum(line.bytes_moved for line in result.history) / 1e6
    print(
        f"  {name:22} accuracy {result.accuracy:.4f}  {megabytes:7.1f} MB", flush=True
    )
    return result


def main() -> None:
    """Both tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"labels permuted at parties {PERMUTED}")
        parties = write(folder, [500] * N_PARTIES, PERMUTED)
        run(folder, "one global model", parties=parties)
        for k in (2, None):
            groups = {"by": "similarity", "k": k}
            run(folder, f"groups k {k}", parties=parties, groups=groups)
            print("   ", json.loads((folder / f"groups-k-{k}/groups.json").read_text()))
        print("one party with 2,000 digits, seven with 100")
        parties = write(folder, [2000] + [100] * 7, ())
        test = {"test_data": str(EXAMPLES.parent / "fedray/data/mnist_5000.npz")}
        run(folder, "the large one alone", parties=parties[:1], **test)
        run(folder, "a small one alone", parties=parties[1:2], **test)
        run(folder, "fedavg", parties=parties, **test)
        for adopt in (1.0, 0.5):
            best = {"fusion_algorithm": "best_model", "adopt": adopt}
            run(folder, f"best_model, adopt {adopt}", parties=parties, **best, **test)


if __name__ == "__main__":
    main()
