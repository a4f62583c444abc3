"""What DP-SGD costs beside plain training: one process, one thread, CPU seconds.

`python benchmarks/dp_sgd.py [mlp] [cnn]` measures an epoch of 500 digits in batches of
50, of the tutorial's CNN and of an MLP: plain PyTorch, clipping alone, clipping with
noise, and clipping by vmap. Where opacus is installed its ways are measured alike;
where fedray is not, they are alone. Every way takes a turn before the next turn begins,
and the best of each counts.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

N_SAMPLES, BATCH, N_TURNS = 500, 50, 5
N_SHORT_TURNS = 40  # of a model whose epoch takes some milliseconds
MAX_NORM, NOISE = 1.0, 1.0
Epoch = Callable[[], None]


def cnn() -> nn.Module:
    """The tutorial's: 1.2 million parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 1), nn.ReLU(),
        nn.MaxPool2d(2, 2), nn.Dropout2d(0.25), nn.Flatten(), nn.Linear(9216, 128),
        nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    """Of 51,000 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


X = torch.randn(N_SAMPLES, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N_SAMPLES) % 10


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all ways."""
    return torch.optim.SGD(module.parameters(), lr=0.01)


def plain(make: Callable[[], nn.Module]) -> Epoch:
    """An ordinary epoch of PyTorch."""
    module = make()
    optimizer = sgd(module)

    def epoch() -> None:
        for x, y in zip(X.split(BATCH), Y.split(BATCH), strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()

    return epoch


def clipped(make: Callable[[], nn.Module], kind: str) -> Epoch:
    """Clipping alone, by fedray: `kind` is ByLayers or ByVmap."""
    from fedray.models.pytorch import clipped_sums, clipping_by_layers, losses

    module, loss = make(), losses.make("cross_entropy", {})
    optimizer, named = sgd(module), dict(module.named_parameters())
    function = clipped_sums.Differentiable(module, loss, named)
    kinds = {"ByLayers": clipping_by_layers.ByLayers, "ByVmap": clipped_sums.ByVmap}
    clip = kinds[kind](function)

    def epoch() -> None:
        for x, y in zip(X.split(BATCH), Y.split(BATCH), strict=True):
            for name, total in clip(x, y, MAX_NORM).sums.items():
                named[name].grad = total.div_(len(x))
            optimizer.step()

    return epoch


def private(make: Callable[[], nn.Module]) -> Epoch:
    """The product's own step: clipping, noise and the optimizer; and the draws."""
    from fedray.config import FederationConfig
    from fedray.models.pytorch import clipped_sums, losses, optimizers
    from fedray.models.pytorch.clipping_by_layers import ByLayers
    from fedray.models.pytorch.private_training import PrivateStep
    from fedray.models.torch_samples import TensorSamples
    from fedray.privacy.private_steps import PrivateSteps
    from fedray.privacy.sgd_noise import draw_batch

    class Model:
        """What a step needs of a live model."""

        def __init__(self) -> None:
            spec = {
                "max_grad_norm": MAX_NORM,
                "noise_multiplier": NOISE,
                "delta": 1e-4,
            }
            config = FederationConfig(architecture="cnn", dp_sgd=spec)
            self.config, self.device = config.resolve(optimizers.DEFAULTS), "cpu"
            self.module, self.loss = make(), losses.make("cross_entropy", {})
            self.trained = [*self.module.parameters()]

    model: Any = Model()
    named = dict(model.module.named_parameters())
    function = clipped_sums.Differentiable(model.module, model.loss, named)
    clip, samples = ByLayers(function), TensorSamples(X, Y)
    n_steps = N_SAMPLES // BATCH

    def epoch() -> None:
        steps = PrivateSteps(NOISE, BATCH / N_SAMPLES, n_steps, bytes(32))
        step = PrivateStep(model, clip, steps, BATCH)
        for i in range(n_steps):
            # drawn, but not taken: every way has batches of 50
            draw_batch(steps.batch_key(i), N_SAMPLES, steps.sampling_rate)
            batch = samples.take(torch.arange(i * BATCH, (i + 1) * BATCH).numpy())
            step(batch.x, batch.y)

    return epoch


def opacus(make: Callable[[], nn.Module], mode: str) -> Epoch:
    """opacus with clipping, noise and step; its noise is torch's, not secret."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    module = make()
    made = PrivacyEngine().make_private(
        module=module, optimizer=sgd(module), criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(TensorDataset(X, Y), BATCH), poisson_sampling=False,
        noise_multiplier=NOISE, max_grad_norm=MAX_NORM, grad_sample_mode=mode,
    )  # fmt: skip
    wrapped, optimizer = made[:2]
    criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()

    def epoch() -> None:
        for x, y in zip(X.split(BATCH), Y.split(BATCH), strict=True):
            optimizer.zero_grad()
            criterion(wrapped(x), y).backward()
            optimizer.step()

    return epoch


def ways(make: Callable[[], nn.Module]) -> dict[str, Epoch]:
    """All that can be measured here."""
    found = {"plain PyTorch": plain(make)}
    try:
        import fedray  # noqa: F401

        found["clipping alone"] = clipped(make, "ByLayers")
        found["clipping and noise"] = private(make)
        found["clipping by vmap"] = clipped(make, "ByVmap")
    except ImportError:
        print("fedray is not installed here", file=sys.stderr)
    try:
        import opacus as package  # noqa: F401

        for mode in ("ghost", "hooks", "ew", "functorch"):
            found[f"opacus, {mode}"] = opacus(make, mode)
    except ImportError:
        print("opacus is not installed here", file=sys.stderr)
    return found


def seconds(epochs: dict[str, Epoch], n_turns: int) -> dict[str, float]:
    """Best CPU seconds of each, taken in turns, after one that does not count."""
    best = dict.fromkeys(epochs, float("inf"))
    for turn in range(n_turns + 1):
        for name, epoch in epochs.items():
            start = time.process_time()
            epoch()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def main() -> None:
    """Print a table for each model."""
    torch.set_num_threads(1)
    models = {"mlp": mlp, "cnn": cnn}
    for make in map(models.__getitem__, sys.argv[1:] or models):
        best = seconds(ways(make), N_SHORT_TURNS if make is mlp else N_TURNS)
        own = best["plain PyTorch"]
        print(f"\n{make.__name__}: an epoch of {N_SAMPLES}, batches of {BATCH}")
        for name, took in best.items():
            print(f"{name:20}  {took * 1e3:8.1f} ms  {took / own:6.2f}x")


if __name__ == "__main__":
    main()
