"""DP-SGD in PyTorch models: clipped sums, batches, noise, steps, refusals. No Ray.

Held to samples taken one by one in plain PyTorch, and to opacus 1.6: its numbers are in
data/opacus_sums.json, as tests/support/dp_models.py has written them; where opacus is
installed they are compared anew.
"""

import json
import logging
import math

import numpy as np
import pytest
import torch
from support import dp_models as dp
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedray import data, models
from fedray.config import FederationConfig, parse, rate_function
from fedray.datasets import wrap
from fedray.errors import ConfigError, PartyError, TrialFailed
from fedray.messages import ActorLocation
from fedray.models.base import PartySlice
from fedray.models.pytorch import clipped_sums, clipping_by_layers, losses
from fedray.models.pytorch.clipped_sums import ByVmap, Differentiable, OneByOne
from fedray.models.pytorch.clipping_by_layers import (
    ByLayers,
    NotCovered,
    obstacle_to_layers,
)
from fedray.models.pytorch.clipping_choice import differentiable
from fedray.models.pytorch.model import TorchModel
from fedray.models.pytorch.model_files import read
from fedray.models.pytorch.private_training import ROOM
from fedray.nested import Arrays, MappedArray
from fedray.party import GroupPlan, PartyGroup, probe_party
from fedray.privacy.private_steps import PrivateSteps, sampling_plan
from fedray.privacy.sgd_noise import GRID_BITS, add_noise, draw_batch

pytestmark = pytest.mark.usefixtures("one_thread")
SECRET = bytes(range(32))


def function_of(module, loss="cross_entropy", **args):
    made = losses.make(loss, args)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return Differentiable(module, made, trained)


def example(name):
    make, samples = dp.CASES[name]
    function = function_of(
        dp.fill(make()), "mse_loss" if name == "tied" else "cross_entropy"
    )
    return function, samples(), dp.targets(name)


def by_hand(function, x, y, max_norm):
    """Sum of clipped gradients by nothing but backward(), sample after sample."""
    sums = {name: torch.zeros_like(p) for name, p in function.tensors.items()}
    norms = []
    for i in range(len(x)):
        function.module.zero_grad()
        function.loss.mean(function.module(x[i : i + 1]), y[i : i + 1]).backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad
                 for n, p in function.tensors.items()}  # fmt: skip
        norms.append(math.sqrt(sum(float((g**2).sum()) for g in grads.values())))
        for name in sums:
            sums[name] += grads[name] * min(1.0, max_norm / norms[-1])
    return norms, sums


def are_equal(actual, norms, sums, tolerance):
    torch.testing.assert_close(
        actual.norms,
        torch.as_tensor(norms, dtype=torch.float64).to(actual.norms),
        rtol=tolerance,
        atol=0,
    )
    assert list(actual.sums) == list(sums)
    largest = max(float(total.abs().max()) for total in sums.values())
    for name, total in sums.items():
        most = max(float(total.abs().max()), 0.01 * largest)  # attention.key.bias: 0
        difference = float((actual.sums[name] - total).abs().max())
        assert difference <= tolerance * most, name


WAYS = {
    "mlp": (ByLayers, ByVmap, OneByOne),
    "cnn": (ByLayers, ByVmap, OneByOne),
    "group_norm": (ByVmap, OneByOne),
    "norms": (ByLayers, ByVmap, OneByOne),
    "words": (ByVmap, OneByOne),
    "attention": (ByVmap, OneByOne),
    "sequence": (ByLayers, ByVmap, OneByOne),
    "recurrent": (ByVmap, OneByOne),
    "tied": (ByVmap, OneByOne),
}


@pytest.mark.parametrize("name", dp.CASES)
def test_every_way_gives_the_sum_of_clipped_gradients(name):
    function, x, y = example(name)
    norms, sums = by_hand(function, x, y, dp.MAX_NORMS[name])
    assert min(norms) < dp.MAX_NORMS[name] < max(norms)  # some are clipped
    for way in WAYS[name]:
        are_equal(way(function)(x, y, dp.MAX_NORMS[name]), norms, sums, 1e-12)


@pytest.mark.parametrize("name", dp.CASES)
def test_clipped_sums_are_those_of_opacus(name):
    function, x, y = example(name)
    expected = json.loads(dp.NUMBERS.read_text())[name]
    for way in WAYS[name]:
        got = way(function)(x, y, dp.MAX_NORMS[name])
        summary = dp.summarize(got.norms, got.sums)
        assert list(summary) == list(expected)
        largest = max(abs(one) for numbers in expected.values() for one in numbers)
        for key, numbers in expected.items():
            most = max(*map(abs, numbers), 0.01 * largest)
            assert np.allclose(summary[key], numbers, rtol=0, atol=1e-6 * most), key


@pytest.mark.parametrize("name", dp.CASES)
def test_clipped_sums_are_those_of_opacus_where_it_is_installed(name):
    pytest.importorskip("opacus")
    function, x, y = example(name)
    norms, sums = dp.opacus_sum(name)
    for way in WAYS[name]:
        are_equal(way(function)(x, y, dp.MAX_NORMS[name]), norms, sums, 1e-6)


def test_a_clipped_sum_by_hand():
    # out = w x, loss (w x - y)^2: gradients 2 (w x - y) x = 12, -4 and 0 for w = 2
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 2.0)
    function = function_of(layer, "mse_loss")
    x = torch.tensor([[2.0], [1.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [4.0], [6.0]], dtype=torch.float64)
    for way in (ByLayers, ByVmap, OneByOne):
        got = way(function)(x, y, 5.0)
        assert got.sums["weight"].item() == 5.0 - 4.0 + 0.0
        assert got.norms.tolist() == [12.0, 4.0, 0.0]
        assert got.losses.tolist() == [9.0, 4.0, 0.0]


@pytest.mark.parametrize("trained", ["0.weight", "0.bias", "3.weight", "3.bias"])
def test_parts_of_a_model_that_train_count_alone(trained):
    module = dp.fill(dp.cnn())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == trained or name == "6.bias")
    if not dict(module.named_parameters()).get(trained, torch.zeros(0)).requires_grad:
        return  # this convolution has no bias
    function, x, y = function_of(module), dp.images(), dp.labels()
    assert obstacle_to_layers(function) is None
    norms, sums = by_hand(function, x, y, 0.2)
    for way in (ByLayers, ByVmap, OneByOne):
        are_equal(way(function)(x, y, 0.2), norms, sums, 1e-12)


def test_memory_limits_change_nothing(monkeypatch):
    function, x, y = example("cnn")
    norms, sums = by_hand(function, x, y, 7.9)
    monkeypatch.setattr(clipped_sums, "CHUNK_BYTES", {"cpu": 2500})
    monkeypatch.setattr(clipping_by_layers, "WEIGHT_BYTES", {"cpu": 2500})
    monkeypatch.setattr(clipping_by_layers, "UNFOLDED_BYTES", {"cpu": 30_000})
    for way in (ByLayers, ByVmap):
        are_equal(way(function)(x, y, 7.9), norms, sums, 1e-12)
    assert ByVmap(function).chunk == 1


BAD = [math.nan, math.inf, -math.inf, 1e38, 3e38]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["mlp", "cnn", "norms"])
def test_a_sample_without_a_finite_gradient_counts_as_zero(name, bad):
    make, samples = dp.CASES[name]
    function = function_of(dp.fill(make()).float())
    x, y = samples().float(), dp.labels()
    x[4] = bad * torch.sign(x[4]) if math.isfinite(bad) else bad
    others = torch.arange(dp.N) != 4
    for way in (ByLayers, ByVmap, OneByOne):
        got = way(function)(x.clone(), y, dp.MAX_NORMS[name])
        rest = way(function)(x[others], y[others], dp.MAX_NORMS[name])
        own = math.sqrt(
            sum(float((got.sums[n] - rest.sums[n]).square().sum()) for n in rest.sums)
        )
        assert own <= dp.MAX_NORMS[name] * (1 + 1e-5)
        if not got.norms[4].isfinite():
            assert own < 1e-5 * dp.MAX_NORMS[name]
        assert all(total.isfinite().all() for total in got.sums.values())


@pytest.mark.parametrize("name", ["mlp", "cnn", "norms", "attention"])
def test_no_sample_moves_a_sum_by_more_than_the_norm(name):
    make, samples = dp.CASES[name]
    function, y = function_of(dp.fill(make()).float()), dp.labels()
    x = samples()
    if x.is_floating_point():
        powers = 10.0 ** torch.linspace(-30, 30, dp.N)
        x = x.float() * powers.view(-1, *[1] * (x.ndim - 1))
    for way in WAYS[name]:
        whole = way(function)(x, y, 1e-3 * (1 - ROOM))
        for i in range(dp.N):
            rows = torch.arange(dp.N) != i
            rest = way(function)(x[rows], y[rows], 1e-3 * (1 - ROOM))
            square = sum(
                float((whole.sums[n].double() - rest.sums[n].double()).square().sum())
                for n in rest.sums
            )
            assert math.sqrt(square) <= 1e-3


# the loss of one sample


def test_losses_of_samples_are_means_over_their_own_labels():
    out = dp.waves(4, 3, 5)  # 4 sequences of 5, 3 classes
    y = torch.tensor([[0, 1, 2, 0, 1], [2, 2, -100, -100, 1], [-100] * 5, [1] * 5])
    loss = losses.make("cross_entropy", {"ignore_index": -100})
    expected = [
        functional.cross_entropy(out[i : i + 1], y[i : i + 1]).item() for i in (0, 1, 3)
    ]
    got = loss.by_sample(out, y).tolist()
    assert got[2] == 0.0  # no label counts
    assert np.allclose([got[0], got[1], got[3]], expected, rtol=1e-12)


def test_class_weights_do_not_cancel_in_the_loss_of_one_sample():
    out, y = dp.waves(4, 3), torch.tensor([0, 1, 2, 1])
    weight = [1.0, 5.0, 0.5]
    loss = losses.make("cross_entropy", {"weight": weight})
    plain = functional.cross_entropy(out, y, reduction="none")
    expected = plain * torch.tensor(weight, dtype=torch.float64)[y]
    torch.testing.assert_close(loss.by_sample(out, y), expected)
    smooth = losses.make("mse_loss", {})
    torch.testing.assert_close(
        smooth.by_sample(out, out * 2), (out**2).mean(1), rtol=1e-12, atol=0
    )


# batches


def test_each_sample_is_drawn_by_its_own_chance():
    n, rate, n_draws = 300, 0.1, 400
    drawn = np.zeros((n_draws, n))
    for i in range(n_draws):
        key = i.to_bytes(32, "big")
        places = draw_batch(key, n, rate)
        assert (np.diff(places) > 0).all()
        drawn[i, places] = 1
        assert (draw_batch(key, n, rate) == places).all()
    sizes = drawn.sum(1)  # binomial: mean 30, variance 27
    assert abs(sizes.mean() - 30) < 4 * math.sqrt(27 / n_draws)
    assert 0.75 < sizes.var() / 27 < 1.3
    per_sample = drawn.mean(0)
    assert abs(per_sample.var() / (0.09 / n_draws) - 1) < 0.35
    pairs = np.corrcoef(drawn[:, ::2].sum(1), drawn[:, 1::2].sum(1))[0, 1]
    assert abs(pairs) < 4 / math.sqrt(n_draws)  # a fixed size would give -1
    assert (draw_batch(SECRET, 7, 1.0) == np.arange(7)).all()
    assert not len(draw_batch(SECRET, 7, 1e-12))


def test_noise_is_the_exact_rounding_of_a_sum_with_real_noise():
    total = np.random.default_rng(0).standard_normal(70_001).astype(np.float32) * 40
    deviation = 1.3
    noised = add_noise(total, SECRET, deviation)
    grid = 2.0**-GRID_BITS  # the power of two below 1.3, times 2^-20
    assert (noised / grid == np.rint(noised / grid)).all()
    noise = noised - total
    assert abs(noise.std() / deviation - 1) < 0.01
    assert abs(noise.mean()) < 0.02
    again = add_noise(np.zeros_like(total), SECRET, deviation)
    assert np.abs(noise - again).max() <= grid * 1.001  # the same noise, rounded apart
    other = add_noise(total, bytes(32), deviation) - total
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.02
    # a number that is far below the grid still decides nothing but the rounding
    tiny = add_noise(np.full(5, -1e-40), SECRET, deviation)
    assert (tiny == add_noise(np.zeros(5), SECRET, deviation)).all()


# training

NETS = """
import math
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def drops():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))

def drops_and_norm():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 3)
    )

def scales():
    return nn.Sequential(
        nn.Linear(6, 8), nn.PReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )

def norm():
    batch_norm = nn.BatchNorm1d(8, affine=False, track_running_stats=False)
    return nn.Sequential(nn.Linear(6, 8), batch_norm, nn.Linear(8, 3))

def norm_with_statistics():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

def half():
    return net().bfloat16()

def instance():
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True),
        nn.Flatten(), nn.Linear(6, 3),
    )

class Counts(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("most", torch.zeros(()), persistent=False)

    def forward(self, x):
        with torch.no_grad():
            self.most.copy_(torch.maximum(self.most, x.abs().max()))
        return super().forward(x)

def counts():
    return Counts(*net())

class Unused(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x):
        for layer in list(self)[:3]:
            x = layer(x)
        return x

def unused():
    return Unused(*net())

class Remembers(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.state = torch.zeros(3)

    def forward(self, x):
        out = super().forward(x) + 0.1 * self.state
        self.state = out.detach().mean(0)
        return out

def remembers():
    return Remembers(*net())

class Detached(nn.Sequential):
    def forward(self, x):
        return super().forward(x).detach()

def detached():
    return Detached(*net())

def words(**args):
    return nn.Sequential(nn.Embedding(6, 4, **args), nn.Flatten(), nn.Linear(24, 3))

def sparse_words():
    return words(sparse=True)

def short_rows():
    return words(max_norm=0.5)

class Mixes(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x - 0.1 * x.mean(0)

def mixes():
    return Mixes(*net())

class MixesInTraining(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x - 0.1 * x.roll(1, 0) if self.training else x

def mixes_in_training():
    return MixesInTraining(*net())

class Twice(nn.Sequential):
    def forward(self, x):
        hidden = torch.tanh(functional.linear(x, self[0].weight))
        return super().forward(x) + functional.linear(hidden, self[2].weight)

def twice():
    return Twice(*net())

class Branches(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)

def branches():
    return Branches(*net())

class TimeFirst(nn.Sequential):
    # as many steps as samples are compared, before the samples
    def forward(self, x):
        steps = torch.arange(8, dtype=x.dtype)[:, None, None] / 8 + x
        return super().forward(steps).sum(0)

def time_first():
    return TimeFirst(*net())

class Rows(nn.Sequential):
    def forward(self, x):
        return super().forward(x.reshape(len(x), 3, 2)).mean(1)

def rows():
    return Rows(nn.Linear(2, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))

class Rare(nn.Sequential):
    def forward(self, x):
        own = self[3](x) if x.max().item() > 2.5 else 0.0
        return self[2](self[1](self[0](x))) + own

def rare():
    return Rare(*net(), nn.Linear(6, 3))

class Sometimes(nn.Sequential):
    # leaves a layer out where a batch is large
    def forward(self, x):
        if len(x) > 12:
            return self[2](torch.tanh(x @ self[0].weight.T))
        return super().forward(x)

def sometimes():
    return Sometimes(*net())

class Named(nn.Module):
    # two inputs by name, several outputs
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, rows, extra):
        hidden = torch.tanh(self.first(rows) + extra)
        return {"logits": self.last(hidden), "hidden": hidden}

def named():
    return Named()

class OwnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels=None):
        out = self.net(x)
        if labels is None:
            return out
        return {"loss": functional.cross_entropy(out, labels), "logits": out}

def own_loss():
    return OwnLoss()

def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
            self.last.weight = self.first.weight
        def forward(self, x):
            return self.last(self.first(x))[:, :3]
    return Tied()

def lstm():
    class Lstm(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.last = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)
        def forward(self, x):
            return self.last(self.lstm(x.reshape(len(x), 3, 2))[0][:, -1])
    return Lstm()

def transformer():
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), layer, nn.Flatten(), nn.Linear(6, 3)
    )

def smooth(out, y):
    return functional.cross_entropy(out, y, label_smoothing=0.1)
"""
N = 40
X = np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, N)


@pytest.fixture
def build(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)

    def make(name="net", x=X, y=Y, **keys):
        keys = {"batch_size": 10, "learning_rate": 0.1, "epochs": 2} | keys
        if keys.get("local_steps"):
            del keys["epochs"]
        if str(keys.get("loss", "")).startswith("nets.py"):
            keys["loss"] = f"{tmp_path}/{keys['loss']}"
        spec = {"max_grad_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
        config = FederationConfig(
            architecture=f"{tmp_path}/nets.py:{name}",
            dp_sgd=spec | keys.pop("dp_sgd", {}),
            **keys,
        )
        blueprint, weights = read(config)
        weights = {name: array.copy() for name, array in weights.items()}
        model = TorchModel(blueprint, config, "cpu")
        return model, weights, model.ready(Arrays(x, y))

    return make


def steps_of(model, n=N, z=1.0, secret=SECRET):
    config = model.config
    plan = sampling_plan(n, config.batch_size, config.epochs, config.local_steps)
    return PrivateSteps(z, *plan, secret)


def train(model, weights, samples, private, **keys):
    part = PartySlice(np.arange(len(samples)), 5, "p", private=private, **keys)
    ((loss, arrays),) = model.train_each(weights, [part], samples)
    assert math.isnan(loss[0])  # it has no noise
    return {name: array[0].copy() for name, array in arrays.items()}


def expected_training(private, mu=0.0, rates=None, n=N, make=torch.optim.SGD, **args):
    """Plain PyTorch: each step's batch and noise, all else from its own gradients."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    start = [p.detach().clone() for p in module.parameters()]
    optimizer = make(module.parameters(), lr=0.1, **args)
    function = function_of(module)
    for i in range(private.n_steps):
        rows = draw_batch(private.batch_key(i), n, private.sampling_rate)
        x, y = torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])
        _, sums = by_hand(function, x, y, 0.5 * (1 - ROOM))
        flat = torch.cat([total.flatten() for total in sums.values()])
        key, deviation = private.noise_key(i), 0.5 * private.noise_multiplier
        noise = add_noise(np.zeros(len(flat)), key, deviation)
        flat = (flat.double() + torch.from_numpy(noise)) / (private.sampling_rate * n)
        parts = flat.split([p.numel() for p in module.parameters()])
        for parameter, anchor, part in zip(
            module.parameters(), start, parts, strict=True
        ):
            parameter.grad = part.view_as(parameter).float()
            parameter.grad += mu * (parameter.detach() - anchor)
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[i]
        optimizer.step()
    return [p.detach().numpy() for p in module.parameters()]


TRAININGS = [
    ({}, {}),
    ({"local_steps": 3}, {}),
    ({"proximal_mu": 0.7}, {"mu": 0.7}),
    (
        {"optimizer_args": {"momentum": 0.9, "weight_decay": 0.1}},
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
    ({"optimizer": "optim.Adam"}, {"make": torch.optim.Adam}),
    ({"batch_size": 64}, {}),  # more than there are samples: all of them, always
    ({"batch_size": 1, "epochs": 1}, {}),  # one in three batches is empty
    (
        {"scheduler": "linear", "scheduler_args": {"warmup": 2},
         "scheduler_every": "step", "local_steps": 4},
        {"rates": [0.05, 0.1, 0.1, 0.05]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), TRAININGS, ids=str)
def test_training_is_clipped_sums_with_noise_then_the_optimizer(build, keys, expected):
    model, weights, samples = build(**keys)
    private = steps_of(model)
    if keys.get("batch_size") == 1:
        sizes = [len(draw_batch(private.batch_key(i), N, 1 / N)) for i in range(N)]
        assert 0 in sizes
    trained = train(model, weights, samples, private)
    if "rates" in expected:
        rate_at = rate_function(model.config, 1, 4, None)
        expected = {"rates": [rate_at(i) for i in range(4)]}
    for actual, needed in zip(
        trained.values(), expected_training(private, **expected), strict=True
    ):
        np.testing.assert_allclose(actual, needed, rtol=1e-4, atol=2e-6)


def test_a_secret_decides_all_and_is_the_only_thing_that_does(build):
    model, weights, samples = build("drops")
    one = train(model, weights, samples, steps_of(model))
    again = train(*build("drops"), steps_of(model))
    assert all((one[name] == again[name]).all() for name in one)
    other = train(model, weights, samples, steps_of(model, secret=bytes(32)))
    assert all((one[name] != other[name]).any() for name in one)
    part = PartySlice(np.arange(N), 6, "q", private=steps_of(model))  # another seed
    ((_, arrays),) = model.train_each(weights, [part], samples)
    assert all((one[name] == arrays[name][0]).all() for name in one)


def test_without_its_secret_nothing_trains(build):
    model, weights, samples = build()
    with pytest.raises(RuntimeError, match="neither batches nor noise"):
        train(model, weights, samples, None)


def test_many_parties_of_an_actor_train_as_each_alone(build):
    model, weights, samples = build()
    parts = [
        PartySlice(
            np.arange(20 * k, 20 * k + 20), k, f"p{k}",
            private=steps_of(model, 20, secret=bytes([k] * 32)),
        )
        for k in range(2)
    ]  # fmt: skip
    both = [
        {name: array[0].copy() for name, array in arrays.items()}
        for _, arrays in model.train_each(weights, parts, samples)
    ]
    for part, together in zip(parts, both, strict=True):
        ((_, alone),) = model.train_each(weights, [part], samples)
        assert all((together[name] == alone[name][0]).all() for name in together)


# which way, and refusals

CHOICES = [
    ("net", {}, ByLayers, ""),
    ("drops", {}, ByLayers, ""),
    ("named", {}, ByLayers, ""),
    ("drops_and_norm", {}, ByLayers, ""),
    ("scales", {}, ByVmap, "1 is a PReLU"),
    ("rows", {}, ByLayers, ""),
    ("time_first", {}, ByVmap, "other gradients"),
    ("mixes", {}, ByVmap, "other gradients"),
    ("mixes_in_training", {}, ByVmap, "depends on the others"),
    ("twice", {}, ByVmap, "other gradients"),
    ("tied", {}, ByVmap, "shared"),
    ("transformer", {}, ByVmap, "MultiheadAttention"),
    ("branches", {}, OneByOne, "item"),
    ("rare", {}, OneByOne, "item"),  # a layer that one sample in forty needs
    ("own_loss", {"loss": "model"}, ByVmap, "mean over a batch"),
    ("words", {}, ByVmap, "0 is a Embedding"),
    ("sparse_words", {}, OneByOne, "NotImplementedError"),
    ("net", {"loss": "nets.py:smooth"}, ByVmap, "mean over a batch"),
]


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case[0])
def test_the_fastest_way_that_is_right_is_taken(build, caplog, case, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedray"), "propagate", True)  # to caplog
    name, keys, way, reason = case
    x = X
    if name == "named":
        x = {"rows": X, "extra": X[:, :1] * 0.3}
    if "words" in name:
        x = np.argsort(X)
    model, weights, samples = build(name, x=x, **keys)
    model.probe("party p", samples)
    caplog.set_level(logging.INFO, logger="fedray")
    with model.undo(weights):
        model.try_training("party p", weights, samples, [10])
    assert type(model._clipping.clip) is way
    assert reason in caplog.text
    assert "party p: gradients are clipped" in caplog.text
    is_slow = any(record.levelno == logging.WARNING for record in caplog.records)
    assert is_slow == (way is OneByOne)
    trained = train(model, weights, samples, steps_of(model))
    assert all(np.isfinite(array).all() for array in trained.values())
    assert any((trained[name] != weights[name]).any() for name in trained)


def test_recurrent_layers_of_torch_train(build):
    model, weights, samples = build("lstm")
    trained = train(model, weights, samples, steps_of(model))
    assert all((trained[name] != weights[name]).any() for name in trained)


def test_a_batch_that_goes_another_way_is_taken_one_by_one(build):
    model, weights, samples = build("sometimes", batch_size=36, epochs=1)
    trained = train(model, weights, samples, steps_of(model))
    assert type(model._clipping.clip) is ByLayers
    function = differentiable(model)
    model.load(weights)
    module = model.module
    with pytest.raises(NotCovered):
        model._clipping.clip(samples.x, samples.y, 0.5)
    assert not any(layer._forward_hooks for layer in module)
    assert OneByOne(function)(samples.x, samples.y, 0.5).norms.isfinite().all()
    assert all(np.isfinite(array).all() for array in trained.values())


REFUSALS = [
    ("norm", {}, "layer 1, BatchNorm1d.*GroupNorm"),
    ("half", {}, "parameter 0.weight is bfloat16"),
    ("instance", {}, "1.running_mean changes.*GroupNorm"),
    ("counts", {}, "most changes as the model runs"),
    ("remembers", {}, "state changes as the model runs"),
    ("detached", {}, "loss does not depend on what trains"),
    ("short_rows", {}, "layer 0, Embedding, shortens the rows.*max_norm"),
    ("unused", {}, "parameter spare has no gradient.*trainable"),
]


@pytest.mark.parametrize(("name", "keys", "message"), REFUSALS, ids=str)
def test_models_whose_samples_cannot_be_bounded_are_refused(build, name, keys, message):
    x = np.argsort(X) if name == "short_rows" else X
    model, weights, samples = build(name, x=x, **keys)
    with model.undo(weights), pytest.raises(TrialFailed, match=message) as caught:
        model.try_training("party p", weights, samples, [10])
    assert "party p" in str(caught.value)
    with pytest.raises(TrialFailed, match=message):  # an actor begun anew refuses too
        train(model, weights, samples, steps_of(model))


def test_batch_norm_is_refused_when_the_model_is_read(build):
    with pytest.raises(ConfigError, match="do not go with dp_sgd: use GroupNorm"):
        build("norm_with_statistics")


@pytest.mark.parametrize("name", ["drops", "scales"])  # by layers, by vmap
def test_dropout_is_drawn_for_each_sample(build, name):
    x, y = np.repeat(X[:1], 32, axis=0), np.repeat(Y[:1], 32)
    model, _weights, samples = build(name, x=x, y=y)
    clip = model.clipping("p", samples)
    norms = clip(samples.x, samples.y, 1.0).norms
    assert len(set(norms.tolist())) > 16  # of 2^8 masks


def test_a_trial_of_training_changes_nothing(build):
    model, weights, samples = build("drops")
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with model.undo(weights):
        (loss,) = model.try_training("p", weights, samples, [10])
    assert math.isfinite(loss)
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all()
    assert all((model.weights()[name] == weights[name]).all() for name in weights)
    assert model.module.training


def test_mapped_arrays_and_datasets_with_places_give_the_same_training(build, tmp_path):
    model, weights, samples = build()
    needed = train(model, weights, samples, steps_of(model))
    mapped = Arrays(MappedArray(X, X.dtype), MappedArray(Y, Y.dtype))
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    loader = DataLoader(dataset, batch_size=10, shuffle=True)
    for part in (mapped, wrap(dataset), wrap(loader)):
        other, _, _ = build()
        got = train(other, weights, other.ready(part), steps_of(other))
        for name in needed:
            np.testing.assert_array_equal(got[name], needed[name])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


def test_samples_that_cannot_be_drawn_by_chance_are_refused(build):
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * N, N)
    cases = [
        (wrap(Stream(), N), "one after another.*len"),
        (wrap(DataLoader(dataset, 10, sampler=weighted)), "sampler of its own"),
        (wrap(DataLoader(dataset, 10, collate_fn=lambda items: items)), "collate_fn"),
    ]
    for part, message in cases:
        model, weights, _ = build()
        refused = model.ready(part)
        with pytest.raises(TrialFailed, match=message):
            model.clipping("party p", refused)
        with pytest.raises(TrialFailed, match=message):
            model.try_training("party p", weights, refused, [10])


# before round 1

SLOW_NETS = """
import torch
from torch import nn

class Branches(nn.Sequential):
    def forward(self, x):
        out = super().forward(x.flatten(1))
        return out * 2.0 if out.sum().item() > 0 else out

def branches():
    torch.manual_seed(0)
    return Branches(nn.Linear(784, 10))

class Counts(Branches):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, x):
        self.n_calls += len(x)
        return super().forward(x)

def counts():
    return Counts(nn.Linear(784, 10))
"""


@pytest.fixture
def plan_of(settings, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_NETS)

    def make(name):
        settings.pop("model_file", None)
        config, mistakes = parse(
            settings
            | {
                "architecture": f"{tmp_path}/slow.py:{name}",
                "loss": "cross_entropy",
                "dp_sgd": {
                    "max_grad_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3
                },
                "party_dir": str(tmp_path / "party"),
            }
        )  # fmt: skip
        assert mistakes == []
        blueprint, weights = models.named("pytorch").read(config)
        handler = data.named(config.data_handler)
        return GroupPlan("clinic", range(1), config, blueprint, handler), weights

    return make


def test_a_check_says_that_samples_are_taken_one_at_a_time(plan_of):
    plan, weights = plan_of("branches")
    result = probe_party(plan, lambda: ActorLocation("n"), weights)
    slow = [note for note in result.notes if "one at a time" in note]
    assert len(slow) == 1
    assert "item()" in slow[0]


def test_joining_and_a_check_refuse_what_training_would(plan_of):
    plan, weights = plan_of("counts")
    here = lambda: ActorLocation("n")  # noqa: E731
    for join in (
        lambda: PartyGroup(plan, here).join(weights),
        lambda: probe_party(plan, here, weights),
    ):
        with pytest.raises(PartyError, match=r"clinic.*n_calls changes.*GroupNorm"):
            join()
