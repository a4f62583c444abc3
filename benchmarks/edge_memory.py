"""Peak memory of an edge's process beside that of bare training in PyTorch.

    python benchmarks/edge_memory.py [--parameters 25e6]

Both train the same model on the same samples with the same batches, once. The edge
fetches the weights, trains by fedray, and sends its update to a small server of the
protocol in this process. Allowed is the bare training, one more model and 60 MB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
ALLOWED_MB = 60
N_SAMPLES, N_INPUTS = 640, 784
PEAK = """
import json, re, sys
def print_peak():
    status = open("/proc/self/status").read()
    print(json.dumps(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024))
"""
BARE = """
import os
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np, torch
from torch import nn
with np.load(sys.argv[1]) as file:
    x, y = torch.from_numpy(file["x_train"]), torch.from_numpy(file["y_train"])
width = int(sys.argv[2])
model = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(),
                      nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
step, loss = torch.optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss()
for i in range(0, len(x), 64):
    step.zero_grad()
    loss(model(x[i:i + 64]), y[i:i + 64]).backward()
    step.step()
print_peak()
"""
EDGE = """
from fedray.cli import main
assert main(sys.argv[1:]) == 0
print_peak()
"""


def measure(code: str, *words: object) -> int:
    """Peak resident bytes of a Python process that runs this code."""
    command = [sys.executable, "-c", PEAK + code, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def width_of(n_parameters: float) -> int:
    """Width of the hidden layers: w² + 796 w is the number of parameters, nearly."""
    return int(-398 + (398**2 + n_parameters) ** 0.5)


def measure_edge(folder: Path, data: str, width: int) -> tuple[int, int]:
    """Peak of an edge that trains one round; bytes of the model."""
    import torch
    from support.edge_runs import make_run
    from support.scripted_door import ScriptedDoor
    from torch import nn

    file, handler = folder / "wide.pt", "npz"
    layers = (
        *(nn.Flatten(), nn.Linear(N_INPUTS, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)),
    )
    torch.save(nn.Sequential(*layers), file)
    run = make_run(folder / "run", data, model_file=str(file), data_handler=handler)
    with ScriptedDoor(folder) as door:
        task = door.open("train", 1, run.plan, run.base)
        invitation = folder / "invitation"
        invitation.write_text(door.invitation)
        peak = measure(
            EDGE, "edge", "--url", door.url, "--data", data, "--data-handler", handler,
            "--state-dir", folder / "state", "--invitation-file", invitation, "--once",
        )  # fmt: skip
        assert len(door.updates[task.id]) > len(run.base) - 1000
    return peak, len(run.base)


def main() -> None:
    """Measure both, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=25e6)
    width = width_of(parser.parse_args().parameters)
    sys.path.insert(0, str(ROOT / "tests"))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = str(folder / "a.npz")
        x = rng.random((N_SAMPLES, N_INPUTS), np.float32)
        y = rng.integers(0, 10, N_SAMPLES)
        np.savez(data, x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
        bare = measure(BARE, data, width)
        edge, model = measure_edge(folder, data, width)
    more = edge - bare - model
    line = {"bare": bare, "edge": edge, "model": model, "more_than_one_model": more}
    print(json.dumps({k: f"{v / 1e6:.1f} MB" for k, v in line.items()}))
    print("within" if more <= ALLOWED_MB * 1e6 else "over", f"{ALLOWED_MB} MB")


if __name__ == "__main__":
    main()
