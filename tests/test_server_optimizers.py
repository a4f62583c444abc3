"""Server optimizers against two steps worked out by hand. No Ray."""

import numpy as np
import pytest

from fedray import fusion
from fedray.messages import Update


def steps(rule, start: float, means: list[float]) -> list[float]:
    weights, path = {"w": np.array([start])}, []
    state = rule.init(weights)
    for mean in means:
        combined = Update({"w": np.array([mean])}, 1)
        weights, state = rule.step(weights, combined, state)
        path.append(float(weights["w"][0]))
    return path


def test_fedavgm_by_hand():
    # m1 = 1 - 0.5 = 0.5, w1 = 0.5; m2 = 0.9·0.5 + 0.5 - 0.4 = 0.55, w2 = -0.05
    rule = fusion.named("fedavgm", learning_rate=1.0, momentum=0.9)
    assert steps(rule, 1.0, [0.5, 0.4]) == pytest.approx([0.5, -0.05])


def test_server_sgd_with_learning_rate_one_is_fedavg():
    rule = fusion.named("fedavgm", learning_rate=1.0, momentum=0.0)
    assert steps(rule, 1.0, [0.25, -3.0]) == pytest.approx([0.25, -3.0])


# Algorithm 2 with β1 = 0.5, β2 = 0.75, η = 0.1, τ = 0.1, from w = 1, means 3 then 2:
# Δ1 = 2, m1 = 0.5·0 + 0.5·2 = 1, v0 = τ² = 0.01
V1 = {
    "fedadagrad": 0.01 + 4,
    "fedadam": 0.75 * 0.01 + 0.25 * 4,
    "fedyogi": 0.01 + 0.25 * 4,  # sign(0.01 - 4) = -1
}


@pytest.mark.parametrize("name", V1)
def test_adaptive_rules_by_hand(name):
    rule = fusion.named(name, learning_rate=0.1, betas=(0.5, 0.75), tau=0.1)
    w1 = 1 + 0.1 * 1 / (V1[name] ** 0.5 + 0.1)
    d2 = 2 - w1
    m2 = 0.5 * 1 + 0.5 * d2
    v2 = {
        "fedadagrad": V1[name] + d2**2,
        "fedadam": 0.75 * V1[name] + 0.25 * d2**2,
        "fedyogi": V1[name] - 0.25 * d2**2 * np.sign(V1[name] - d2**2),
    }[name]
    w2 = w1 + 0.1 * m2 / (v2**0.5 + 0.1)
    assert steps(rule, 1.0, [3.0, 2.0]) == pytest.approx([w1, w2])


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_buffers_take_the_mean_and_only_parameters_move(name):
    rule = fusion.named(name, parameters={"w"})
    weights = {"w": np.ones(1, "f4"), "running_mean": np.ones(1, "f4")}
    weights["n"] = np.array(3)
    combined = Update({"w": weights["w"] * 2, "running_mean": np.full(1, 7.0, "f4"),
                       "n": np.array(5.0)}, 1)  # fmt: skip
    state = rule.init(weights)
    new, state = rule.step(weights, combined, state)
    assert new["running_mean"] == 7
    assert new["n"] == 5
    assert set(state["momentum"]) == {"w"}
    assert new["w"].dtype == np.float32


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_a_step_writes_into_nothing_it_was_given(name):
    rule = fusion.named(name)
    weights = {"w": np.ones(2)}
    state = rule.init(weights)
    given = [weights["w"], *(part["w"] for part in state.values())]
    copies = [array.copy() for array in given]
    rule.step(weights, Update({"w": np.zeros(2)}, 1), state)
    for array, copy in zip(given, copies, strict=True):
        assert (array == copy).all()
