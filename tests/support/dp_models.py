"""Models and samples for DP-SGD whose numbers are alike in every environment.

Weights and samples are sines of their places, so that no generator's version counts.
Run where opacus is installed, `python tests/support/dp_models.py` writes what it gives
for them to tests/data/opacus_sums.json.
"""

import json
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

NUMBERS = Path(__file__).parents[1] / "data" / "opacus_sums.json"
MAX_NORMS = {  # some gradients are longer, some shorter
    "mlp": 3.0,
    "cnn": 7.9,
    "group_norm": 9.0,
    "norms": 9.0,
    "words": 1.5,
    "attention": 2.0,
    "sequence": 2.0,
    "recurrent": 2.0,
    "tied": 3.7,
}
N = 9


def waves(*shape: int, step: float = 0.37) -> torch.Tensor:
    """Numbers between -1 and 1 that repeat nowhere."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1.0 + step * places + 0.011 * places**2).reshape(shape)


def fill(module: nn.Module) -> nn.Module:
    """Give parameters numbers as large as theirs usually are, in double precision."""
    module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            fan_in = max(1, math.prod(parameter.shape[1:]))
            own = waves(*parameter.shape, step=0.37 + 0.1 * i)
            parameter.copy_(own / math.sqrt(fan_in))
    return module


class Attention(nn.Module):
    """Words, one head of attention by linear layers on sequences, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        q, k, v = self.query(x), self.key(x), self.value(x)
        shares = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(6), -1)
        return self.last(self.norm(x + shares @ v).mean(1))


class Sequence(nn.Module):
    """Attention by linear layers, each on sequences, and a norm at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(3, 6)
        self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.value = nn.Linear(6, 6)
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.into(x))
        q, k, v = self.query(x), self.key(x), self.value(x)
        shares = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(6), -1)
        return self.last(self.norm(x + shares @ v).mean(1))


class Recurrent(nn.Module):
    """Two layers that each step of a sequence goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 5)
        self.into, self.on = nn.Linear(5, 7), nn.Linear(7, 7)
        self.last = nn.Linear(7, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        state = torch.zeros(len(x), 7, dtype=x.dtype, device=x.device)
        for t in range(x.shape[1]):
            state = torch.tanh(self.into(x[:, t]) + self.on(state))
        return self.last(state)


class Tied(nn.Module):
    """An autoencoder of rows, whose second layer is the first one turned over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, (2, 3), stride=(1, 2), dilation=(2, 1), bias=False), nn.ELU(),
        nn.Flatten(), nn.Linear(5 * 2 * 1, 3),
    )  # fmt: skip


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 6 * 6, 3),
    )  # fmt: skip


def norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.LayerNorm([6, 6]),
        nn.Flatten(), nn.LayerNorm(4 * 6 * 6), nn.Linear(4 * 6 * 6, 3),
    )  # fmt: skip


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 3))


def rows() -> torch.Tensor:
    return waves(N, 6) * 2


def images() -> torch.Tensor:
    return waves(N, 2, 8, 8) * 2


def sequences() -> torch.Tensor:
    return waves(N, 5, 3) * 2


def ids() -> torch.Tensor:
    return (torch.arange(N * 5).reshape(N, 5) ** 2 % 11).long()


def labels() -> torch.Tensor:
    return torch.arange(N) ** 2 % 3


CASES = {  # model, samples, and whether opacus takes it as it is
    "mlp": (mlp, rows),
    "cnn": (cnn, images),
    "group_norm": (group_norm, images),
    "norms": (norms, images),
    "words": (words, ids),
    "attention": (Attention, ids),
    "sequence": (Sequence, sequences),
    "recurrent": (Recurrent, ids),
    "tied": (Tied, rows),
}


def targets(name: str) -> torch.Tensor:
    return rows() if name == "tied" else labels()


def each_loss(name: str, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Losses (N,), as fedray has them."""
    if name == "tied":
        return functional.mse_loss(out, y, reduction="none").mean(1)
    return functional.cross_entropy(out, y, reduction="none")


def opacus_sum(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Norms (N,) before clipping, and the clipped sum of each parameter, by opacus."""
    from opacus import GradSampleModule

    make, samples = CASES[name]
    own = fill(make())
    for layer in own.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # which opacus's hooks do not take
    module = GradSampleModule(own, loss_reduction="sum", strict=False)
    each_loss(name, module(samples()), targets(name)).sum().backward()
    named = dict(module._module.named_parameters())
    rows = {n: p.grad_sample.flatten(1) for n, p in named.items()}
    norms = torch.cat([*rows.values()], 1).norm(dim=1)
    factors = (MAX_NORMS[name] / norms).clamp(max=1.0)
    return norms, {n: (factors @ rows[n]).view_as(p) for n, p in named.items()}


def summarize(norms: torch.Tensor, sums: dict[str, torch.Tensor]) -> dict[str, list]:
    """A few numbers that tell a sum: norms, and of each parameter three products."""
    summary = {"norms": norms.tolist()}
    for name, total in sums.items():
        flat = total.detach().flatten().double()
        summary[name] = [
            float(flat @ waves(len(flat), step=step)) for step in (0.3, 1.1, 2.3)
        ]
    return summary


if __name__ == "__main__":
    numbers = {name: summarize(*opacus_sum(name)) for name in CASES}
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
