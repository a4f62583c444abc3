"""What both benchmarks run: models, sizes, and training written by hand.

fedray reads this file as the `architecture` of its parties and the peer's workers
import it, so it needs torch and numpy only.
"""

import os
import signal
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

PARTS = 10  # tensors that the large models are cut into
SHIFT = 1e-3  # of every weight, times the mean pixel of the party's own digit


@dataclass(frozen=True)
class Workload:
    """One federation, as both sides run it."""

    name: str
    n_parties: int
    n_samples: int  # training digits of each party
    model: str  # a function of this file, or cnn
    n_rounds: int = 6  # the first is cold; the last too where it alone evaluates
    epochs: int = 1
    batch_size: int = 20
    optimizer: str = "SGD"
    learning_rate: float = 0.1
    loss: str = "cross_entropy"
    replace: bool = False  # draw digits with replacement
    evaluates: bool = True  # every round, each party on its share of the test digits
    n_parameters: int = 0  # of models that are perturbed, not trained
    settings: dict[str, Any] = field(default_factory=dict)  # of fedray alone

    def config(self, folder: str) -> dict[str, Any]:
        """The settings that fedray runs it with; `folder` is this file's."""
        examples = Path(folder).parent / "jobs"
        is_cnn = self.model == "cnn"
        file = examples / "mnist_cnn.py" if is_cnn else f"{folder}/workloads.py"
        partition = {"source": "mnist", "samples_per_party": self.n_samples}
        return {
            "architecture": f"{file}:{self.model}",
            "num_parties": self.n_parties,
            "partition": {**partition, "replace": self.replace},
            "rounds": self.n_rounds,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "loss": self.loss,
            "evaluate_every": int(self.evaluates),
            "placement_timeout_s": 300,
            "round_timeout_s": 3600,
            **self.settings,
        }


def mlp() -> nn.Module:
    """784-64-10, 50,890 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


class Mortal(nn.Sequential):
    """The first to train once the file that BENCHMARK_DEATH names is there dies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What its layers make of x, if it lives."""
        if self.training and (flag := os.environ.get("BENCHMARK_DEATH")):
            with suppress(FileNotFoundError):  # not yet, or another took it
                os.rename(flag, f"{flag}.taken")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def mortal() -> nn.Module:
    """784-64-10 as above, in a process that may be killed."""
    return Mortal(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def tiny() -> nn.Module:
    """20 parameters: what remains of a round is what each party costs."""
    return nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(1, 10))


def weights_25m() -> nn.Module:
    """100 MB of weights that are perturbed, not trained."""
    return Perturbed(25_000_000)


def weights_100m() -> nn.Module:
    """400 MB of weights that are perturbed, not trained."""
    return Perturbed(100_000_000)


def weights_1b() -> nn.Module:
    """4 GB of weights that are perturbed, not trained."""
    return Perturbed(1_000_000_000)


class Perturbed(nn.Module):
    """Shifts its large frozen tensors in place, once for each step of training."""

    def __init__(self, n_parameters: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))
        for i, part in enumerate(large_arrays(n_parameters)):
            frozen = nn.Parameter(torch.from_numpy(part), requires_grad=False)
            self.register_parameter(f"part{i}", frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores that do not look at the digits."""
        if self.training:
            shift = float(x.mean()) * SHIFT
            with torch.no_grad():
                for i in range(PARTS):
                    self.get_parameter(f"part{i}").add_(shift)
        return self.logits.expand(len(x), 10)


def large_arrays(n_parameters: int) -> list[np.ndarray]:
    """Float32 arrays, written once so that their pages are there."""
    return [np.full(n_parameters // PARTS, 0.01, "f4") for _ in range(PARTS)]


def train(
    workload: Workload, net: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
) -> float:
    """Train a party's passes on from what `net` is; loss of the last batch."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    make = getattr(torch.optim, workload.optimizer)
    optimizer = make(net.parameters(), lr=workload.learning_rate)
    loss_of = getattr(nn.functional, workload.loss)
    net.train()
    loss = torch.zeros(())
    for _ in range(workload.epochs):
        rows = torch.from_numpy(order.permutation(len(x)))
        for batch in rows.split(workload.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(net(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
    return float(loss.detach())


def evaluate(
    workload: Workload, net: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> tuple[float, float]:
    """Mean loss, and the share of digits that are read right."""
    net.eval()
    with torch.no_grad():
        out = net(x)
        loss = getattr(nn.functional, workload.loss)(out, y)
        return float(loss), float((out.argmax(1) == y).float().mean())


def build(workload: Workload) -> nn.Module:
    """The workload's model, initialised under seed 0."""
    torch.manual_seed(0)
    if workload.model == "cnn":
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "jobs"))
        from mnist_cnn import cnn  # not there in fedray's actors

        warnings.filterwarnings("ignore", message="dropout2d")  # the tutorial has it
        return cnn()
    return globals()[workload.model]()


def _many(name: str, n_parties: int, **others: Any) -> Workload:
    return Workload(name, n_parties, 40, "mlp", **others)


def _large(
    name: str, n_parameters: int, n_rounds: int, n_parties: int = 4, **settings: Any
) -> Workload:
    # one sample and one step: nothing is trained but ten numbers
    return Workload(
        name, n_parties, 1, name, evaluates=False, n_parameters=n_parameters,
        n_rounds=n_rounds, settings=settings,
    )  # fmt: skip


def _every(fraction: float) -> Workload:
    settings = {"party_fraction": fraction, "keep_checkpoints": 1}
    name = f"parties_100000_{'all' if fraction == 1 else 'some'}"
    return Workload(
        name, 100_000, 10, "mlp", batch_size=10, replace=True, settings=settings
    )


TUTORIAL = Workload(
    "tutorial", 2, 500, "cnn", epochs=3, batch_size=64, optimizer="Adadelta",
    learning_rate=1.0, loss="nll_loss",
)  # fmt: skip
NOOP = Workload(
    "noop_10000", 10_000, 1, "tiny", n_rounds=12, replace=True, evaluates=False
)
DEATH = Workload("worker_dies", 20, 40, "mortal", n_rounds=10)
WORKLOADS = {
    workload.name: workload
    for workload in (
        TUTORIAL,
        _many("parties_100", 100),
        _many("parties_1000", 1000, replace=True),
        _large("weights_25m", 25_000_000, 12),
        _large("weights_100m", 100_000_000, 9),
        _large("weights_1b", 1_000_000_000, 4, 2, wire_dtype="bfloat16"),
        NOOP,
        DEATH,
        _every(0.01),
        _every(1.0),
    )
}
