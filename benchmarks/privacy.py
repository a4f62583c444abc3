"""Privacy shown by attack: what is found without a mechanism, and with each.

`python benchmarks/privacy.py` plays three attacks on digits, in two minutes on two
cores: reading a digit out of a party's update, a first layer planted by a malicious
aggregator, and whether a digit was trained on (LiRA). Clipping, grids, noise, masks and
accounting are the product's own functions; only attacks, and the plain training around
them, are written here. `--full` adds accuracy against epsilon for 10, 100 and 1,000
parties (several minutes); `--figure FILE` draws the results.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedray.data import MnistPytorch
from fedray.privacy import adaptive_clip, noise
from fedray.privacy.accounting import (
    CYCLIC,
    DP_SGD,
    POISSON,
    Plan,
    noise_multiplier_for,
)
from fedray.privacy.banded import BandedNoise, n_participations
from fedray.privacy.grid import GRID, add_stack, from_grid, n_coordinates, to_grid
from fedray.privacy.private_steps import PrivateSteps, sampling_plan
from fedray.privacy.sgd_noise import draw_batch
from fedray.weights import Weights

N_DIGITS, LIKE, FALSE_ALARMS = 200, 0.9, 0.01
SUMS = (2, 10, 100)  # parties of a secure sum
EPSILONS, DELTA = (8.0, 2.0), 1e-3
(X, Y), (X_TEST, Y_TEST) = MnistPytorch("mnist").get_data()
PIXELS = np.asarray(X, np.float32).reshape(len(X), -1)
LABELS = np.asarray(Y).astype(np.int64)
TEST = torch.from_numpy(np.asarray(X_TEST, np.float32).reshape(len(X_TEST), -1))
TEST_LABELS = torch.from_numpy(np.asarray(Y_TEST).astype(np.int64))


class Row(NamedTuple):
    """One line of a table: what protects, what the attack finds, accuracy beside it."""

    attack: str
    protection: str
    success: float
    accuracy: float | None = None


# --- reading digits out of the update of a first layer
def mlp(n_hidden: int) -> nn.Module:
    """784 pixels, one hidden layer, ten digits."""
    return nn.Sequential(nn.Linear(784, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 10))


def weights_of(module: nn.Module) -> Weights:
    """Copies of a module's parameters."""
    return {
        name: tensor.detach().numpy().copy()
        for name, tensor in module.named_parameters()
    }


def trained(module: nn.Module, places: np.ndarray, n_steps: int = 1) -> Weights:
    """Weights after steps of SGD on some digits; the module stays as it is."""
    before, rate = weights_of(module), 0.1
    x, y = torch.from_numpy(PIXELS[places]), torch.from_numpy(LABELS[places])
    for _ in range(n_steps):
        loss = functional.cross_entropy(module(x), y)
        own = [*module.parameters()]
        with torch.no_grad():
            for tensor, slope in zip(own, torch.autograd.grad(loss, own), strict=True):
                tensor -= rate * slope
    after = weights_of(module)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(torch.from_numpy(before[name]))
    return after


def candidates(step: Weights) -> np.ndarray:
    """(n, 784): each neuron's change of weights, by that of its bias."""
    weight, bias = step["0.weight"], step["0.bias"]
    strong = np.argsort(-np.abs(bias))[:64]
    return weight[strong] / np.where(bias[strong] == 0, np.inf, bias[strong])[:, None]


def n_read(images: np.ndarray, places: np.ndarray) -> int:
    """How many of these digits are among the images, by correlation."""
    return int((correlations(images, PIXELS[places]).max(axis=0) > LIKE).sum())


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) between the rows of both."""
    a, b = (np.nan_to_num(x - x.mean(axis=1, keepdims=True)) for x in (a, b))
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) + 1e-30 for x in (a, b)]
    return (a / lengths[0]) @ (b / lengths[1]).T


def as_step(values: np.ndarray, base: Weights) -> Weights:
    """A vector of all float tensors end to end, by tensor."""
    parts = np.split(values, np.cumsum([a.size for a in base.values()])[:-1])
    shapes = zip(base.items(), parts, strict=True)
    return {name: part.reshape(array.shape) for (name, array), part in shapes}


def inversion() -> Iterator[Row]:
    """Digits that are read out of single updates, and of sums."""
    torch.manual_seed(0)
    module, attack = mlp(64), "inversion of an update"
    base, numbers = weights_of(module), np.random.default_rng(0)
    places = numbers.permutation(len(PIXELS))[:N_DIGITS]
    single = [trained(module, places[i : i + 1]) for i in range(N_DIGITS)]
    updates = [to_grid(own, base, 1.0).values.astype(np.int64) for own in single]

    def share_read(of: Callable[[int], np.ndarray], n: int) -> float:
        """Of sums of n parties with a digit each."""
        n_found = sum(
            n_read(candidates(as_step(of(i).astype(float), base)), places[i : i + n])
            for i in range(0, N_DIGITS, n)
        )
        return n_found / N_DIGITS

    steps = (step_between(own, base) for own in single)
    pairs = zip(steps, places, strict=True)
    plain = sum(n_read(candidates(step), np.array([at])) for step, at in pairs)
    yield Row(attack, "none", plain / N_DIGITS)
    yield Row(attack, "clipped alone", share_read(lambda i: updates[i], 1))
    for n in SUMS:
        of = lambda i, n=n: np.sum(updates[i : i + n], axis=0)  # noqa: E731
        yield Row(attack, f"secure sum of {n}", share_read(of, n))
    with tempfile.TemporaryDirectory() as folder:
        vectors = masked_vectors(updates[:3], Path(folder))
    masked = [vector[: len(updates[0])] for vector in vectors]
    found = [candidates(as_step(one.astype(float), base)) for one in masked]
    n_found = sum(n_read(one, places[i : i + 1]) for i, one in enumerate(found))
    yield Row(attack, "one masked update", n_found / len(masked))
    for z in (0.001, 0.01):
        of = lambda i, z=z: with_noise(updates[i], z)  # noqa: E731
        yield Row(attack, f"noise z = {z:g} (no epsilon)", share_read(of, 1))
    for epsilon in EPSILONS:
        z = calibrated(epsilon, DELTA, Plan(20))
        of = lambda i, z=z: with_noise(updates[i], z)  # noqa: E731
        yield Row(attack, f"central, epsilon {epsilon:g}", share_read(of, 1))
    for epsilon in EPSILONS:
        z = calibrated(epsilon, DELTA, Plan(20, DP_SGD))
        n_found = 0
        for at in places[:50]:
            after = copy.deepcopy(module)
            dp_sgd(after, np.array([at]), z, (1, 1))
            found = candidates(step_between(weights_of(after), base))
            n_found += n_read(found, np.array([at]))
        yield Row(attack, f"dp_sgd, epsilon {epsilon:g}", n_found / 50)


def step_between(new: Weights, base: Weights) -> Weights:
    """What training moved."""
    return {name: new[name] - base[name] for name in base}


def with_noise(total: np.ndarray, z: float) -> np.ndarray:
    """A sum as it is released."""
    total = total.copy()
    noise.add_noise(total, os.urandom(32), adaptive_clip.noise_scale(z, 1, False))
    return total


def masked_vectors(updates: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """What the aggregator gets of each party; their sum is checked."""
    from fedray.secure_sum import (
        Attempt,
        FolderStorage,
        Member,
        PartySide,
        ServerSide,
        Step,
        grid_parameters,
    )

    names = [f"party-{i}" for i in range(len(updates))]
    folders = {name: FolderStorage(folder / name) for name in [*names, "server"]}
    sides = {name: PartySide(name, folders[name]) for name in names}
    members = tuple(Member(name, side.public_key) for name, side in sides.items())
    parameters = grid_parameters(len(updates[0]), len(names), GRID)
    at = folders["server"]
    server = ServerSide.begin(Attempt("run", "", 1, 1, members, parameters), at)
    vectors, sent = dict(zip(names, updates, strict=True)), []
    while server.step < Step.DONE:
        if server.step == Step.MASKED:
            server.use_weights(bytes(32))
        for name, request in server.requests().items():
            if server.step == Step.MASKED:
                vector = sides[name].mask(request, bytes(32), [vectors[name]], 1)
                sent.append(np.array(vector))
                server.add([name], vector)
            else:
                server.accept(name, sides[name].answer(request))
        server.close()
    assert (server.result().total == np.sum(updates, axis=0)).all()
    return sent


# --- a first layer that a malicious aggregator plants
# Source: Fowl et al. 2022, arXiv:2110.13057: neurons are active above thresholds of one
# measurement; the difference of neighbours' changes is of the digits in between.
def planted(n_bins: int, known: np.ndarray) -> nn.Module:
    """A model whose first layer sorts digits by their brightness.

    known : digits of the attacker's own, for the thresholds.
    """
    module = mlp(n_bins)
    brightness = PIXELS[known].mean(axis=1)
    thresholds = np.quantile(brightness, np.linspace(0, 1, n_bins, endpoint=False))
    thresholds += np.arange(n_bins) * 1e-9
    with torch.no_grad():
        module[0].weight.fill_(1 / 784)
        module[0].bias.copy_(torch.from_numpy(-thresholds))
        module[2].weight.copy_(torch.linspace(-1, 1, 10)[:, None].expand(10, n_bins))
        module[2].bias.zero_()
    return module


FIRST = ("0.weight", "0.bias")  # of the first layer


def planted_layer(n_parties: int = 100, n_bins: int = 4000) -> Iterator[Row]:
    """Digits that are read out of a secure sum of parties with a digit each."""
    attack = f"planted first layer, sum of {n_parties}"
    places = np.random.default_rng(1).permutation(len(PIXELS))
    own, known = places[:n_parties], places[n_parties:]
    module = planted(n_bins, known)
    base = weights_of(module)
    total = np.zeros(n_coordinates(base), np.int64)
    for at in own:
        total += to_grid(trained(module, np.array([at])), base, 1.0).values
    for protection, released in (
        ("secure aggregation", total),
        ("and noise z = 1", with_noise(total, 1.0)),
    ):
        step = as_step(released.astype(float), base)
        weight, bias = (np.diff(step[name], axis=0, append=0) for name in FIRST)
        n_found = n_read(weight[bias != 0] / bias[bias != 0, None], own)
        yield Row(attack, protection, n_found / n_parties)


# --- whether a digit was trained on
# Source: Carlini et al. 2022, arXiv:2112.03570 (LiRA); the other models are shadows.
N_MODELS, N_POOL, N_HIDDEN = 32, 400, 32
Scores = tuple[np.ndarray, float]  # (models, pool) confidence in the label; accuracy


def membership() -> Iterator[Row]:
    """How many members of an overfitted model's training set are told from others."""
    numbers, attack = np.random.default_rng(2), "membership (LiRA)"
    pool = numbers.permutation(len(PIXELS))[:N_POOL]
    is_in = numbers.permuted(np.tile(np.arange(N_POOL) % 2 == 0, (N_MODELS, 1)), axis=1)
    plain = score_all(fit_plain, pool, is_in)
    yield Row(attack, "none", *lira(plain, is_in))
    yield Row(attack, "secure aggregation: the same model", *lira(plain, is_in))
    for epsilon in EPSILONS:
        fit = lambda places, e=epsilon: fit_dp_sgd(places, e)  # noqa: E731
        name = f"dp_sgd, epsilon {epsilon:g} a sample"
        yield Row(attack, name, *lira(score_all(fit, pool, is_in), is_in))
    for epsilon in EPSILONS:
        fit = lambda places, e=epsilon: fit_central(places, e)  # noqa: E731
        name = f"central, epsilon {epsilon:g} a party of 5"
        yield Row(attack, name, *lira(score_all(fit, pool, is_in), is_in))


def score_all(
    fit: Callable[[np.ndarray], nn.Module], pool: np.ndarray, is_in: np.ndarray
) -> Scores:
    """Train each model on its digits; how sure it is of all of them, and how good."""
    x, y = torch.from_numpy(PIXELS[pool]), torch.from_numpy(LABELS[pool])
    sure, accuracies = [], []
    for own in is_in:
        module = fit(pool[own])
        with torch.no_grad():
            chance = functional.softmax(module(x).double(), 1)
            right = chance[torch.arange(len(y)), y].clamp(1e-12, 1 - 1e-12)
            sure.append(torch.logit(right).numpy())
            is_right = module(TEST).argmax(1) == TEST_LABELS
            accuracies.append(float(is_right.double().mean()))
    return np.array(sure), statistics.mean(accuracies)


def lira(scores: Scores, is_in: np.ndarray) -> tuple[float, float]:
    """True alarms at 1 % false ones, of all models and digits; the models' accuracy."""
    sure, accuracy = scores
    ratios = np.empty_like(sure)
    for model in range(len(sure)):
        others = np.arange(len(sure)) != model
        own, members = sure[others], is_in[others]
        means, spreads = [], []
        for side in (members, ~members):
            values = np.where(side, own, np.nan)
            means.append(np.nanmean(values, axis=0))
            spreads.append(np.sqrt(np.nanmean((values - means[-1]) ** 2)))
        logs = [
            -(((sure[model] - mean) / spread) ** 2) / 2 - np.log(spread)
            for mean, spread in zip(means, spreads, strict=True)
        ]
        ratios[model] = logs[0] - logs[1]
    threshold = np.quantile(ratios[~is_in], 1 - FALSE_ALARMS)
    return float((ratios[is_in] > threshold).mean()), accuracy


def fit_plain(places: np.ndarray) -> nn.Module:
    """An overfitted model."""
    module = seeded_mlp(places)
    x, y = torch.from_numpy(PIXELS[places]), torch.from_numpy(LABELS[places])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


def seeded_mlp(places: np.ndarray) -> nn.Module:
    """A start that differs from model to model."""
    torch.manual_seed(int(places.sum()))
    return mlp(N_HIDDEN)


def fit_dp_sgd(places: np.ndarray, epsilon: float) -> nn.Module:
    """The product's DP-SGD on one party's digits."""
    module, batch_size = seeded_mlp(places), 50
    rate, n_steps = sampling_plan(len(places), batch_size, 15, None)
    plan = Plan(1, DP_SGD, POISSON, rate, steps=n_steps)
    dp_sgd(module, places, calibrated(epsilon, DELTA, plan), (rate, n_steps))
    return module


def dp_sgd(
    module: nn.Module, places: np.ndarray, z: float, plan: tuple[float, int]
) -> None:
    """Train a module by steps of the product, in place.

    plan : chance of a digit to be in a batch, and steps.
    """
    from fedray.config import FederationConfig
    from fedray.models.pytorch import losses, optimizers
    from fedray.models.pytorch.clipped_sums import Differentiable
    from fedray.models.pytorch.clipping_by_layers import ByLayers
    from fedray.models.pytorch.private_training import PrivateStep
    from fedray.models.torch_samples import TensorSamples

    n, (rate, n_steps) = len(places), plan
    spec = {"max_grad_norm": 1.0, "noise_multiplier": z, "delta": DELTA}
    config = FederationConfig(architecture="mlp", dp_sgd=spec, learning_rate=0.5)

    class Model:
        """What a step needs of a live model."""

        def __init__(self) -> None:
            self.config, self.device = config.resolve(optimizers.DEFAULTS), "cpu"
            self.module, self.loss = module, losses.make("cross_entropy", {})
            self.trained = [*module.parameters()]

    model: Any = Model()
    named = dict(module.named_parameters())
    clip = ByLayers(Differentiable(module, model.loss, named))
    x, y = torch.from_numpy(PIXELS[places]), torch.from_numpy(LABELS[places])
    samples, steps = TensorSamples(x, y), PrivateSteps(z, rate, n_steps, os.urandom(32))
    step = PrivateStep(model, clip, steps, rate * n)
    for i in range(n_steps):
        batch = samples.take(draw_batch(steps.batch_key(i), n, rate))
        step(batch.x, batch.y)


def fit_central(places: np.ndarray, epsilon: float, rounds: int = 20) -> nn.Module:
    """Noise for parties, with five digits each."""
    module = seeded_mlp(places)
    n_parties = len(places) // 5
    z = calibrated(epsilon, DELTA, Plan(rounds))
    own = places.reshape(n_parties, 5)
    for _ in range(rounds):
        base = weights_of(module)
        total = np.zeros(n_coordinates(base), np.int64)
        stack = train_parties(module, own)
        add_stack(stack, base, 0.5, total)
        new = from_grid(base, with_noise(total, z), 0.5, n_parties)
        with torch.no_grad():
            for name, tensor in module.named_parameters():
                tensor.copy_(torch.from_numpy(new[name]))
    return module


def train_parties(module: nn.Module, own: np.ndarray, n_steps: int = 2) -> Weights:
    """Each party's weights after steps on its digits (parties, digits), in a stack."""
    x, y = torch.from_numpy(PIXELS[own]), torch.from_numpy(LABELS[own])
    stack = {
        name: tensor.detach().expand(len(own), *tensor.shape).clone()
        for name, tensor in module.named_parameters()
    }

    def loss_of(parameters: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        answer = torch.func.functional_call(module, parameters, (x,))
        return functional.cross_entropy(answer, y)

    slopes_of = torch.func.vmap(torch.func.grad(loss_of))
    for _ in range(n_steps):
        slopes = slopes_of(stack, x, y)
        stack = {name: array - 0.5 * slopes[name] for name, array in stack.items()}
    return {name: array.numpy() for name, array in stack.items()}


CALIBRATED: dict[tuple, float] = {}


def calibrated(epsilon: float, delta: float, plan: Plan) -> float:
    """The noise multiplier for an epsilon, computed once."""
    place = epsilon, delta, plan
    if place not in CALIBRATED:
        CALIBRATED[place] = noise_multiplier_for(epsilon, delta, plan)
    return CALIBRATED[place]


# --- accuracy against epsilon
class Setting(NamedTuple):
    """How many parties there are, and who takes part."""

    n_parties: int
    sampling: str
    rounds: int
    cycle: int = 1


SETTINGS = (
    Setting(1000, CYCLIC, 60, 10),
    Setting(1000, "all", 20),
    Setting(100, "all", 20),
    Setting(10, "all", 20),
)
CLIP_NORMS = (0.1, 0.3, 1.0)


def utility() -> Iterator[tuple[Setting, list[float]]]:
    """Accuracy of softmax regression on 4,000 digits, without noise and by epsilon."""
    for setting in SETTINGS:
        yield (
            setting,
            [
                max(accuracy_of(setting, epsilon, clip) for clip in CLIP_NORMS)
                for epsilon in (None, *EPSILONS)
            ],
        )


def accuracy_of(setting: Setting, epsilon: float | None, clip_norm: float) -> float:
    """Test accuracy after all rounds, with the product's grid and noise."""
    n, sampling, rounds, cycle = setting
    torch.manual_seed(0)
    module = nn.Linear(784, 10)
    own = np.random.default_rng(3).permutation(len(PIXELS))[:4000].reshape(n, -1)
    band = min(cycle, 16)
    plan = Plan(rounds, sampling=sampling, cycle=cycle, band=band)
    z = None if epsilon is None else calibrated(epsilon, 1e-4, plan)
    banded = BandedNoise(band, n_participations(rounds, cycle))
    for number in range(rounds):
        base = weights_of(module)
        total = np.zeros(n_coordinates(base), np.int64)
        stack = train_parties(module, own[number % cycle :: cycle], 5)
        add_stack(stack, base, clip_norm, total)
        if z is not None and sampling == CYCLIC:
            scale = adaptive_clip.noise_scale(z, 1, False)
            total += banded.next(len(total), os.urandom(32), scale)
        elif z is not None:
            total = with_noise(total, z)
        new = from_grid(base, total, clip_norm, n / cycle)
        with torch.no_grad():
            for name, tensor in module.named_parameters():
                tensor.copy_(torch.from_numpy(new[name]))
    with torch.no_grad():
        return float((module(TEST).argmax(1) == TEST_LABELS).double().mean())


# --- tables and a figure
def print_rows(rows: list[Row]) -> None:
    """A table of the attacks' success."""
    print("| attack | protection | found | test accuracy |\n|---|---|---|---|")
    for row in rows:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.3f}"
        print(f"| {row.attack} | {row.protection} | {row.success:.3f} | {accuracy} |")


def draw(rows: list[Row], file: str) -> None:
    """Bars of each attack's success by what protects."""
    from matplotlib import pyplot

    attacks = list(dict.fromkeys(row.attack for row in rows))
    counts = [sum(row.attack == attack for row in rows) for attack in attacks]
    figure, parts = pyplot.subplots(
        len(attacks), 1, figsize=(7, 0.32 * sum(counts) + 2), height_ratios=counts
    )
    for part, attack in zip(parts, attacks, strict=True):
        own = [row for row in rows if row.attack == attack][::-1]
        names, values = [r.protection for r in own], [r.success for r in own]
        bars = part.barh(names, values, color="#0072b2")
        part.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
        part.set(xlim=(0, 1.1), title=attack)
        part.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Play the attacks, and print what they find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="accuracy by epsilon, too")
    parser.add_argument("--figure", metavar="FILE", help="draw the attacks' success")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # arrays are small
    rows: list[Row] = []
    for play in (inversion, planted_layer, membership):
        started, cpu = time.monotonic(), time.process_time()
        rows += play()
        seconds = time.monotonic() - started, time.process_time() - cpu
        print(f"# {play.__name__}: {seconds[0]:.0f} s, {seconds[1]:.0f} s of CPU")
    print_rows(rows)
    if arguments.figure:
        draw(rows, arguments.figure)
    if arguments.full:
        print(
            "\n| parties | sampling | rounds | without noise | epsilon 8 | epsilon 2 |"
        )
        print("|---|---|---|---|---|---|")
        for setting, accuracies in utility():
            values = " | ".join(f"{value:.3f}" for value in accuracies)
            n, sampling, rounds, _ = setting
            print(f"| {n:,} | {sampling} | {rounds} | {values} |", flush=True)


if __name__ == "__main__":
    main()
