"""fedray against a plain PyTorch loop that knows only its seeds. No Ray."""

import itertools

import numpy as np
import pytest
import torch
from support.comparison import assert_close
from support.local_rounds import federation, fedray_rounds, mlp_of, train
from torch import nn

from fedray import models, policy


def plain_rounds(settings: dict, make, module: nn.Module, weigh) -> dict:
    """Federated averaging in plain PyTorch: McMahan et al. 2017, Algorithm 1."""
    names = [party["name"] for party in settings["parties"]]
    loss = getattr(nn.functional, settings["loss"])
    fraction, seed = settings.get("party_fraction", 1.0), settings.get("seed", 0)
    start = {k: v.clone() for k, v in module.state_dict().items()}
    for round in range(1, settings["rounds"] + 1):
        ends, shares = [], []
        n_chosen = policy.count_chosen(len(names), fraction)
        everyone = np.arange(len(names))
        for i in policy.select_random(everyone, n_chosen, seed, round):
            name = names[i]
            path = settings["parties"][names.index(name)]["data"]
            file = np.load(path)
            x, y = torch.tensor(file["x_train"]), torch.tensor(file["y_train"])
            module.load_state_dict(start)
            module.train()
            optimizer = make(module.parameters())
            torch.manual_seed(policy.seed_for(seed, round, name))
            order = np.random.default_rng(policy.seed_for(seed, round, name))
            for _ in range(settings["epochs"]):
                rows = torch.tensor(order.permutation(len(x)))
                for batch in rows.split(settings["batch_size"]):
                    optimizer.zero_grad()
                    loss(module(x[batch]), y[batch]).backward()
                    optimizer.step()
            ends.append({k: v.clone() for k, v in module.state_dict().items()})
            shares.append(weigh(len(x)))
        start = {
            k: sum(s * e[k].double() for s, e in zip(shares, ends, strict=True))
            .div(sum(shares)).to(v.dtype) for k, v in start.items()
        }  # fmt: skip
    return {k: v.numpy() for k, v in start.items()}


@pytest.mark.parametrize(
    ("changes", "weigh"),
    [
        ({"fusion_algorithm": "fedavg"}, lambda n: n),
        ({"fusion_algorithm": "iter_avg"}, lambda n: 1),
        ({"fusion_algorithm": "fedavg", "party_fraction": 0.5, "seed": 7}, lambda n: n),
    ],
    ids=["fedavg, unequal sizes", "iter_avg", "half of the parties"],
)
def test_three_rounds_of_an_mlp_agree_with_plain_pytorch(
    settings, digits, changes, weigh
):
    more = [("c", 24), ("d", 90)]
    parties = [{"name": n, "data": digits(n, size, skip=300)} for n, size in more]
    parties = settings["parties"] + parties
    settings |= {"parties": parties, "rounds": 3, "epochs": 2, **changes}

    def make(parameters):
        return torch.optim.SGD(parameters, lr=settings["learning_rate"])

    theirs = plain_rounds(settings, make, mlp_of(settings), weigh)
    assert_close(fedray_rounds(settings), theirs, 1e-6)


def test_one_fusion_of_the_tutorial_cnn_agrees_with_plain_pytorch(settings, digits):
    from pathlib import Path

    jobs = Path(__file__).parent.parent / "jobs"
    settings |= {
        "architecture": f"{jobs / 'mnist_cnn.py'}:cnn",
        "optimizer": "optim.Adadelta",
        "learning_rate": 1.0,
        "loss": "nll_loss",
        "rounds": 1,
        "batch_size": 64,
        "parties": [{"name": n, "data": digits(n, 64)} for n in ("a", "a2")],
    }
    module = models.named("pytorch")
    torch.manual_seed(0)
    from fedray import user_code

    module = user_code.run(user_code.read(settings["architecture"], "architecture"))()

    def make(parameters):
        return torch.optim.Adadelta(parameters, lr=1.0)

    theirs = plain_rounds(settings, make, module, lambda n: n)
    assert_close(fedray_rounds(settings), theirs, 1e-6)


def test_one_party_is_local_training(settings):
    settings |= {"parties": settings["parties"][:1], "num_parties": 1, "rounds": 1}
    weights, parties, _ = federation(settings)
    alone = train(parties["a"], 1, weights).weights
    alone = {name: array.copy() for name, array in alone.items()}
    fused = fedray_rounds(settings)
    assert all((fused[name] == alone[name]).all() for name in alone)


def test_fedprox_without_pull_is_fedavg_and_with_it_stays_nearer(settings):
    plain = fedray_rounds(settings)
    zero = fedray_rounds(settings | {"proximal_mu": 0.0})
    assert all((plain[name] == zero[name]).all() for name in plain)
    weights, _, _ = federation(settings)
    near = fedray_rounds(settings | {"proximal_mu": 5.0, "rounds": 1})
    far = fedray_rounds(settings | {"rounds": 1})
    moved = [
        sum(float(((w[n] - weights[n]) ** 2).sum()) for n in w) for w in (near, far)
    ]
    assert 0 < moved[0] < 0.8 * moved[1]


def test_fedprox_by_hand_on_one_step(settings):
    """The first step starts at the anchor, where the pull is zero; the second not."""
    settings |= {"parties": settings["parties"][:1], "num_parties": 1, "rounds": 1,
                 "batch_size": 20, "proximal_mu": 2.0}  # fmt: skip
    module, mu, lr = mlp_of(settings), 2.0, 0.1
    file = np.load(settings["parties"][0]["data"])
    x, y = torch.tensor(file["x_train"]), torch.tensor(file["y_train"])
    start = [p.detach().clone() for p in module.parameters()]
    order = np.random.default_rng(policy.seed_for(0, 1, "a")).permutation(40)
    for rows in torch.tensor(order).split(20):
        pull = sum(
            ((p - s) ** 2).sum()
            for p, s in zip(module.parameters(), start, strict=True)
        )
        loss = nn.functional.cross_entropy(module(x[rows]), y[rows]) + mu / 2 * pull
        grads = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for p, g in zip(module.parameters(), grads, strict=True):
                p -= lr * g
    theirs = {k: v.numpy() for k, v in module.state_dict().items()}
    assert_close(fedray_rounds(settings), theirs, 1e-6)


def test_server_sgd_with_learning_rate_one_is_fedavg(settings):
    changes = {"fusion_algorithm": "fedavgm", "server_momentum": 0.0}
    assert_close(fedray_rounds(settings | changes), fedray_rounds(settings), 1e-6)


def test_full_batch_fedavg_is_centralised_sgd(settings):
    settings |= {"batch_size": 1000, "rounds": 3}
    module = mlp_of(settings)
    files = [np.load(party["data"]) for party in settings["parties"]]
    x = torch.tensor(np.concatenate([file["x_train"] for file in files]))
    y = torch.tensor(np.concatenate([file["y_train"] for file in files]))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    theirs = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    assert_close(fedray_rounds(settings), theirs, 1e-5)


def test_training_a_round_twice_gives_the_same_bits(settings):
    weights, parties, _ = federation(settings)
    once = {k: v.copy() for k, v in train(parties["a"], 2, weights).weights.items()}
    train(parties["a"], 1, weights)
    again = train(parties["a"], 2, weights).weights
    assert all((once[name] == again[name]).all() for name in once)
    pairs = itertools.pairwise([once, train(parties["a"], 3, weights).weights])
    assert any((a[n] != b[n]).any() for a, b in pairs for n in a)
