"""Scheduled rates, clipped gradients, mixed precision, steps: in PyTorch training.

Held to plain PyTorch, and stacked parties to the same parties one by one. No Ray.
"""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fedray.config import FederationConfig, rate_function
from fedray.models.base import PartySlice
from fedray.models.pytorch.batch_schedule import schedule_batches
from fedray.models.pytorch.model import TorchModel
from fedray.models.pytorch.model_files import read
from fedray.models.torch_steps import FIRST_SCALE, Precision, clip_each
from fedray.nested import Arrays

pytestmark = pytest.mark.usefixtures("one_thread")
NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

def net32():
    return net().float()

def drops():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)).double()
"""
SIZES = (11, 4, 25, 7, 1, 16, 9, 12, 3)
X = np.random.default_rng(0).standard_normal((sum(SIZES), 6))
Y = np.random.default_rng(1).integers(0, 3, sum(SIZES))


@pytest.fixture
def built(tmp_path):
    (tmp_path / "nets.py").write_text(NET)

    def build(name="net", **keys):
        keys = {"batch_size": 4, "learning_rate": 0.1, "epochs": 1} | keys
        if keys.get("local_steps"):
            del keys["epochs"]
        config = FederationConfig(architecture=f"{tmp_path}/nets.py:{name}", **keys)
        blueprint, weights = read(config)
        weights = {name: array.copy() for name, array in weights.items()}
        return TorchModel(blueprint, config, "cpu"), weights

    return build


def parts_of(round=1, sizes=SIZES, **keys):
    ends = np.cumsum(sizes)
    return [
        PartySlice(np.arange(e - n, e), 100 * round + k, f"p{k}", round, **keys)
        for k, (n, e) in enumerate(zip(sizes, ends, strict=True))
    ]


def train(model, weights, parts):
    samples = model.ready(Arrays(X, Y))
    losses, ends = [], []
    for some, stack in model.train_each(weights, parts, samples):
        losses += some.tolist()
        for i in range(len(some)):
            ends.append({name: array[i].copy() for name, array in stack.items()})
    return losses, ends


def by_hand(part, rates, n_steps, clip=None, mu=0.0):
    """Plain PyTorch: the same batches, a rate for each step."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    start = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    order = np.random.default_rng(part.seed)
    step, losses = 0, []
    while step < n_steps:
        rows = part.rows[order.permutation(len(part.rows))]
        for batch in np.split(rows, range(4, len(rows), 4)):
            if step == n_steps:
                break
            optimizer.param_groups[0]["lr"] = rates(step)
            optimizer.zero_grad()
            x, y = torch.from_numpy(X[batch]), torch.from_numpy(Y[batch])
            loss = nn.functional.cross_entropy(module(x), y)
            loss.backward()
            for parameter, anchor in zip(module.parameters(), start, strict=True):
                parameter.grad += mu * (parameter.detach() - anchor)
            if clip:
                clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            losses.append((loss.item(), len(batch)))
            step += 1
    n_pass = -(-len(part.rows) // 4)
    last = losses[-n_pass:]
    loss = sum(value * n for value, n in last) / sum(n for _, n in last)
    return loss, [p.detach().numpy() for p in module.parameters()]


KEYS = [
    {"local_steps": 1},
    {"local_steps": 7},
    {"local_steps": 5, "scheduler": "cosine", "scheduler_every": "step"},
    {"scheduler": "exponential", "scheduler_args": {"gamma": 0.9}, "epochs": 2},
    {"scheduler": "exponential", "scheduler_args": {"gamma": 0.9}, "epochs": 2,
     "scheduler_every": "step"},
    {"gradient_clip_norm": 0.5},
    {"gradient_clip_norm": 0.5, "proximal_mu": 0.4, "epochs": 3},
    {"scheduler": "linear", "scheduler_args": {"warmup": 2}, "local_steps": 6,
     "gradient_clip_norm": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("stacked", ["true", "false"])
@pytest.mark.parametrize("keys", KEYS)
def test_training_is_that_of_plain_torch(built, keys, stacked):
    model, weights = built(rounds=8, stacked=stacked, **keys)
    for round in (1, 3):
        parts = parts_of(round)
        losses, ends = train(model, weights, parts)
        assert (model._stack is not None) == (stacked == "true")
        for part, loss, end in zip(parts, losses, ends, strict=True):
            n = keys.get("local_steps") or keys.get("epochs", 1) * -(
                -len(part.rows) // 4
            )
            rates = rate_function(model.config, round, n)
            clip, mu = keys.get("gradient_clip_norm"), keys.get("proximal_mu", 0.0)
            expected_loss, expected = by_hand(part, rates, n_steps=n, clip=clip, mu=mu)
            assert loss == pytest.approx(expected_loss, rel=1e-6)
            for array, wanted in zip(end.values(), expected, strict=True):
                np.testing.assert_allclose(array, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "args"),
    [("SGD", {"momentum": 0.9, "weight_decay": 0.1}), ("Adam", {}),
     ("AdamW", {"weight_decay": 0.3}), ("Adagrad", {"lr_decay": 0.1}),
     ("Adadelta", {}), ("Adamax", {}), ("NAdam", {}), ("RAdam", {}),
     ("RMSprop", {"momentum": 0.5, "centered": True})],
)  # fmt: skip
def test_parties_of_unlike_rates_train_stacked_as_alone(built, optimizer, args):
    keys = {
        "optimizer": optimizer, "optimizer_args": args, "rounds": 4, "epochs": 3,
        "scheduler": "cosine", "scheduler_every": "step",
    }  # fmt: skip
    parts = parts_of(3)
    stacked, weights = built(stacked="true", **keys)
    losses, ends = train(stacked, weights, parts)
    alone, _ = built(stacked="false", **keys)
    other_losses, others = train(alone, weights, parts)
    assert stacked._stack is not None
    assert alone._stack is None
    assert losses == pytest.approx(other_losses, rel=1e-6)
    for end, other in zip(ends, others, strict=True):
        for name, array in end.items():
            np.testing.assert_allclose(array, other[name], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("stacked", ["true", "false"])
@pytest.mark.parametrize("name", ["net", "drops"])
def test_a_pass_of_local_steps_is_an_epoch_bit_for_bit(built, name, stacked):
    parts = parts_of(sizes=(12, 12, 12))
    by_epochs, weights = built(name, epochs=2, stacked=stacked)
    by_steps, _ = built(name, local_steps=6, stacked=stacked)
    losses, ends = train(by_epochs, weights, parts)
    others, other_ends = train(by_steps, weights, parts)
    assert losses == pytest.approx(others, rel=1e-12)
    for end, other in zip(ends, other_ends, strict=True):
        for key, array in end.items():
            np.testing.assert_array_equal(array, other[key])


def test_steps_of_stacks_go_through_few_samples_again():
    config = FederationConfig(
        model_file="m.pt", local_steps=5, batch_size=2, learning_rate=1.0
    ).resolve({})
    parts = [PartySlice(np.array([7, 8, 9]), 1), PartySlice(np.arange(20), 2)]
    schedule = schedule_batches(parts, config, has_masks=False)
    assert schedule.positions.tolist() == [1, 0]
    assert schedule.counts[:, 0].tolist() == [2] * 5
    # by hand: 2 steps a pass, of 2 and of 1 sample
    assert schedule.counts[:, 1].tolist() == [2, 1, 2, 1, 2]
    assert schedule.shares[:, 0].tolist() == [0.2] * 5
    assert schedule.shares[:, 1].tolist() == [0, 0, 0, 1 / 3, 2 / 3]
    order = np.random.default_rng(1)
    expected = [*parts[0].rows[order.permutation(3)]] * 1
    assert schedule.places[0, 1].tolist() == expected[:2]
    assert schedule.places[1, 1].tolist() == [expected[2]] * 2


def test_a_rate_that_the_aggregator_decided_on_is_taken(built):
    model, weights = built(scheduler="plateau", rounds=3)
    parts = parts_of(2, learning_rate=0.025)
    _, ends = train(model, weights, parts)
    _, expected = by_hand(parts[0], lambda step: 0.025, n_steps=3)
    for array, wanted in zip(ends[0].values(), expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-9)


def test_each_party_of_a_stack_is_clipped_by_its_own_norm():
    own = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])]
    stacked = nn.Parameter(torch.zeros(2, 2))
    stacked.grad = torch.stack(own)
    clip_each({"w": stacked}, 1.0)
    for gradient, clipped in zip(own, stacked.grad, strict=True):
        alone = nn.Parameter(torch.zeros(2))
        alone.grad = gradient.clone()
        clip_grad_norm_([alone], 1.0)
        assert clipped.tolist() == pytest.approx(alone.grad.tolist(), rel=1e-7)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_rounds_the_arithmetic_and_not_the_weights(
    built, precision, caplog
):
    caplog.set_level(logging.INFO)
    exact, weights = built("net32", epochs=3)
    mixed, _ = built("net32", epochs=3, mixed_precision=precision)
    parts = parts_of()
    _, ends = train(exact, weights, parts)
    _, others = train(mixed, weights, parts)
    assert f"mixed_precision: {precision} trains one party at a time" in caplog.text
    assert mixed._stack is None
    _, again = train(mixed, weights, parts)
    for end, other, repeated, start in zip(
        ends, others, again, [weights] * len(parts), strict=True
    ):
        for name, array in other.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, repeated[name])
            assert not np.array_equal(array, end[name])
            change = np.abs(end[name] - start[name]).max()
            assert np.abs(array - end[name]).max() < 0.05 * change + 1e-6


def test_a_step_of_float16_whose_gradient_overflows_is_left_out():
    config = FederationConfig(model_file="m.pt", mixed_precision="float16")
    precision = Precision(config.resolve({"learning_rate": 1.0}), "cpu")
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float16))
    precision.backward((parameter * 2.0).sum())
    assert precision.unscale([parameter])
    assert parameter.grad.tolist() == [2.0, 2.0]
    parameter.grad = None
    precision.backward((parameter * 300.0).sum())  # 300 · 1,024 is beyond float16
    assert not precision.unscale([parameter])
    assert precision.scale == FIRST_SCALE / 2


def test_evaluation_is_exact_under_mixed_precision(built):
    exact, weights = built("net32")
    mixed, _ = built("net32", mixed_precision="bfloat16")
    scores = []
    for model in (exact, mixed):
        model.load(weights)
        scores.append(model.evaluate(model.ready(Arrays(X, Y))))
    assert scores[0].loss == scores[1].loss
