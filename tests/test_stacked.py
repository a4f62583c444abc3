"""Parties trained stacked against the same parties trained one by one. No Ray.

One by one is held to plain PyTorch here and in test_reference. In single precision an
activation near zero may fall on either side of ReLU's kink, whichever way batches are
summed; names ending in 64 compare in double precision, where only mistakes differ.
"""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from fedray.config import FederationConfig, RunConfig
from fedray.data import MnistPytorch
from fedray.models.base import PartySlice
from fedray.models.pytorch.batch_schedule import schedule_batches
from fedray.models.pytorch.losses import LOSSES
from fedray.models.pytorch.model import TorchModel
from fedray.models.pytorch.model_files import read
from fedray.models.pytorch.stacked import ELEMENTWISE, Stack
from fedray.nested import Arrays

pytestmark = [
    pytest.mark.filterwarnings("ignore:dropout2d. Received a 2-D input"),
    pytest.mark.usefixtures("one_thread"),
]
SIZES = (40, 13, 1, 27, 20, 64, 40)

ARCHITECTURES = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
    )

def cnn(p=0.0, q=0.0):
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 1), nn.ReLU(),
        nn.MaxPool2d(2, 2), nn.Dropout2d(p), nn.Flatten(), nn.Linear(9216, 128),
        nn.ReLU(), nn.Dropout2d(q), nn.Linear(128, 10), nn.LogSoftmax(dim=1),
    )

def tutorial():
    return cnn(0.25, 0.5)

def cnn64():
    return cnn().double()

def tutorial64():
    return tutorial().double()

def mlp64():
    return mlp().double()

def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )

def huge():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 11_000), nn.Linear(11_000, 10))

class Shifts(nn.Sequential):
    # moves a frozen tensor of its own each time that it trains

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.frozen.add_(1.0)
        return super().forward(x)

def shifts():
    module = Shifts(nn.Flatten(), nn.Linear(784, 10))
    module.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
    return module

def drops():
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(784, 16), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(16, 10),
    )

def norm():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 10),
    )

def frozen():
    model = mlp()
    model[1].weight.requires_grad_(False)
    return model

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(784, 784, False), nn.Linear(784, 784)
        self.second.weight = self.first.weight
        self.last = nn.Linear(784, 10)

    def forward(self, x):
        return self.last(self.second(self.first(x.flatten(1)).tanh()))

def tied():
    return Tied()

class Shared(nn.Module):
    # takes a layer's weight besides calling the layer
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(784, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x.flatten(1)).tanh()
        return self.last(x) + 0.5 * nn.functional.linear(x, self.last.weight)

def shared():
    return Shared()

class Mixes(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x - 0.01 * x.mean(0)

def mixes():
    return Mixes(*mlp())

class Rolls(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x + 0.01 * nn.functional.dropout(x, 0.5, self.training)

def rolls():
    return Rolls(*mlp())

class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = mlp()
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, x):
        self.n_calls += 1
        return self.inside(x)

def counts():
    return Counts()

class Floats(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = mlp()

    def forward(self, x):
        return self.inside(x.float())

def floats():
    return Floats()

def values64():
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Sigmoid()
    ).double()
"""


@pytest.fixture(scope="module")
def digits():
    (x, y), _ = MnistPytorch("mnist").get_data()
    return x[:600], y[:600]


@pytest.fixture
def built(tmp_path):
    """Make a model and its first weights: ``built("mlp", "true", epochs=2)``."""
    file = tmp_path / "architectures.py"
    file.write_text(ARCHITECTURES)

    def build(name: str, stacked: str, **settings):
        plain = {"learning_rate": 0.1, "batch_size": 20, "optimizer": "optim.SGD"}
        config = FederationConfig(
            architecture=f"{file}:{name}", stacked=stacked, **plain | settings
        )
        blueprint, weights = read(config)
        return TorchModel(blueprint, config, "cpu"), weights

    return build


@pytest.fixture
def stacks(monkeypatch):
    """Sizes of the stacks that were trained, the trial's two parties among them."""
    sizes, train = [], Stack.train

    def noted(self, parts, x, y):
        sizes.append(len(parts))
        return train(self, parts, x, y)

    monkeypatch.setattr(Stack, "train", noted)
    return sizes


def parts_of(sizes, n_rows=600, seed=0):
    draw = np.random.default_rng(seed)
    return [
        PartySlice(draw.choice(n_rows, n), 1000 * seed + i) for i, n in enumerate(sizes)
    ]


def ends_of(model, weights, parts, samples) -> list:
    """Every party's loss and a copy of its weights."""
    ready = model.ready(Arrays(*samples))
    return [
        (loss, {name: np.array(a[i, ...]) for name, a in stack.items()})
        for losses, stack in model.train_each(weights, parts, ready)
        for i, loss in enumerate(losses.tolist())
    ]


def three_rounds(model, weights, sizes, samples) -> list:
    """Ends of every round, each from the mean of the one before."""
    rounds = []
    for round in range(3):
        parts = parts_of(sizes, len(samples[0]), seed=round)
        rounds += ends_of(model, weights, parts, samples)
        ends = [own for _, own in rounds[-len(sizes) :]]
        weights = {
            name: np.average([own[name] for own in ends], axis=0, weights=sizes)
            .astype(weights[name].dtype) for name in ends[0]
        }  # fmt: skip
    return rounds


def assert_alike(found: list, expected: list, tolerance: float = 1e-4) -> None:
    assert len(found) == len(expected) > 1
    for (loss, own), (expected_loss, expected_own) in zip(found, expected, strict=True):
        assert list(own) == list(expected_own)
        # one by one adds losses up in single precision, whatever the model's is
        assert loss == pytest.approx(expected_loss, abs=tolerance, rel=1e-6)
        for name, array in own.items():
            assert array.dtype == expected_own[name].dtype
            np.testing.assert_allclose(
                array, expected_own[name], rtol=0, atol=tolerance, err_msg=name
            )


def compare(built, name, settings, samples, sizes=SIZES) -> None:
    stacked, weights = built(name, "true", **settings)
    alone, _ = built(name, "false", **settings)
    found = three_rounds(stacked, weights, sizes, samples)
    expected = three_rounds(alone, weights, sizes, samples)
    assert_alike(found, expected, 1e-7 if name.endswith("64") else 1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer_args": {}},
        {"optimizer_args": {"momentum": 0.9, "weight_decay": 1e-3}},
        {"optimizer_args": {"momentum": 0.9, "nesterov": True}, "learning_rate": 0.02},
        {"optimizer": "optim.Adam", "learning_rate": 1e-3},
        {"optimizer": "optim.AdamW", "learning_rate": 1e-3},
        {"optimizer": "optim.Adadelta", "learning_rate": 1.0},
        {"proximal_mu": 0.5},
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw", "adadelta", "fedprox"],
)
def test_stacked_mlp_training_equals_single_training_over_three_rounds(
    built, digits, stacks, settings
):
    compare(built, "mlp", {"epochs": 2, **settings}, digits)
    assert stacks == [2, 7, 7, 7]  # the trial, then three rounds


def test_stacked_training_leaves_out_the_same_last_batches(built, digits, stacks):
    settings = {"epochs": 2, "drop_last": True, "batch_size": 20}
    compare(built, "mlp64", settings, digits, sizes=(40, 39, 20, 21, 25, 64, 40))
    assert stacks == [2, 7, 7, 7]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cnn", {"learning_rate": 0.01}),
        ("cnn64", {"learning_rate": 1.0, "optimizer": "optim.Adadelta"}),
    ],
)
def test_stacked_tutorial_cnn_training_equals_single_training(
    built, digits, stacks, name, settings
):
    settings = {"loss": "nll_loss", "batch_size": 8, **settings}
    compare(built, name, settings, digits, sizes=(8, 11, 3))
    assert stacks == [2, 3, 3, 3]


@pytest.mark.parametrize("optimizer", sorted(ELEMENTWISE))
def test_every_elementwise_optimizer_gives_the_same_stacked(
    built, digits, stacks, optimizer
):
    settings = {"optimizer": optimizer, "learning_rate": 0.002, "epochs": 2}
    compare(built, "mlp64", settings, digits, sizes=(25, 40, 3))
    assert stacks == [2, 3, 3, 3]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_averaged_over_a_partys_own_samples(built, stacks, loss):
    draw = np.random.default_rng(0)
    x = draw.random((100, 6), np.float32)
    wide = loss in ("cross_entropy", "nll_loss", "multi_margin_loss")
    y = draw.integers(3, size=100) if wide else draw.random((100, 3), np.float32)
    compare(built, "values64", {"loss": loss, "epochs": 3}, (x, y), sizes=(50, 7, 23))
    assert stacks == [2, 3, 3, 3]


@pytest.mark.parametrize("weight_decay", [0, 0.01])
@pytest.mark.parametrize("name", ["frozen", "tied", "floats", "small_cnn"])
def test_frozen_tied_and_small_convolutional_models_train_stacked(
    built, digits, stacks, name, weight_decay
):
    args = {"weight_decay": weight_decay}  # without it a step writes no gradients
    settings = {"optimizer_args": args, "learning_rate": 0.02}
    compare(built, name, settings, digits, sizes=(25, 40, 3))
    assert stacks[-3:] == [3, 3, 3]


def test_a_weight_used_outside_its_layer_trains_stacked_under_vmap(
    built, digits, stacks
):
    compare(built, "shared", {}, digits, sizes=(25, 40, 3))
    assert stacks == [2, 2, 3, 3, 3]  # tried in one batch, then under vmap


def test_frozen_parameters_do_not_change_in_stacked_training(built, digits):
    model, weights = built("frozen", "true")
    for _, own in ends_of(model, weights, parts_of((9, 20)), digits):
        assert np.array_equal(own["1.weight"], weights["1.weight"])
        assert not np.array_equal(own["1.bias"], weights["1.bias"])


@pytest.mark.parametrize("name", ["drops", "tutorial64"])
def test_dropout_on_a_cpu_is_the_same_stacked(built, digits, stacks, name):
    settings = {"loss": "nll_loss" if name == "tutorial64" else "cross_entropy"}
    settings |= {"batch_size": 8, "learning_rate": 0.05, "epochs": 2}
    compare(built, name, settings, digits, sizes=(8, 11, 3))
    assert stacks == [2, 3, 3, 3]


def test_dropout_masks_depend_only_on_a_partys_seed(built, digits):
    model, weights = built("drops", "true", epochs=2)
    a, b, c, d = parts_of((25, 40, 3, 60))
    again = PartySlice(a.rows, 99)
    first = ends_of(model, weights, [a, b, c], digits)
    second = ends_of(model, weights, [d, c, a, again], digits)
    assert_alike([first[0], first[2]], [second[2], second[1]], tolerance=1e-6)
    moved = second[3][1]["2.weight"] - second[2][1]["2.weight"]
    assert np.abs(moved).max() > 1e-3  # other seed, other masks


def assert_not_stacked(built, name, settings, samples, wish="true") -> None:
    """Bit for bit what one by one gives."""
    model, weights = built(name, wish, **settings)
    alone, _ = built(name, "false", **settings)
    parts = parts_of((25, 40, 3))
    for _ in range(2):
        found = ends_of(model, weights, parts, samples)
        assert_alike(found, ends_of(alone, weights, parts, samples), tolerance=0)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (("norm", "SGD"), "BatchNorm1d"),
        (("mixes", "SGD"), "otherwise than trained alone"),
        (("counts", "SGD"), "n_calls changes"),
        (("rolls", "SGD"), "randomness"),
        (("shifts", "SGD"), "frozen changes in training"),
        (("huge", "SGD"), "a model of 33 MiB gains nothing"),
        (("mlp", "Adafactor"), "Adafactor"),
    ],
)
def test_unstackable_models_train_singly_and_log_the_reason_once(
    built, digits, caplog, case, why
):
    name, optimizer = case
    with caplog.at_level(logging.INFO, "fedray"):
        assert_not_stacked(built, name, {"optimizer": optimizer}, digits)
    (line,) = [r for r in caplog.records if r.name == "fedray"]
    assert line.levelname == "WARNING"
    assert why in line.getMessage()


@pytest.mark.parametrize(("name", "why"), [("drops", "random"), ("cnn", "slower")])
def test_stacked_auto_skips_dropout_and_large_convolutions(
    built, digits, caplog, name, why
):
    with caplog.at_level(logging.INFO, "fedray"):
        assert_not_stacked(built, name, {"loss": "nll_loss"}, digits, wish="auto")
    (line,) = [r for r in caplog.records if r.name == "fedray"]
    assert line.levelname == "INFO"
    assert why in line.getMessage()


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "cnn"])
def test_stacked_auto_stacks_faster_models_and_false_stacks_none(
    built, digits, stacks, name
):
    parts = parts_of((1, 2))
    for wish in ("false", "auto"):
        model, weights = built(name, wish, batch_size=2)
        ends_of(model, weights, parts[:1], digits)  # one party needs no stack
        assert stacks == []
        ends_of(model, weights, parts, digits)
        expected = [2] if name == "cnn" else [2, 2]
        assert stacks == ([] if wish == "false" else expected)


def test_a_short_batch_is_padded_with_its_last_sample():
    parts = [
        PartySlice(np.array([7, 8, 9]), 1),
        PartySlice(np.array([1, 2, 3, 4, 5]), 2),
    ]
    config = RunConfig(
        model_file="m.pt", epochs=2, batch_size=2, learning_rate=1.0, optimizer="SGD",
        loss="nll_loss",
    )  # fmt: skip
    schedule = schedule_batches(parts, config, has_masks=False)
    assert schedule.positions.tolist() == [1, 0]  # the larger one stands first
    # by hand: 3 steps a pass of 2, 2, 1 samples; 2 steps a pass of 2, 1, done after 4
    assert schedule.counts[:, 0].tolist() == [2, 2, 1, 2, 2, 1]
    assert schedule.counts[:, 1].tolist() == [2, 1, 2, 1, 0, 0]
    assert schedule.shares[:, 0].tolist() == [0, 0, 0, 2 / 5, 2 / 5, 1 / 5]
    assert schedule.shares[:, 1].tolist() == [0, 0, 2 / 3, 1 / 3, 0, 0]
    for slot, (rows, seed, *_) in enumerate(reversed(parts)):
        draw, places = np.random.default_rng(seed), schedule.places[:, slot]
        for passed in np.split(places[: 2 * (3 - slot)], 2):
            order = rows[draw.permutation(len(rows))]
            assert passed.reshape(-1).tolist() == [*order, order[-1]]


def test_training_does_not_write_into_the_weights_it_gets(built, digits):
    model, weights = built("mlp", "true", proximal_mu=0.1)
    before = {name: a.copy() for name, a in weights.items()}
    for array in weights.values():
        array.flags.writeable = False
    assert len(ends_of(model, weights, parts_of(SIZES), digits)) == len(SIZES)
    for name, array in weights.items():
        assert np.array_equal(array, before[name])


def test_the_model_may_be_loaded_between_stacks(built, digits):
    model, weights = built("mlp", "true")
    alone, _ = built("mlp", "false")
    parts = parts_of([5] * 600)  # several stacks
    samples = model.ready(Arrays(*digits))
    zeros = {name: np.zeros_like(a) for name, a in weights.items()}
    found = []
    for losses, stack in model.train_each(weights, parts, samples):
        for i, loss in enumerate(losses):
            found.append((loss, {n: a[i, ...].copy() for n, a in stack.items()}))
        model.load(zeros)
    assert_alike(found, ends_of(alone, weights, parts, digits))


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_stacks_are_even_ordered_and_split_by_counts_only(built, digits, in_one_batch):
    model, _ = built("mlp", "true")
    samples = model.ready(Arrays(*digits))
    x, y = samples.x, samples.y
    parts = parts_of([5] * 600)
    cuts = []
    for _ in range(2):
        stack = Stack(model.module, model.config, model.loss.each, in_one_batch)
        cuts.append(stack.split(parts, x))
        stack.train(parts[:3], x, y)
    assert [[id(p) for p in s] for s in cuts[0]] == [
        [id(p) for p in s] for s in cuts[1]
    ]
    sizes = {len(stacked) for stacked in cuts[0]}
    assert len(cuts[0]) > 1
    assert max(sizes) - min(sizes) <= 1
    assert [id(p) for stacked in cuts[0] for p in stacked] == [id(p) for p in parts]


def test_single_training_equals_a_plain_pytorch_loop_bit_for_bit(built, digits):
    model, weights = built("drops", "false", epochs=2, optimizer="Adam")
    samples = model.ready(Arrays(*digits))
    x, y = samples.x, samples.y
    rows = np.random.default_rng(5).choice(600, 50, replace=False)
    model.load(weights)
    loss = model.train(samples, PartySlice(rows, seed=7))
    module = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(784, 16), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(16, 10),
    )  # fmt: skip
    module.load_state_dict({n: torch.tensor(a) for n, a in weights.items()})
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    torch.manual_seed(7)
    order, own_x, own_y = np.random.default_rng(7), x[rows], y[rows]
    for _ in range(2):
        total = 0.0
        for batch in torch.from_numpy(order.permutation(50)).split(20):
            optimizer.zero_grad()
            own = nn.functional.cross_entropy(module(own_x[batch]), own_y[batch])
            own.backward()
            optimizer.step()
            total += own.item() * len(batch)
    assert loss == pytest.approx(total / 50, rel=1e-6)
    for name, tensor in module.state_dict().items():
        assert np.array_equal(model.weights()[name], tensor.numpy()), name
