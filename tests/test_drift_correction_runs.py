"""FedNova and SCAFFOLD in whole runs: kills, late and lost updates, bad configs."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import ray
from support.comparison import assert_close
from support.local_rounds import fedray_rounds

import fedray
from fedray.config import parse
from fedray.errors import ConfigError
from fedray.federation import join, leave

RULES = ["fednova", "scaffold"]


@pytest.fixture
def unequal(settings, tmp_path):
    """Two parties that take 3 and 4 steps in a pass."""
    return settings | {"rounds": 4, "batch_size": 16, "party_dir": f"{tmp_path}/own"}


def problems_of(settings):
    return parse(settings)[1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("keys", "named"),
    [({"optimizer": "optim.Adam"}, "got optimizer: optim.Adam"),
     ({"optimizer": "optim.RMSprop"}, "got optimizer: optim.RMSprop"),
     ({"model_type": "sklearn", "architecture": "SGDClassifier"}, "got sklearn"),
     ({"model_type": "keras", "optimizer_args": {"clipnorm": 1.0}}, "clipnorm")],
)  # fmt: skip
def test_what_a_rule_is_not_defined_for_is_named(unequal, rule, keys, named):
    problems = problems_of(unequal | {"fusion_algorithm": rule} | keys)
    (problem,) = [one for one in problems if named in one]
    assert f"fusion_algorithm: {rule}" in problem


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"optimizer_args": {"momentum": 0.9}}, "optimizer_args.momentum: 0.9"),
     ({"optimizer_args": {"momentum": 0.9, "nesterov": True}}, "nesterov"),
     ({"proximal_mu": 0.1}, "proximal_mu: 0.1")],
)  # fmt: skip
def test_scaffold_is_for_plain_sgd(unequal, keys, named):
    assert named in "\n".join(
        problems_of(unequal | keys | {"fusion_algorithm": "scaffold"})
    )
    assert problems_of(unequal | keys | {"fusion_algorithm": "fednova"}) == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "keys",
    [{"optimizer": "SGD"}, {"optimizer": "torch.optim.SGD"},
     {"optimizer_args": {"weight_decay": 1e-3, "foreach": False}},
     {"optimizer_args": {"momentum": 0.0, "nesterov": False}},
     {"server_learning_rate": 0.5}, {"aggregation": "adaptive"},
     {"gradient_clip_norm": 1.0}, {"local_steps": 3}],
)  # fmt: skip
def test_valid_configs_are_taken(unequal, rule, keys):
    unequal.pop("epochs", None)
    assert problems_of(unequal | {"fusion_algorithm": rule} | keys) == []


def test_fednova_refuses_a_pull_beyond_the_global_weights(unequal):
    unequal |= {"fusion_algorithm": "fednova", "learning_rate": 0.5}
    assert problems_of(unequal | {"proximal_mu": 1.9}) == []
    assert "below 1" in "".join(problems_of(unequal | {"proximal_mu": 2.0}))
    clipped = {"proximal_mu": 0.1, "gradient_clip_norm": 1.0}
    assert "gradient_clip_norm" in "".join(problems_of(unequal | clipped))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("rule", RULES)
def test_a_run_with_kills_and_a_resume_gives_the_bits_of_plain_rounds(
    unequal, rule, tmp_path
):
    unequal |= {"fusion_algorithm": rule, "rounds": 12, "epochs": 20}
    expected = fedray_rounds(unequal | {"party_dir": f"{tmp_path}/plain"})
    killed = set()

    def kill(progress):
        if progress.round and "party" not in killed:
            killed.add("party")
            _kill("party:run:a")
        elif progress.round and "aggregator" not in killed:
            killed.add("aggregator")
            _kill("aggregator:run")

    fedray.run(unequal, run_dir=tmp_path / "run", watch=kill, rounds=9)
    assert killed == {"party", "aggregator"}
    result = fedray.run(unequal, run_dir=tmp_path / "run", resume=True)
    assert_close(result.weights(), expected, 0)
    assert not any(line.note for report in result.history for line in report.parties)


def _kill(name):
    actor = ray.get_actor(name)
    pid = ray.get(actor.__ray_call__.remote(lambda self: __import__("os").getpid()))
    __import__("os").kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("cluster")
def test_a_party_without_its_folder_begins_anew_and_its_line_says_so(unequal, tmp_path):
    unequal["fusion_algorithm"] = "scaffold"
    fedray.run(unequal, run_dir=tmp_path / "run", rounds=2)
    shutil.rmtree(unequal["party_dir"])
    result = fedray.run(unequal, run_dir=tmp_path / "run", resume=True)
    notes = {line.name: line.note for line in result.history[2].parties}
    for name in "ab":
        assert notes[name].startswith("began its control variate anew in round 3")
    assert not any(line.note for line in result.history[3].parties)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", RULES)
def test_many_parties_of_few_actors_are_the_same_federation(
    unequal, rule, wire_dtype, tmp_path
):
    del unequal["parties"]
    unequal |= {"fusion_algorithm": rule, "num_parties": 6, "rounds": 3}
    unequal |= {"wire_dtype": wire_dtype, "party_fraction": 0.5, "stacked": "false"}
    unequal["partition"] = {"samples_per_party": 20, "size_alpha": 0.5}
    weights = []
    for n in (1, 3):
        own = unequal | {"parties_per_actor": n, "party_dir": f"{tmp_path}/own{n}"}
        result = fedray.run(own, run_dir=tmp_path / f"run{n}")
        weights.append(result.weights())
    tolerance = 1e-5 if wire_dtype == "float32" else 5e-3
    assert_close(weights[0], weights[1], tolerance)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("rule", RULES)
def test_keras_trains_by_both_rules(unequal, rule, tmp_path):
    pytest.importorskip("fedray.models.keras.backend")
    source = tmp_path / "keras_model.py"
    source.write_text(
        "import keras\n\n\ndef net():\n    return keras.Sequential([\n"
        "        keras.layers.Input((28, 28, 1)), keras.layers.Flatten(),\n"
        "        keras.layers.Dense(8), keras.layers.BatchNormalization(),\n"
        "        keras.layers.Dense(10, activation='softmax')])\n"
    )
    unequal |= {"model_type": "keras", "architecture": f"{source}:net", "rounds": 3}
    unequal |= {"data_handler": "mnist_keras", "fusion_algorithm": rule}
    unequal["loss"] = "sparse_categorical_crossentropy"
    expected = fedray_rounds(unequal | {"party_dir": f"{tmp_path}/plain"})
    result = fedray.run(unequal, run_dir=tmp_path / "run")
    assert_close(result.weights(), expected, 0)
    assert result.history[-1].loss < result.history[0].loss


@pytest.mark.usefixtures("cluster")
def test_a_check_tells_the_bytes_that_travel_and_that_stay(unequal, tmp_path, capsys):
    from fedray.federation.check import check

    unequal["fusion_algorithm"] = "scaffold"
    found = check(parse(unequal)[0])
    assert found.problems == []
    n_bytes = 12_730 * 4
    (note,) = [note for note in found.notes if "control variates" in note]
    assert f"{n_bytes / 1000:.0f}" in note or "50.9 kB" in note
    result = fedray.run(unequal, run_dir=tmp_path / "run", rounds=2)
    moved = result.history[1].bytes_moved
    assert abs(found.bytes_per_round - moved) <= 2 * 8  # a number of each party
    adam = unequal | {"optimizer": "optim.Adam"}
    with pytest.raises(ConfigError, match="plain SGD"):
        fedray.run(adam, run_dir=tmp_path / "adam")
    assert not Path(tmp_path / "adam" / "history.jsonl").exists()
    assert np.isfinite(result.loss)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("rule", RULES)
def test_parties_that_train_apart_fuse_all_their_steps(unequal, rule, tmp_path):
    # c and c_i of the last fusion correct all rounds until the next
    unequal |= {"aggregation": "adaptive", "drift_threshold": 1e9, "rounds": 5}
    unequal |= {"max_rounds_apart": 2, "fusion_algorithm": rule, "learning_rate": 0.05}
    whole = fedray.run(unequal, run_dir=tmp_path / "whole")
    fused = [report.aggregated for report in whole.history]
    assert fused[0]
    assert not all(fused)
    killed = []

    def kill(progress):
        if progress.round >= 2 and not killed:
            killed.append(progress.round)
            _kill("party:run:a")

    own = unequal | {"party_dir": f"{tmp_path}/other"}
    fedray.run(own, run_dir=tmp_path / "run", watch=kill, rounds=3)
    result = fedray.run(own, run_dir=tmp_path / "run", resume=True)
    assert killed
    assert_close(result.weights(), whole.weights(), 0)


@pytest.mark.usefixtures("cluster")
def test_a_refused_party_goes_on_from_what_was_counted(unequal, tmp_path):
    # of two runs that differ in rounds only that were refused: the same party's c_i
    unequal |= {"fusion_algorithm": "scaffold", "max_refused": 9, "quorum": 0.5}
    result = fedray.run(unequal, run_dir=tmp_path / "run", rounds=1)
    drifts = {line.name: line.drift for line in result.history[0].parties}
    limit = {"max_update_norm": sum(drifts.values()) / 2}
    refused = fedray.run(unequal | limit, run_dir=tmp_path / "refused", rounds=3)
    outcomes = {line.name: line.outcome for line in refused.history[0].parties}
    assert sorted(text.partition(":")[0] for text in outcomes.values()) == [
        "fused", "refused",
    ]  # fmt: skip
    assert not any(line.note for report in refused.history for line in report.parties)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("rule", RULES)
def test_groups_attacks_frozen_tensors_and_fractions_go_with_both(
    unequal, rule, digits, tmp_path
):
    unequal["parties"].append({"name": "c", "data": digits("c", 24, skip=150)})
    unequal |= {"fusion_algorithm": rule, "rounds": 2}
    fields = [{"fields": {"site": s}} for s in ("x", "x", "y")]
    grouped = [p | f for p, f in zip(unequal["parties"], fields, strict=True)]
    variants = {
        "groups": {"parties": grouped, "groups": {"by": "site"}},
        "attack": {"attack": {"kind": "sign_flip", "parties": ["c"]}},
        "frozen": {"trainable": ["3.*"]},
        "fraction": {"party_fraction": 0.67, "rounds": 3},
        "personal": {"personal": ["3.*"], "personal_epochs": 1},
        "ditto": {"ditto_lambda": 0.1},
    }
    for name, keys in variants.items():
        own = unequal | keys | {"party_dir": f"{tmp_path}/own-{name}"}
        result = fedray.run(own, run_dir=tmp_path / name)
        assert len(result.history) >= 2, name
        outcomes = {p.outcome for report in result.history for p in report.parties}
        assert outcomes == {"fused"}, name
        assert not any(p.note for report in result.history for p in report.parties)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("rule", RULES)
def test_a_party_joins_and_another_leaves(unequal, rule, digits, tmp_path):
    unequal |= {"fusion_algorithm": rule, "rounds": 8, "epochs": 20}
    new = {"name": "c", "data": digits("c", 24, skip=150)}
    done = []

    def change(progress):
        if progress.round and not done:
            done.append("join")
            join("run", new)
            leave("run", "a")

    result = fedray.run(unequal, run_dir=tmp_path / "run", watch=change)
    assert done
    assert [name for report in result.history for name in report.joined] == ["c"]
    assert result.history[-1].fused == 2
    again = fedray.run(
        tmp_path / "run" / "config.yaml", run_dir=tmp_path / "again",
        party_dir=f"{tmp_path}/again-own",
    )  # fmt: skip
    assert_close(result.weights(), again.weights(), 0)
