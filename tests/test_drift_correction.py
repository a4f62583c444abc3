"""FedNova and SCAFFOLD against their papers and an oracle in numpy. No Ray."""

import numpy as np
import pytest
import torch
from support.comparison import assert_close
from support.local_rounds import fedray_rounds, fedray_rounds_and_state, group_of

from fedray import fusion, policy
from fedray.fusion import scaffold
from fedray.messages import Origin, Update
from fedray.models.rate_sum import RateCounter
from fedray.weights import schema

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = fusion.RATE_SUM
SIZES, EPOCHS, BATCH, RATE, ROUNDS = (40, 24, 5), 2, 8, 0.05, 4
LINEAR = """
from torch import nn


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


def rates_of(n_steps, rate=0.5, scales_velocity=False, mu=0.0, **args):
    class Config:
        optimizer_args, proximal_mu = args, mu

    counter = RateCounter(Config(), np.zeros(1), scales_velocity)
    for _ in range(n_steps):
        counter.advance(rate)
    return float(counter.totals[0])


# Wang et al. 2020, section 3: ‖a‖₁ of the local solvers
def test_plain_steps_count_one_each():
    assert rates_of(7) == 7 * 0.5


@pytest.mark.parametrize("keras", [False, True])
def test_momentum_counts_as_the_paper_has_it(keras):
    rho, tau = 0.9, 7
    norm = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    assert rates_of(tau, 0.5, keras, momentum=rho) == pytest.approx(0.5 * norm)


def test_the_pull_of_fedprox_counts_as_the_paper_has_it():
    alpha, tau = 0.5 * 0.1, 7  # learning rate · mu
    norm = (1 - (1 - alpha) ** tau) / alpha
    assert rates_of(tau, mu=0.1) == pytest.approx(0.5 * norm)


@pytest.mark.parametrize(
    "args",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True},
     {"momentum": 0.9, "dampening": 0.3}, {"weight_decay": 0.0}],
)  # fmt: skip
@pytest.mark.parametrize("mu", [0.0, 0.2])
def test_rates_are_what_pytorch_moves_a_weight_by_under_a_gradient_of_one(args, mu):
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, **args)
    for _ in range(9):
        weight.grad = 1 + mu * weight.detach()
        optimizer.step()
    assert rates_of(9, 0.1, mu=mu, **args) == pytest.approx(-weight.item())


@pytest.mark.parametrize("nesterov", [False, True])
def test_rates_are_what_keras_moves_a_weight_by_while_they_fall(nesterov):
    keras = pytest.importorskip("fedray.models.keras.backend").keras
    weight = keras.Variable(np.zeros((), np.float32))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)

    class Config:
        optimizer_args = {"momentum": 0.9, "nesterov": nesterov}
        proximal_mu = 0.0

    counter = RateCounter(Config(), np.zeros(1), scales_velocity=True)
    for rate in (0.1, 0.1, 0.05, 0.02):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.ones(())], [weight])
        counter.advance(rate)
    assert float(counter.totals[0]) == pytest.approx(-float(weight), rel=1e-5)


def test_fednova_by_hand():
    # from w = 1 two parties, 1 and 3 samples, 2 and 4 steps at a rate of 0.5
    rule, w = fusion.named("fednova"), {"w": np.array([1.0])}
    updates = [
        Update({"w": np.array([0.0]), RATES: np.array(1.0)}, 1),
        Update({"w": np.array([-3.0]), RATES: np.array(2.0)}, 3),
    ]
    terms = [rule.to_additive(update, w, {}) for update in updates]
    new, _ = rule.step(w, fusion.combine(rule, terms), {})
    # steps by rate -1 and -2, their mean by samples -1.75; of the rates 1 and 2: 1.75
    assert new["w"] == pytest.approx([1 - 1.75 * 1.75])


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_combining_in_stages_is_combining_at_once(name):
    rule = fusion.named(name, parameters={"w"})
    rng, w = np.random.default_rng(0), {"w": np.ones(5, "f4"), "mean": np.ones(2, "f4")}
    state = rule.init(w)
    updates = []
    for place in range(6):
        weights = {k: a + rng.normal(size=a.shape).astype("f4") for k, a in w.items()}
        weights |= {
            key: rng.uniform(0.1, 1, form.shape).astype(form.dtype)[()]
            for key, form in rule.extra_schema(schema(w)).items()
        }
        weights = {key: np.asarray(array) for key, array in weights.items()}
        origin = Origin("run", 3, place)
        update = Update(weights, int(rng.integers(1, 9)), 1, origin)
        updates.append(rule.to_additive(update, w, state))
    whole = fusion.combine(rule, updates)
    parts = [fusion.combine(rule, part) for part in (updates[:4], updates[4:])]
    staged = fusion.combine(rule, parts)
    assert_close(staged.weights, whole.weights, 1e-5)
    assert (staged.n_samples, staged.n_parties) == (whole.n_samples, 6)
    rule.n_parties = 12
    new, state = rule.step(w, whole, state)
    assert new.keys() == w.keys()
    if name == "scaffold":
        changes = [u.weights["w/control"] for u in updates]
        expected = np.sum(changes, axis=0) / 12
        np.testing.assert_allclose(state["control"]["w"], expected, rtol=1e-5)
        assert state["counted"]["rounds"].tolist() == [3] * 6
        places = np.array([2, 9])
        assert scaffold.rounds_counted(state, places).tolist() == [3, 0]


# the same federation in numpy: softmax regression, each party's batches in its order


def softmax_gradient(w, b, x, y):
    z = x @ w.T + b
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([p.T @ x / len(y), p.mean(0)[:, None]], axis=1)


def oracle(parties, w, algorithm, momentum=0.0, mu=0.0):
    """Weights (10, 785) after all rounds in float64, and c.

    parties : name -> (x, y).
    """
    n, own = np.array([len(y) for _, y in parties.values()]), dict.fromkeys(parties, 0)
    c = 0
    for round in range(1, ROUNDS + 1):
        steps, rates, changes = [], [], []
        for name, (x, y) in parties.items():
            draw = np.random.default_rng(policy.seed_for(0, round, name))
            local, velocity, rate, v = w, 0, 0.0, 0.0
            for _ in range(EPOCHS):
                order = draw.permutation(len(y))
                for rows in np.split(order, range(BATCH, len(y), BATCH)):
                    g = softmax_gradient(local[:, :-1], local[:, -1], x[rows], y[rows])
                    g = g + c - own[name] + mu * (local - w)
                    velocity = momentum * velocity + g
                    v = momentum * v + 1 - mu * rate
                    local, rate = local - RATE * velocity, rate + RATE * v
            steps.append(local - w)
            rates.append(rate)
            changes.append((w - local) / rate - c)
            if algorithm == "scaffold":
                own[name] = own[name] + changes[-1]
        p = n / n.sum() if algorithm == "fednova" else np.full(len(n), 1 / len(n))
        scale = p @ rates / rates if algorithm == "fednova" else np.ones(len(n))
        w = w + sum(a * b * step for a, b, step in zip(p, scale, steps, strict=True))
        if algorithm == "scaffold":
            c = c + np.mean(changes, axis=0)
    return w, c


@pytest.fixture
def three(settings, digits, tmp_path):
    """Three parties of 40, 24 and 5 samples: 10, 6 and 2 steps a round."""
    (tmp_path / "linear.py").write_text(LINEAR)
    paths = [digits(f"p{n}", n, skip=50 * i) for i, n in enumerate(SIZES)]
    return settings | {
        "architecture": f"{tmp_path}/linear.py:linear",
        "parties": [{"name": f"p{i}", "data": path} for i, path in enumerate(paths)],
        "num_parties": 3, "rounds": ROUNDS, "epochs": EPOCHS, "batch_size": BATCH,
        "learning_rate": RATE, "party_dir": f"{tmp_path}/parties",
    }  # fmt: skip


def samples_of(settings):
    files = {party["name"]: np.load(party["data"]) for party in settings["parties"]}
    return {
        name: (file["x_train"].reshape(-1, 784).astype("f8"), file["y_train"])
        for name, file in files.items()
    }


def joined(weights):
    weight, bias = weights["1.weight"], weights["1.bias"]
    return np.concatenate([weight, bias[:, None]], axis=1).astype("f8")


@pytest.mark.parametrize(
    ("algorithm", "momentum", "mu"),
    [("fednova", 0.0, 0.0), ("fednova", 0.9, 0.0), ("fednova", 0.5, 0.1),
     ("scaffold", 0.0, 0.0)],
)  # fmt: skip
def test_three_parties_over_four_rounds_are_what_numpy_gives(
    three, algorithm, momentum, mu
):
    three |= {"fusion_algorithm": algorithm, "proximal_mu": mu}
    three["optimizer_args"] = {"momentum": momentum} if momentum else {}
    _, start = group_of(three, range(1))
    expected, c = oracle(samples_of(three), joined(start), algorithm, momentum, mu)
    weights, state = fedray_rounds_and_state(three)
    np.testing.assert_allclose(joined(weights), expected, atol=2e-6)
    if algorithm == "scaffold":
        np.testing.assert_allclose(joined(state["control"]), c, atol=2e-5)
        assert state["counted"]["rounds"].tolist() == [4, 4, 4]


def test_fednova_with_equal_steps_is_fedavg(three):
    for party in three["parties"]:
        party["data"] = three["parties"][0]["data"]
    averaged = fedray_rounds(three)
    assert_close(fedray_rounds(three | {"fusion_algorithm": "fednova"}), averaged, 1e-6)


def test_scaffold_with_one_party_is_sgd_to_the_bit(three):
    three |= {"parties": three["parties"][:1], "num_parties": 1}
    averaged = fedray_rounds(three)
    assert_close(fedray_rounds(three | {"fusion_algorithm": "scaffold"}), averaged, 0)


@pytest.mark.parametrize("algorithm", ["fednova", "scaffold"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_stack_gives_what_training_one_by_one_gives(three, algorithm, momentum):
    if algorithm == "scaffold" and momentum:
        return
    del three["parties"]
    three |= {"fusion_algorithm": algorithm, "num_parties": 20, "proximal_mu": 0.0}
    three |= {"optimizer_args": {"momentum": momentum}, "batch_size": 5}
    three["partition"] = {"samples_per_party": 12, "size_alpha": 1.0, "replace": True}
    results = []
    for stacked in ("false", "true"):
        own = three | {"stacked": stacked, "party_dir": three["party_dir"] + stacked}
        group, weights = group_of(own, range(20))
        rule, state = group.rule, group.rule.init(weights)
        rule.n_parties = 20
        for round in (1, 2, 3):
            _, update = group.train(round, np.arange(20), weights, state)
            weights, state = rule.step(weights, update, state)
        results.append((weights, update))
    (alone, one), (together, other) = results
    assert_close(together, alone, 1e-6)
    assert one.weights.keys() == other.weights.keys()


def test_a_party_goes_on_from_the_round_that_was_counted(three, tmp_path):
    three["fusion_algorithm"] = "scaffold"
    group, weights = group_of(three, range(1))
    rule, own = group.rule, np.array([0])
    rule.n_parties = 3

    def advance(round, weights, state):
        _, update = group.train(round, own, weights, state)
        return rule.step(weights, rule.to_additive(update, weights, state), state)

    first, counted = advance(1, weights, rule.init(weights))
    expected, state = advance(2, first, counted)
    for _ in range(3):  # trained again, whatever became of the results before
        again, _ = advance(2, first, counted)
        assert_close(again, expected, 0)
    # rounds 3 to 8 are trained and not counted: each goes on from the c_i of round 2
    for round in range(3, 9):
        report, _ = group.train(round, own, expected, state)
        assert not report.notes
    _, missed = group.train(9, own, expected, state)
    fresh, _ = group_of(three | {"party_dir": f"{tmp_path}/other"}, range(1))
    report, lost = fresh.train(9, own, expected, state)
    assert report.notes == {
        0: "began its control variate anew in round 9: none of round 2 is on its node"
    }
    difference = lost.weights["1.weight"] - missed.weights["1.weight"]
    assert np.abs(difference).max() > 1e-4


@pytest.mark.parametrize("rates", [-1.0, np.nan, np.inf, 1e-300, None])
def test_an_update_without_a_sum_of_rates_is_refused(rates):
    rule, w = fusion.named("fednova"), {"w": np.ones(3, "f4")}
    needed = schema(w) | rule.extra_schema(schema(w))
    extra = {} if rates is None else {RATES: np.array(rates)}
    assert fusion.rejection_reason(Update(w | extra, 5), needed)
    for fine in (0.0, 0.5):  # nothing has moved where all rates were 0
        assert (
            fusion.rejection_reason(Update(w | {RATES: np.array(fine)}, 5), needed)
            is None
        )
