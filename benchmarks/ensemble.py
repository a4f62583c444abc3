"""Three models of two frameworks at parties of few digits each: one ensemble, measured.

`python benchmarks/ensemble.py` on the shipped digits: party a brings the tutorial's
CNN, b an MLP, c the tutorial's Keras network; each holds five or six of the ten digits.
Nobody's model travels to another party. A student, an MLP, learns from the ensemble on
1,000 further training digits without their labels. Accuracy on all 1,000 test digits.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fedray
from fedray.data import MnistPytorch

EXAMPLES = Path(__file__).resolve().parent.parent / "jobs"
LABELS = {
    "cnn": (0, 1, 2, 3, 4, 5),
    "mlp": (4, 5, 6, 7, 8),
    "keras": (7, 8, 9, 0, 1, 2),
}
N_UNLABELED = 1000
MODELS = {
    "cnn": {
        "architecture": f"{EXAMPLES}/mnist_cnn.py:cnn",
        "loss": "nll_loss",
        "optimizer": "optim.Adadelta",
        "learning_rate": 1.0,
    },
    "mlp": {
        "architecture": f"{EXAMPLES}/mnist_mlp.py:mlp",
        "loss": "cross_entropy",
        "optimizer": "optim.SGD",
        "learning_rate": 0.1,
    },
    "keras": {
        "model_type": "keras",
        "architecture": f"{EXAMPLES}/mnist_keras.py:cnn",
        "loss": "categorical_crossentropy",
        "optimizer": "Adadelta",
        "learning_rate": 1.0,
        "data_handler": "mnist_keras",
    },
}


def write(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Parties with the digits of their labels, and a file without labels for all."""
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    order = np.random.default_rng(seed).permutation(len(x))
    np.savez(folder / "unlabeled.npz", x=x[order[:N_UNLABELED]])
    np.savez(folder / "test.npz", x_train=x[:1], y_train=y[:1], x_test=x_test,
             y_test=y_test)  # fmt: skip
    parts, parties = np.array_split(order[N_UNLABELED:], len(LABELS)), []
    for part, (name, labels) in zip(parts, LABELS.items(), strict=True):
        mine, tests = part[np.isin(y[part], labels)], np.isin(y_test, labels)
        path = folder / f"{name}.npz"
        np.savez(path, x_train=x[mine], y_train=y[mine], x_test=x_test[tests],
                 y_test=y_test[tests])  # fmt: skip
        parties.append({"name": name, "data": str(path), **MODELS[name]})
    return parties


def run(folder: Path, seed: int, rounds: int = 5) -> dict[str, float]:
    """Accuracies on the test digits: of each member, the ensembles, the student."""
    config = {
        "fusion_algorithm": "ensemble",
        "parties": write(folder, seed),
        "test_data": str(folder / "test.npz"),
        "distill": f"{EXAMPLES}/mnist_mlp.py:mlp",
        "distill_data": str(folder / "unlabeled.npz"),
        "distill_epochs": 20,
        "rounds": rounds,
        "batch_size": 32,
        "evaluate_every": 0,
        "seed": seed,
    }
    result = fedray.run(config, run_dir=folder / "run")
    members = {line.group: line.accuracy for line in result.history if line.accuracy}
    told = json.loads((folder / "run" / "ensemble.json").read_text())
    found = {**members, "best member": max(members.values())}
    found |= {"ensemble": result.accuracy, "student": told["student_accuracy"]}
    tests = np.load(folder / "test.npz")
    each = fedray.load(folder / "run").each(tests["x_test"])
    return found | _weighted(np.array(list(each.values())), tests["y_test"])


def _weighted(said: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """As `member_weights: accuracy`: every second sample weighs, the others tell."""
    weights = (said[:, ::2].argmax(2) == y[::2]).mean(1)
    weighted = np.average(said, axis=0, weights=weights)
    means = {"equal, half": said.mean(0), "weighted, half": weighted}
    return {
        name: float((mean[1::2].argmax(1) == y[1::2]).mean())
        for name, mean in means.items()
    }


def main() -> None:
    """One line a seed, then their means."""
    n_seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rows = []
    for seed in range(n_seeds):
        with tempfile.TemporaryDirectory() as name:
            rows.append(run(Path(name), seed))
        print(f"seed {seed} ", _shown(rows[-1]), flush=True)
    print("mean   ", _shown({k: float(np.mean([r[k] for r in rows])) for k in rows[0]}))


def _shown(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {accuracy:.3f}" for name, accuracy in row.items())


if __name__ == "__main__":
    main()
