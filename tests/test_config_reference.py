"""What is made from the config keys' declarations: docs page, schema, lists. No Ray."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from fedray import fusion, models
from fedray.config import (
    CUSTOM,
    Doc2VecSpec,
    FederationConfig,
    PartitionSpec,
    PartySpec,
    RunConfig,
    keys_of,
    parse,
    reference,
    rest_settings,
    resume_settings,
)
from fedray.config.conditions import KNOWN_NAMES
from fedray.errors import ConfigError
from fedray.fusion import robust

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "configuration.md"
KEYS = keys_of(FederationConfig)


def test_the_docs_page_is_the_one_made_from_the_keys():
    assert PAGE.read_text(encoding="utf-8") == reference.markdown(), "run: make docs"


def test_no_line_of_the_docs_page_is_over_110_columns():
    assert max(map(len, reference.markdown().splitlines())) <= 110


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_every_key_says_what_it_is_in_one_line(key):
    assert 5 < len(key.setting.help) <= 80
    assert "\n" not in key.setting.help
    assert key.topic


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_what_a_key_applies_to_exists(key):
    types = {*models.MODELS, CUSTOM}
    names = {"fusion_algorithm": fusion.FUSIONS, "model_type": types}
    for other, condition in key.setting.applies.items():
        assert other in KEYS
        known = names.get(other, KEYS[other].choices)
        values = getattr(condition, "values", condition)
        is_word = not known or set(values) - {None} <= set(known)
        assert is_word, f"{key.name}: {other}"


def test_the_names_that_conditions_speak_of_are_those_that_exist():
    names = {key: set(known) for key, known in KNOWN_NAMES.items()}
    assert names == {
        "fusion_algorithm": set(fusion.FUSIONS),
        "model_type": {*models.MODELS, CUSTOM},
    }


def test_the_help_of_model_type_names_every_model_type():
    words = set(KEYS["model_type"].setting.help.replace(",", "").split())
    assert set(models.MODELS) <= words


@pytest.mark.parametrize("rule", robust.ROBUST)
def test_a_robust_rule_takes_the_keys_that_say_so(rule):
    declared = {
        name for name in robust.KEYS
        if rule in KEYS[name].setting.applies["fusion_algorithm"]
    }  # fmt: skip
    assert declared == set(robust.keys_of(rule))


@pytest.mark.parametrize("model", [FederationConfig, PartitionSpec, Doc2VecSpec])
def test_every_default_is_within_its_bounds(model):
    defaults = {name: key.default for name, key in keys_of(model).items()}
    assert model(**defaults) == model()


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.yaml")), ids=str)
def test_editors_accept_the_shipped_configs_by_the_schema(file):
    jsonschema.validate(yaml.safe_load(file.read_text()), reference.json_schema())


@pytest.mark.parametrize(
    "wrong",
    [{"epocs": 1}, {"rounds": 0}, {"late": "x"}, {"partition": {"alpha": 0}}],
    ids=str,
)
def test_editors_refuse_what_a_run_refuses(wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, reference.json_schema())


def test_editors_accept_true_where_it_is_one_of_the_words():
    jsonschema.validate({"stacked": True}, reference.json_schema())


def test_no_key_that_names_code_or_a_path_is_set_over_rest():
    keys = rest_settings()
    assert not [name for name, key in keys.items() if key.setting.path == "file"]
    # of a key that takes names REST refuses code: see test_service_keys
    named = [name for name, key in keys.items() if key.setting.path == "code"]
    assert named == ["model_type", "loss", "metrics"]
    assert not {"parties", "party_cpus", "attack", "name"} & set(rest_settings())


def test_what_decides_the_result_stays_when_a_run_is_resumed():
    assert {"rounds", "quorum", "track"} <= resume_settings()
    assert not {"seed", "epochs", "optimizer", "parties"} & resume_settings()


def test_a_rest_setting_has_its_type_bounds_and_words_for_openapi():
    keys = rest_settings()
    assert keys["rounds"].json_schema["type"] == "integer"
    assert keys["rounds"].json_schema["minimum"] == 1
    assert keys["late"].json_schema["enum"] == ["discard", "next_round"]
    assert keys["deadline_s"].json_schema["exclusiveMinimum"] == 0
    assert "seconds" in keys["deadline_s"].json_schema["description"]
    assert keys["doc2vec"].json_schema["default"]["vector_size"] == 100


def test_a_key_without_effect_is_named_with_what_it_applies_to():
    good = {"model_file": "m.pt", "num_parties": 2, "partition": {}}
    needs = "fusion_algorithm: fedadagrad, fedadam, fedyogi"
    assert parse({**good, "server_tau": 0.1, "fusion_algorithm": "fedavgm"})[1] == [
        f"server_tau has no effect with fusion_algorithm: fedavgm: it is for {needs}"
    ]
    assert parse({**good, "server_tau": 0.1, "fusion_algorithm": "fedadam"})[1] == []


def test_a_config_made_in_python_is_checked_at_once():
    with pytest.raises(ConfigError) as caught:
        FederationConfig(rounds=0, epocs=1, parties=({"name": "a"},))
    message = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    for part in ("rounds must be between", "did you mean 'epochs'", "[0].data is mis"):
        assert part in message
    with pytest.raises(ConfigError, match="rounds must be a whole number, got '3'"):
        FederationConfig(rounds="3")


def test_a_config_made_in_python_takes_lists_as_well_as_tuples():
    parties = [PartySpec("a", "x"), {"name": "b", "data": "y"}]
    config = FederationConfig(
        parties=parties, attack={"kind": "alie", "parties": ["a"]}
    )
    assert [party.name for party in config.parties] == ["a", "b"]
    assert config.attack.parties == ("a",)
    with pytest.raises(ConfigError, match=r"parties must be a list, got \{'a'\}"):
        FederationConfig(parties={"a"})


def test_a_misspelled_key_is_answered_by_the_nearest_alone():
    _, problems = parse({"roundz": 3, "partition": {"alfa": 1, "foo": 2}})
    assert "unknown key 'roundz'; did you mean 'rounds'?" in problems
    alpha, foo = (p for p in problems if p.startswith("unknown key 'partition."))
    assert alpha == "unknown key 'partition.alfa'; did you mean 'partition.alpha'?"
    assert foo == "unknown key 'partition.foo'; `fedray config` lists all keys"


def test_settings_take_values_in_the_order_of_their_keys():
    assert PartySpec("a", "x", {"k": "v"}) == PartySpec(
        name="a", data="x", labels={"k": "v"}
    )
    with pytest.raises(TypeError, match="one twice"):
        PartySpec("a", name="b")


def test_changed_settings_are_checked_and_remember_which_were_set():
    config = FederationConfig(rounds=2)
    changed = config.with_changes(epochs=3)
    assert (changed.rounds, changed.epochs) == (2, 3)
    assert changed.model_fields_set == {"rounds", "epochs"}
    with pytest.raises(ConfigError, match="rounds must be between"):
        config.with_changes(rounds=0)


def test_the_number_of_parties_follows_from_the_list():
    parties = (PartySpec("a", "x"), PartySpec("b", "y"))
    assert FederationConfig(parties=parties).num_parties == 2


def test_a_resolved_config_leaves_nothing_open():
    config = FederationConfig(optimizer="optim.Adam", rounds=3)
    resolved = config.resolve(
        {"learning_rate": 0.5, "optimizer": "optim.SGD", "loss": "nll_loss"}
    )
    assert isinstance(resolved, RunConfig)
    assert (resolved.optimizer, resolved.learning_rate) == ("optim.Adam", 0.5)
    assert (resolved.loss, resolved.rounds) == ("nll_loss", 3)
    assert resolved.resolve({"loss": "mse_loss"}) == resolved
