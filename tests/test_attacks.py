"""Attacks do what their papers say, say so aloud, and robust rules bear them."""

import logging
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from support.local_rounds import group_of

import fedray
from fedray import fusion
from fedray.config import AttackSpec, parse
from fedray.errors import ConfigError
from fedray.fusion import attacks
from fedray.messages import Origin, Update

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RNG = np.random.default_rng(0)
OTHERS = [np.array([1.0, 2.0]), np.array([3.0, 2.0]), np.array([5.0, 2.0])]


def step(kind: str, scale=None, own=(1.0, -2.0), n_hostile=1):
    spec = AttackSpec(kind, ("a",), scale)
    return attacks.attack_step(spec, np.array(own), OTHERS, n_hostile, RNG)


def test_steps_by_hand():
    assert step("sign_flip").tolist() == [-1, 2]
    assert step("sign_flip", 3).tolist() == [-3, 6]
    assert step("scaled_poison").tolist() == [10, -20]
    assert step("same_value", 0.5).tolist() == [0.5, 0.5]
    # the honest mean is (3, 2)
    np.testing.assert_allclose(step("ipm"), [-0.3, -0.2])
    np.testing.assert_allclose(step("ipm", 100), [-300, -200])
    draw = step("gaussian", 7, own=np.zeros(20_000))
    assert draw.std() == pytest.approx(7, rel=0.05)
    assert abs(draw.mean()) < 0.3


def test_alie_hides_as_many_deviations_off_as_the_paper_says():
    # by hand: n = 10, f = 3: s = 6 − 3 = 3, (7 − 3) / 7
    assert attacks.alie_deviations(10, 3) == NormalDist().inv_cdf(4 / 7)
    # the paper's own: 50 workers, 24 hostile: s = 26 − 24 = 2, (26 − 2) / 26
    assert attacks.alie_deviations(50, 24) == NormalDist().inv_cdf(24 / 26)
    z = NormalDist().inv_cdf(2 / 3)  # n = 5, f = 2: s = 3 − 2 = 1, (3 − 1) / 3
    deviation = (8 / 3) ** 0.5  # of 1, 3, 5
    np.testing.assert_allclose(step("alie", n_hostile=2), [3 - z * deviation, 2])


def test_a_hostile_majority_needs_no_hiding_and_nobody_honest_is_no_error():
    assert attacks.alie_deviations(4, 3) == 3.0
    assert (
        attacks.attack_step(AttackSpec("alie", ("a",)), OTHERS[0], [], 1, RNG)
        is OTHERS[0]
    )


def updates(*rows):
    return [Update({"w": np.array(row, "f4"), "n": np.array(2)}, 10 + i, 1,
                   Origin("run", 1, i)) for i, row in enumerate(rows)]  # fmt: skip


@pytest.mark.parametrize("name", ["fedavg", "median", "norm_clipping"])
def test_any_rule_is_attacked_after_what_honest_parties_sent(name):
    keys = {"clip_norm": 1e9} if name == "norm_clipping" else {}
    attack = AttackSpec("same_value", ("party-2",), 8.0)
    rule = attacks.RuleUnderAttack(
        fusion.named(name, **keys), attack, frozenset({2}), 0
    )
    start = {"w": np.zeros(2, "f4"), "n": np.array(0)}
    context = fusion.RoundContext(1, start, rule.init(start))
    fused = fusion.combine(rule, updates([1, 1], [3, 3], [2, 2]), context)
    expected = {
        "fedavg": (10 * 1 + 11 * 3 + 12 * 8) / 33,
        "median": 3.0,
        "norm_clipping": 4.0,
    }
    np.testing.assert_allclose(fused.weights["w"], expected[name], rtol=1e-6)


def test_labels_are_flipped_only_at_the_hostile_and_only_theirs(settings):
    del settings["parties"]
    settings |= {"num_parties": 4, "partition": {"samples_per_party": 20}}
    honest, _ = group_of(settings, range(4))
    attack = {"kind": "label_flip", "parties": ["party-1", "party-3"]}
    lying, _ = group_of(settings | {"attack": attack}, range(4))
    for party in range(4):
        (x, y), (z, flipped) = (of(group, party) for group in (honest, lying))
        assert (x == z).all()
        assert (flipped == (9 - y if party in (1, 3) else y)).all()


def of(group, party):
    ready = group.local_data
    places = ready.rows[ready.starts[party] : ready.starts[party + 1]]
    x, y = ready.train.x, ready.train.y
    return np.asarray(x[places]), np.asarray(y[places])


def test_labels_that_cannot_be_flipped_are_an_error():
    with pytest.raises(Exception, match="whole labels from 0 to 4"):
        attacks.flip_labels(np.array([0, 5]), 5)
    with pytest.raises(Exception, match="whole labels from 0 to 4"):
        attacks.flip_labels(np.array([0.5]), 5)


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ({"kind": "sign_flop", "parties": ["a"]}, "did you mean 'sign_flip'"),
        ({"kind": "alie", "parties": ["c"]}, "there is no party 'c'"),
        ({"kind": "alie", "parties": []}, "attack.parties is empty"),
        ({"kind": "alie", "parties": ["a", "a"]}, "more than once"),
        (
            {"kind": "alie", "parties": ["a"], "scale": 2},
            "attack.scale has no effect with kind: alie",
        ),
        ({"kind": "ipm", "parties": ["a"], "factor": 2}, "unknown key 'attack.factor'"),
        ({"kind": "ipm", "parties": "a"}, "attack.parties must be a list"),
        ({"kind": "ipm", "parties": [3]}, "must be text, got 3"),
        ({"parties": ["a"]}, "attack.kind is missing"),
        ("sign_flip", "attack must be a mapping"),
    ],
)
def test_an_unknown_attack_is_an_error(settings, attack, told):
    _, found = parse(settings | {"attack": attack})
    assert any(told in problem for problem in found)


def test_parties_of_a_partition_are_named_by_their_number(settings):
    del settings["parties"]
    settings |= {"partition": {}, "num_parties": 3}
    for name, is_there in {"party-2": 1, "party-3": 0, "party-02": 0, "party--1": 0,
                           "hospital": 0, "party-": 0}.items():  # fmt: skip
        _, found = parse(settings | {"attack": {"kind": "ipm", "parties": [name]}})
        assert (found == []) == bool(is_there), name


def test_norm_checks_and_attacks_do_not_go_together(settings):
    attack = {"kind": "ipm", "parties": ["a"]}
    with pytest.raises(ConfigError, match="max_update_norm does not go with attack"):
        fedray.run(settings, attack=attack, max_update_norm=1.0)


@pytest.mark.usefixtures("cluster")
def test_an_attack_run_is_marked_in_log_notes_report_and_config(
    settings, digits, tmp_path, caplog
):
    caplog.set_level(logging.WARNING, "fedray")
    settings["parties"].append({"name": "c", "data": digits("c", 40, skip=104)})
    settings |= {"attack": {"kind": "same_value", "parties": ["b"], "scale": 50.0}}
    seen = []
    mean = fedray.run(settings, run_dir=tmp_path / "mean", watch=seen.append, rounds=1)
    assert abs(mean.weights()["1.bias"]).min() > 5  # 64 of 144 samples say 50
    rule = {"fusion_algorithm": "median"}
    median = fedray.run(settings | rule, run_dir=tmp_path / "median", rounds=1)
    assert abs(median.weights()["1.bias"]).max() < 1
    loud = "ATTACK RUN: same_value by 1 of 3 parties (b)"
    assert loud in caplog.text
    assert any(loud in note for progress in seen for note in progress.notes)
    assert loud in mean.report.read_text()
    assert "same_value" in (tmp_path / "mean" / "config.yaml").read_text()
    again = fedray.run(settings, run_dir=tmp_path / "mean", rounds=2, resume=True)
    assert len(again.history) == 2


@pytest.mark.slow
def test_the_mean_fails_where_robust_rules_hold(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    robust = __import__("robust")
    (tmp_path / "net.py").write_text(robust.NET)

    def accuracy(rule, attack):
        net = f"{tmp_path}/net.py:mlp"
        return robust.accuracy(robust.settings(rule, attack, 8, net))

    mean = accuracy("fedavg", "none")
    assert mean > 0.8
    for attack in ("IPM 100", "same value", "poison ×10"):
        assert accuracy("fedavg", attack) < mean - 0.3
    for rule in ("median", "multi_krum", "geometric_median", "bulyan"):
        alone = accuracy(rule, "none")
        for attack in ("sign flip", "IPM 100", "same value"):
            assert accuracy(rule, attack) > alone - 0.03, (rule, attack)
    sys.modules.pop("robust")
