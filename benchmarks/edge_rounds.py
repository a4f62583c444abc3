"""Seconds of a round with edges beside parties in the cluster, on one machine.

    python benchmarks/edge_rounds.py [--rounds 5] [--samples 500]

The tutorial's federation (2 parties, its CNN, 3 epochs) with `test_data`, first as Ray
actors, then as two `fedray edge` processes through the door. Prints the median round of
both, their ratio, and whether the final weights have the same bits.
"""

import argparse
import contextlib
import os
import runpy
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
HANDLER = "mnist_pytorch"


def write_inputs(folder: Path, n_samples: int) -> dict[str, Any]:
    """The tutorial's model and data; settings of the federation."""
    import torch

    from fedray.data import MnistPytorch

    torch.manual_seed(0)
    model = runpy.run_path(str(ROOT / "jobs" / "mnist_cnn.py"))["cnn"]()
    torch.save(model, folder / "model.pt")
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    parties = []
    for i, name in enumerate(("a", "b")):
        rows = slice(i * n_samples, (i + 1) * n_samples)
        data = {"x_train": x[rows], "y_train": y[rows]}
        np.savez(folder / f"{name}.npz", **data, x_test=x_test, y_test=y_test)
        parties.append({"name": name, "data": str(folder / f"{name}.npz")})
    return {
        "name": "tutorial", "model_file": str(folder / "model.pt"), "epochs": 3,
        "learning_rate": 1.0, "optimizer": "optim.Adadelta", "loss": "nll_loss",
        "data_handler": HANDLER, "parties": parties,
        "test_data": str(folder / "a.npz"), "party_dir": str(folder / "parties"),
    }  # fmt: skip


@contextlib.contextmanager
def open_door(folder: Path) -> Iterator[str]:
    """URL of an edges' door on this process's cluster."""
    import ray

    from fedray.edge_door import DoorSettings
    from fedray.service.settings import Settings

    settings = DoorSettings(port=0)
    with settings.listening() as listener:
        service = settings.start(Settings(root=str(folder)), listener)
        try:
            yield listener.url
        finally:
            ray.kill(service.server)


def run_edges(settings: dict[str, Any], folder: Path) -> Any:
    """The same federation with its parties outside the cluster."""
    from support.forked_edges import forked_edges

    import fedray
    from fedray.edges.registry import Registry

    run, own = folder / "edges", []
    with open_door(folder) as url, forked_edges() as edges:
        for party in settings["parties"]:
            name = party["name"]
            (invitation,) = Registry(run).invite(name)
            own.append({"name": name, "edge": True})
            words = ["--url", url, "--invitation-file", "-", "--data", party["data"]]
            words += ["--data-handler", HANDLER, "--state-dir", folder / f"edge-{name}"]
            edges.start(words, folder / f"{name}.log", invitation)
        return fedray.run({**settings, "parties": own}, run_dir=run)


def median_s(result: Any) -> float:
    """Seconds of the median round; the first one, which loads the data, left out."""
    return statistics.median(one.seconds for one in result.history[1:])


def main() -> None:
    """Run both, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=500)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    import fedray
    from fedray.checkpoint import RunFolder
    from fedray.weights import digest

    ray.init(namespace="fedray", num_cpus=2, log_to_driver=False, address="local")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_inputs(folder, arguments.samples)
        settings["rounds"] = arguments.rounds
        inside = fedray.run(settings, run_dir=folder / "inside")
        outside = run_edges(settings, folder)
        bits = {
            digest(RunFolder(folder / one).newest_checkpoint()[0].weights)
            for one in ("inside", "edges")
        }
    ray.shutdown()
    ours, theirs = median_s(outside), median_s(inside)
    print(
        f"in cluster {theirs:.2f} s a round, edges {ours:.2f} s, x {ours / theirs:.3f}"
    )
    print("same bits" if len(bits) == 1 else "other bits")


if __name__ == "__main__":
    main()
