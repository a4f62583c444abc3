"""What the REST service adds to a training: /train beside the same `fedray run`.

``python jobs/overhead_service.py [TURNS]``: the tutorial's federation (its CNN of 1.2M
weights, 2 parties × 500 digits, 1 round of 1 epoch), in turns on one cluster: over
REST, JSON of all weights included, and by `fedray.run`. Prints seconds of each, and the
difference of the medians.
"""

import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray
import requests
import torch
from mnist_cnn import cnn

import fedray
from fedray.config import PartitionSpec
from fedray.data.split import split
from fedray.service import deployment
from fedray.service.settings import Settings

FORM = {"fusion_algorithm": "fedavg", "model_type": "pytorch", "num_parties": 2,
        "rounds": 1, "epochs": 1, "learning_rate": 1, "optimizer": "optim.Adadelta",
        "loss": "nll_loss"}  # fmt: skip


def main(n_turns: int = 5) -> None:
    """Measure both in turns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address="local", namespace="fedray", include_dashboard=False,
             log_to_driver=False, logging_level="error")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(cnn(), folder / "model.pt")
        split("mnist", folder, 2, PartitionSpec(samples_per_party=500), 0)
        settings = Settings(root=str(folder / "root"))
        deployment.start(settings, "127.0.0.1", port)
        url = f"http://127.0.0.1:{port}"
        rest, plain, sizes = [], [], []
        for turn in range(n_turns + 1):
            a, size = _over_rest(url, folder)
            b = _plain(folder, turn)
            if turn:  # the first one warms the disk and the workers
                rest.append(a), plain.append(b), sizes.append(size)
                print(f"REST {a:.2f} s   fedray run {b:.2f} s", flush=True)
        more = statistics.median(rest) - statistics.median(plain)
        print(f"REST {statistics.median(rest):.2f} s, "
              f"fedray run {statistics.median(plain):.2f} s: {more:+.2f} s for "
              f"{sizes[0] / 1e6:.1f} MB of JSON")  # fmt: skip
    ray.shutdown()


def _over_rest(url: str, folder: Path) -> tuple[float, int]:
    files = {"model_file": ("m.pt", (folder / "model.pt").read_bytes())}
    made = requests.post(f"{url}/start-aggregator", data=FORM, files=files).json()
    id = made["aggregator_id"]
    for i in range(2):
        form = {"aggregator_id": id, "data_handler_class_name": "mnist_pytorch"}
        data = {"data": ("d.npz", (folder / f"data_party{i}.npz").read_bytes())}
        requests.post(f"{url}/start-party", data=form, files=data).raise_for_status()
    began = time.perf_counter()
    answer = requests.post(f"{url}/train", json={"aggregator_id": id})
    taken = time.perf_counter() - began
    answer.raise_for_status()
    requests.post(f"{url}/stop", json={"aggregator_id": id}).raise_for_status()
    return taken, len(answer.content)


def _plain(folder: Path, turn: int) -> float:
    parties = [
        {"name": f"party-{i}", "data": str(folder / f"data_party{i}.npz")}
        for i in range(2)
    ]
    config = FORM | {"parties": parties, "model_file": str(folder / "model.pt"),
                     "party_cpus": 0}  # fmt: skip
    began = time.perf_counter()
    fedray.run(config, run_dir=folder / f"run-{turn}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
