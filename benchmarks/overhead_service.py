"""What the REST service adds to a training: /train beside the same `fedray run`.

``python benchmarks/overhead_service.py [TURNS]``: the tutorial's federation (its CNN of
1.2M weights, 2 parties × 500 digits, 1 round of 1 epoch), in turns on one cluster: over
REST, JSON of all weights included, by `fedray.run` in a process that has imported all
it needs, and as the command. Prints seconds of each, and differences of the medians.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
import requests
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "jobs"))
from mnist_cnn import cnn

import fedray
from fedray.config import PartitionSpec
from fedray.data.split import split
from fedray.service import http_server
from fedray.service.settings import Settings

FORM = {"fusion_algorithm": "fedavg", "model_type": "pytorch", "num_parties": 2,
        "rounds": 1, "epochs": 1, "learning_rate": 1, "optimizer": "optim.Adadelta",
        "loss": "nll_loss"}  # fmt: skip


def main(n_turns: int = 5) -> None:
    """Measure both in turns."""
    ray.init(address="local", namespace="fedray", include_dashboard=False,
             log_to_driver=False, logging_level="error")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(cnn(), folder / "model.pt")
        split("mnist", folder, 2, PartitionSpec(samples_per_party=500), 0)
        settings = Settings(root=str(folder / "root"))
        listener = http_server.Listener("127.0.0.1", 0)
        http_server.start(settings, listener)
        url = listener.url
        rest, plain, command, sizes = [], [], [], []
        for turn in range(n_turns + 1):
            a, size = _over_rest(url, folder)
            b, c = _plain(folder, turn), _command(folder, turn)
            if turn:  # the first one warms the disk and the workers
                rest.append(a), plain.append(b), command.append(c), sizes.append(size)
                print(f"REST {a:.2f} s   `fedray run` {c:.2f} s   "
                      f"fedray.run() {b:.2f} s", flush=True)  # fmt: skip
        ours = statistics.median(rest)
        for what, times in (("command", command), ("warm process", plain)):
            theirs = statistics.median(times)
            print(f"REST {ours:.2f} s, the same as a {what} {theirs:.2f} s: "
                  f"{ours - theirs:+.2f} s, {sizes[0] / 1e6:.1f} MB of JSON "
                  "included")  # fmt: skip
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


def _config(folder: Path) -> dict:
    parties = [
        {"name": f"party-{i}", "data": str(folder / f"data_party{i}.npz")}
        for i in range(2)
    ]
    return FORM | {"parties": parties, "model_file": str(folder / "model.pt"),
                   "party_cpus": 0}  # fmt: skip


def _plain(folder: Path, turn: int) -> float:
    """In this process, which has imported everything and is connected."""
    began = time.perf_counter()
    fedray.run(_config(folder), run_dir=folder / f"run-{turn}")
    return time.perf_counter() - began


def _command(folder: Path, turn: int) -> float:
    """As a command on the same cluster, from its start to its exit."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(_config(folder)), encoding="utf-8")
    words = ["run", str(file), "--run-dir", str(folder / f"command-{turn}")]
    there = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fedray", *words], check=True,
                   env=os.environ | there, stdout=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
