"""Config keys of privacy; each key says with which mechanisms it may be given."""

from typing import Any

import pytest
from support.pairs import values_of

from fedray.checkpoint.run_folder import RunFolder
from fedray.checkpoint.run_lock import _check_folder, write_config
from fedray.config import MEMBER_KEYS, FederationConfig, Key, keys_of, parse
from fedray.config.declaration import MECHANISMS, SAFE, unmet_values
from fedray.config.privacy_rules import privacy_problems
from fedray.errors import RunFolderError

N_PARTIES = 10
GROUND = {"model_file": "m.pt", "num_parties": N_PARTIES, "partition": {}}
CENTRAL = {"mechanism": "central", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0}
DISTRIBUTED = CENTRAL | {"mechanism": "distributed"}
DP_SGD = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-4}
NAMED = [{"name": f"p{i}", "data": f"/{i}.npz"} for i in range(N_PARTIES)]
MASKED = {"secure_aggregation": True, "parties": NAMED, "partition": None}
WITH: dict[str, dict[str, Any]] = {
    "central": {"privacy": CENTRAL},
    "distributed": {"privacy": DISTRIBUTED, **MASKED},
    "dp_sgd": {"dp_sgd": DP_SGD},
    "secure_aggregation": {"clip_norm": 1.0, **MASKED},
}
OTHER: dict[str, Any] = {  # a value other than the default, where types give none
    "fusion_algorithm": "krum",
    "model_type": "doc2vec",
    "parties": [{"name": "a", "data": "/a.npz"}],
    "partition": {"scheme": "dirichlet"},
    "groups": {"by": "similarity"},
    "early_stopping": {"patience": 1},
    "target": {"metric": "loss", "value": 0.5},
    "keep_best": {"metric": "loss"},
    "attack": {"kind": "alie", "parties": ["party-1"]},
    "doc2vec": {"window": 4},
    "privacy": {"mechanism": "none"},
    "dp_sgd": DP_SGD,
    "row_momentum": 0.5,
    "virtual_clock": {"sigma": 1.0},
    "edges": {"min": 2},
}
# who adds a key here says that with it nothing leaves that a guarantee does not cover
ALWAYS = {
    "model_file", "architecture", "trainable", "server_learning_rate",
    "server_momentum", "server_beta2", "server_tau", "rounds", "epochs",
    "local_steps", "learning_rate", "scheduler", "scheduler_args",
    "scheduler_every", "optimizer", "optimizer_args", "batch_size", "loss",
    "loss_args", "proximal_mu", "stacked", "data_handler", "data_args", "parties",
    "num_parties", "test_data", "party_dir", "quorum", "deadline_s",
    "round_timeout_s", "max_training_s", "max_memory", "evaluate_every", "privacy",
    "dp_sgd", "secure_aggregation", "min_sum", "name", "seed", "party_cpus",
    "parties_per_actor", "placement_timeout_s", "wire_dtype", "history_parties",
    "keep_checkpoints", "track",
}  # fmt: skip
SOMETIMES = {
    "fusion_algorithm", "model_type", "drop_last", "gradient_clip_norm",
    "mixed_precision", "partition", "party_fraction", "over_select", "late", "metrics",
    "early_stopping", "target", "keep_best", "clip_norm", "n_hostile", "n_selected",
    "bucketing", "max_update_norm", "max_refused", "edges",
}  # fmt: skip
KEYS = keys_of(FederationConfig)


def other_value(key: Key) -> Any:
    """A value that is not the key's default."""
    if key.name in OTHER:
        return OTHER[key.name]
    if key.type is str or key.json_type == "object":
        return {"a": 1} if key.json_type == "object" else "text"
    return next(v for v in values_of(key) if v != key.default)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("name", sorted(KEYS.keys() - {"selection"}))  # has one value
def test_every_key_is_refused_unless_it_says_that_the_guarantee_holds(name, mechanism):
    key = KEYS[name]
    config = FederationConfig(**WITH[mechanism])
    given = WITH[mechanism].get(name) is not None
    if not given:
        config = config.with_changes(**{name: other_value(key)})
    problems = [
        problem
        for problem in privacy_problems(config, ())
        if problem.startswith((f"{name}:", f"{name}.", f"{name} "))
        and "does not go with" in problem
    ]
    private, value = key.setting.private, getattr(config, name)
    may_be = private.allows(mechanism, value)
    may_be &= not unmet_values(private.needs, config)
    if name == "groups":
        may_be = False  # this value: similarity
    if name == "party_fraction" and mechanism == "central":
        may_be = False  # without sampling
    assert bool(problems) == (not may_be), problems
    for problem in problems:
        assert len(problem.partition(": ")[2]) > 20, "it says why"


def test_who_declares_that_a_key_keeps_the_guarantees_has_thought_about_it():
    declared = {name: key.setting.private for name, key in KEYS.items()}
    groups = {"groups"}  # of which one key is limited
    assert {name for name, own in declared.items() if own == SAFE} == ALWAYS | groups
    some = {name for name, own in declared.items() if own.values and own != SAFE}
    assert some == SOMETIMES


def test_a_key_that_says_nothing_is_refused():
    from fedray.config.declaration import setting

    silent = setting("a new key").private
    assert not any(silent.allows(mechanism, 1) for mechanism in MECHANISMS)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_config_of_each_mechanism_alone_is_right(mechanism):
    assert parse(GROUND | WITH[mechanism])[1] == []


@pytest.mark.parametrize("given", [{}, {"epsilon": 8.0}, {"sampling": "all"}], ids=str)
def test_a_mechanism_has_to_be_named(given):
    _, problems = parse(GROUND | {"privacy": given})
    assert "privacy.mechanism is missing: central, distributed or none" in problems


def test_without_a_mechanism_nothing_is_refused():
    config, problems = parse(GROUND | {"privacy": {"mechanism": "none"}})
    assert problems == []
    assert config.privacy_mechanisms == ()
    adaptive = GROUND | {"aggregation": "adaptive", "normalize": "federated"}
    assert parse(adaptive)[1] == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"over_select": 2.0, "party_fraction": 0.5}, "over_select: 2.0 does not go"),
        ({"aggregation": "adaptive"}, "sketches of the parties' updates"),
        ({"groups": {"by": "similarity"}}, "groups.by: similarity does not go"),
        ({"fusion_algorithm": "best_model"}, "fusion_algorithm: best_model does not"),
        ({"fusion_algorithm": "median"}, "take one of fedavg"),
        ({"fusion_algorithm": "scaffold"}, "fusion_algorithm: scaffold does not"),
        ({"fusion_algorithm": "fednova"}, "fusion_algorithm: fednova does not"),
        ({"model_type": "sklearn", "architecture": "SGDClassifier"}, "model_type: skl"),
        ({"party_fraction": 0.5}, "take privacy.sampling: cyclic"),
        ({"normalize": "federated"}, "scale with constants of your own"),
        ({"compare": "local"}, "compare: local does not go"),
        ({"personal": ["*bias"]}, "personal does not go"),
        ({"ditto_lambda": 1.0}, "ditto_lambda: 1.0 does not go"),
        ({"finetune_epochs": 1}, "finetune_epochs: 1 does not go"),
        ({"early_stopping": {}}, "give test_data, or leave it out"),
        ({"target": {"metric": "loss", "value": 1}}, "target does not go"),
        ({"keep_best": "loss"}, "keep_best does not go"),
        ({"metrics": ["f1_macro"]}, "metrics does not go"),
        ({"max_refused": 1}, "max_refused: 1 does not go"),
        ({"max_update_norm": 1.0}, "max_update_norm: 1.0 does not go"),
        ({"clip_norm": 1.0}, "privacy.clip_norm is what clips"),
        ({"scheduler": "ReduceLROnPlateau"}, "give test_data, or take another"),
        ({"secure_aggregation": True}, "take privacy.mechanism: distributed"),
        ({"privacy": CENTRAL | {"delta": 0.1}}, "must be below 1 / 10 parties"),
        ({"privacy": CENTRAL | {"delta": None}}, "privacy.delta is missing"),
        ({"privacy": CENTRAL | {"epsilon": None}}, "privacy.epsilon is missing"),
        ({"privacy": CENTRAL | {"clip_norm": None}}, "privacy.clip_norm is missing"),
        ({"privacy": CENTRAL | {"clip_norm": -1}}, "a number from 1e-30"),
        ({"privacy": CENTRAL | {"clip_norm": True}}, "a number from 1e-30"),
        ({"privacy": CENTRAL | {"clip_norm": "big"}}, "a number from 1e-30"),
        ({"privacy": CENTRAL | {"epsilon": 0}}, "privacy.epsilon must be above 0"),
        ({"privacy": CENTRAL | {"sampling": "poisson"}}, "needs party_fraction bel"),
        ({"privacy": CENTRAL | {"band": 4}}, "privacy.band has no effect"),
        ({"privacy": CENTRAL | {"clip_start": 4.0}}, "privacy.clip_start has no"),
        ({"privacy": DISTRIBUTED}, "needs secure_aggregation: true"),
    ],
    ids=str,
)  # fmt: skip
def test_what_breaks_central_noise_is_an_error_with_the_reason(changes, part):
    _, problems = parse(GROUND | {"privacy": CENTRAL} | changes)
    assert any(part in problem for problem in problems), problems


@pytest.mark.parametrize("sampling", ["cyclic", "poisson"])
def test_sampled_rounds_go_with_a_fraction_and_without_late_updates(sampling):
    sampled = GROUND | {
        "party_fraction": 0.5,
        "privacy": CENTRAL | {"sampling": sampling},
    }
    assert parse(sampled)[1] == []
    (problem,) = parse(sampled | {"late": "next_round"})[1]
    assert "late: next_round does not go with privacy.sampling" in problem
    everyone = GROUND | {"privacy": CENTRAL, "late": "next_round"}
    assert parse(everyone)[1] == []


def test_with_test_data_of_the_aggregator_training_may_go_by_scores():
    goals = {"early_stopping": {}, "keep_best": "loss", "metrics": ["f1_macro"]}
    config = GROUND | {"privacy": CENTRAL, "test_data": "/test.npz"} | goals
    assert parse(config)[1] == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"clip_norm": None}, "clip_norm is missing: secure_aggregation"),
        ({"clip_norm": 1e-40}, "give one from 1e-30 to 1e+30"),
        ({"clip_norm": 1e35}, "give one from 1e-30 to 1e+30"),
        ({"fusion_algorithm": "krum"}, "fusion_algorithm: krum does not go"),
        ({"late": "next_round"}, "an update is masked for the sum of its own round"),
        ({"over_select": 2.0, "party_fraction": 0.5}, "over_select: 2.0 does not go"),
        ({"min_sum": 2}, "min_sum: 2 is for two parties"),
        ({"min_sum": 11}, "min_sum is 11, but a round asks 10 parties"),
        ({"min_sum": 6, "party_fraction": 0.5}, "but a round asks 5 parties"),
        ({"num_parties": 1}, "needs 2 parties or more in a round, got 1"),
        ({"secure_aggregation": False, "min_sum": 3, "clip_norm": None}, "no effect"),
    ],
    ids=str,
)
def test_what_secure_sums_cannot_do_is_an_error_with_the_reason(changes, part):
    _, problems = parse(GROUND | WITH["secure_aggregation"] | changes)
    assert any(part in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model_type": "keras"}, "model_type: keras does not go with dp_sgd"),
        ({"drop_last": True}, "dp_sgd trains in batches drawn by chance"),
        ({"mixed_precision": "bfloat16"}, "mixed_precision: bfloat16 does not go"),
        ({"dp_sgd": DP_SGD | {"noise_multiplier": None}}, "dp_sgd.epsilon is missing"),
        ({"dp_sgd": {"epsilon": 3.0}}, "dp_sgd.max_grad_norm is missing"),
        ({"normalize": "federated"}, "normalize: federated does not go with dp_sgd"),
    ],
    ids=str,
)
def test_what_noise_for_samples_cannot_do_is_an_error_with_the_reason(changes, part):
    _, problems = parse(GROUND | {"dp_sgd": DP_SGD} | changes)
    assert any(part in problem for problem in problems), problems


def test_robust_rules_work_on_updates_that_are_noised_at_the_party():
    assert parse(GROUND | {"dp_sgd": DP_SGD, "fusion_algorithm": "krum"})[1] == []


def test_two_parties_may_sum_alone_and_three_need_three():
    two = GROUND | WITH["secure_aggregation"] | {"num_parties": 2, "min_sum": 2}
    two["parties"] = NAMED[:2]
    assert parse(two)[1] == []
    assert parse(two | {"num_parties": 3, "parties": NAMED[:3]})[1] != []


def test_delta_goes_by_the_smallest_group_that_has_a_model():
    parties = [
        {"name": str(i), "data": "/a.npz", "fields": {"region": "ab"[i > 7]}}
        for i in range(N_PARTIES)
    ]
    config = {"model_file": "m.pt", "parties": parties, "groups": {"by": "region"}}
    privacy = CENTRAL | {"delta": 0.3}
    assert parse(config | {"privacy": privacy})[1] == []  # b has two, 1/2
    (problem,) = parse(config | {"privacy": CENTRAL | {"delta": 0.5}})[1]
    assert "below 1 / 2 parties = 0.5, got 0.5" in problem


def test_words_from_the_command_line_are_read_as_numbers_or_adaptive():
    texts = {"mechanism": "central", "epsilon": "8", "delta": "1e-3"}
    for clip, value in (("2.5", 2.5), ("adaptive", "adaptive")):
        config, problems = parse(GROUND | {"privacy": texts | {"clip_norm": clip}})
        assert problems == []
        assert (config.privacy.clip_norm, config.privacy.delta) == (value, 1e-3)


def test_a_config_of_privacy_survives_being_written(tmp_path):
    config, _ = parse(GROUND | {"privacy": CENTRAL, "dp_sgd": DP_SGD})
    again, problems = parse(config.to_dict())
    assert (again.privacy, again.dp_sgd, problems) == (
        config.privacy,
        config.dp_sgd,
        [],
    )
    without, _ = parse(GROUND)
    assert {"privacy", "dp_sgd", "min_sum"} & set(without.to_dict()) == set()


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({"epsilon": 4.0}, True),
        ({"epsilon": 16.0}, True),
        ({"delta": 1e-4}, False),
        ({"noise_multiplier": 2.0}, False),
        ({"clip_norm": 2.0}, False),
        ({"clip_norm": "adaptive"}, False),
    ],
    ids=str,
)
def test_the_limit_may_change_on_resume_and_what_the_noise_is_may_not(
    tmp_path, changes, may
):
    folder = started_run(tmp_path, {"privacy": CENTRAL})
    config, _ = parse(GROUND | {"privacy": CENTRAL | changes, "rounds": 7})
    if may:
        _check_folder(folder, config, resume=True)
        return
    with pytest.raises(RunFolderError, match="cannot go on with another config: priv"):
        _check_folder(folder, config, resume=True)


def test_the_folder_of_the_parties_ledgers_stays_on_resume(tmp_path):
    folder = started_run(tmp_path, {"dp_sgd": DP_SGD})
    other, _ = parse(GROUND | {"dp_sgd": DP_SGD, "party_dir": "/elsewhere"})
    with pytest.raises(RunFolderError, match="party_dir was None, is /elsewhere"):
        _check_folder(folder, other, resume=True)
    raised, _ = parse(GROUND | {"dp_sgd": DP_SGD | {"epsilon": 3.0}})
    _check_folder(folder, raised, resume=True)


def started_run(path, changes: dict[str, Any]) -> RunFolder:
    """The folder of a run of which config.yaml and a checkpoint are there."""
    config, _ = parse(GROUND | changes)
    write_config(path, config)
    (path / "checkpoints" / "round-00001").mkdir(parents=True)
    return RunFolder(path)


def test_keys_within_other_keys_say_it_too():
    allowed = [key for key in KEYS.values() if key.setting.private.values]
    for outer in (key for key in allowed if key.nested):
        denied = {
            name
            for name, key in keys_of(outer.nested).items()
            if key.setting.private != SAFE
        }
        own = {"parties": {*MEMBER_KEYS, "edge"}, "groups": {"by", "k"}}
        assert denied == own.get(outer.name, set()), outer.name


def test_a_key_within_another_is_refused_by_its_whole_name():
    party = {"name": "a", "data": "/a.npz", "epochs": 3}
    config = FederationConfig(parties=[party], **WITH["central"])
    (problem,) = privacy_problems(config, ())
    assert problem.startswith("parties.epochs: 3 does not go with privacy.mechanism")
