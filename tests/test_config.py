"""Reading a config: every mistake at once, nothing silently dropped. No Ray."""

from pathlib import Path

import pytest
import yaml

from fedray.config import (
    FederationConfig,
    PartitionSpec,
    parse,
    read_overrides,
    read_yaml,
)
from fedray.errors import ConfigError

GOOD = {
    "model_file": "m.pt",
    "num_parties": 2,
    "partition": {"source": "mnist", "samples_per_party": 5},
}


def problems(**changes) -> list[str]:
    return parse({**GOOD, **changes})[1]


def test_a_good_config_has_no_problems():
    assert problems() == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epocs", 3, "unknown key 'epocs'; did you mean 'epochs'?"),
        ("rounds", 0, "rounds must be between 1 and"),
        ("rounds", -1, "rounds must be between 1 and"),
        ("rounds", 1e9, "rounds must be between 1 and"),
        ("rounds", 2.5, "rounds must be a whole number, got 2.5"),
        ("rounds", True, "rounds must be a whole number, got True"),
        ("rounds", [3], "rounds must be a whole number"),
        ("rounds", None, "rounds must be a whole number, got None"),
        ("epochs", "many", "epochs must be a whole number, got 'many'"),
        ("learning_rate", float("nan"), "learning_rate must be a finite number"),
        ("learning_rate", float("inf"), "learning_rate must be a finite number"),
        ("learning_rate", 0, "learning_rate must be above 0, got 0"),
        ("quorum", 1.5, "quorum must be above 0 and at most 1, got 1.5"),
        ("party_fraction", 0, "party_fraction must be above 0 and at most 1"),
        ("party_fraction", -1, "party_fraction must be above 0 and at most 1"),
        ("aggregation", "sometimes", "unknown aggregation 'sometimes'"),
        ("aggregation", True, "one of the words 'always', 'adaptive', got True"),
        ("stacked", 1, "stacked must be one of the words 'auto', 'true', 'false'"),
        ("name", "../x", "name '../x' cannot be used: it has '/' in it"),
        ("partition", {"scheme": "iidd"}, "unknown partition scheme 'iidd'"),
        ("partition", {"alfa": 1}, "unknown key 'partition.alfa'"),
        ("partition", {"alpha": 0}, "partition.alpha must be above 0"),
        ("partition", "mnist", "partition must be a mapping, got 'mnist'"),
        ("partition", None, "give either parties or a partition"),
        ("optimizer_args", "x", "optimizer_args must be a mapping, got 'x'"),
        ("seed", -1, "seed must be between 0"),
    ],
)
def test_a_mistake_is_reported_once(key, value, message):
    found = problems(**{key: value})
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    ("parties", "message"),
    [
        ([{"name": "a"}], "parties[0].data is missing"),
        ([{"name": "a", "data": "x", "label": {}}], "did you mean 'parties[0].labels'"),
        ([{"name": "a/b", "data": "x"}], "party name 'a/b' cannot be used"),
        ([{"name": "a", "data": "x"}] * 2, "party name 'a' is given more than once"),
        ([{"name": "a", "data": "x", "labels": {"k": "!b"}}], "label '!b' must match"),
        ("a", "parties must be a list, got 'a'"),
        ([3], "parties[0] must be a mapping, got 3"),
    ],
)
def test_parties_are_checked_one_by_one(parties, message):
    found = parse({"model_file": "m.pt", "parties": parties})[1]
    assert len(found) == 1, found
    assert message in found[0]


def test_python_is_told_the_words_where_it_gives_a_boolean():
    needed = "stacked must be one of the words 'auto', 'true', 'false', got True"
    with pytest.raises(ConfigError, match=needed):
        FederationConfig(stacked=True)


def test_parties_and_partition_exclude_each_other():
    assert problems(parties=[{"name": "a", "data": "x"}]) == [
        "give either parties or a partition to cut them from",
        "num_parties is 2, but parties lists 1",
    ]


def test_all_mistakes_are_reported_at_once():
    found = problems(epocs=1, rounds=0, quorum=7)
    assert len(found) == 3
    assert str(ConfigError(found)).startswith("3 mistakes in the config:\n  - ")


def _load(data: dict, folder) -> FederationConfig:
    (folder / "c.yaml").write_text(yaml.safe_dump(data))
    config, found = parse(read_yaml(folder / "c.yaml"), folder / "c.yaml")
    assert found == []
    return config


def test_strings_become_numbers_where_numbers_are_needed():
    config, found = parse({**GOOD, "rounds": "3", "learning_rate": "1e-3"})
    assert (found, config.rounds, config.learning_rate) == ([], 3, 0.001)


def test_overrides_are_yaml_values():
    words = ["rounds=3", "partition={source: mnist, alpha: 0.1}", "optimizer=optim.SGD"]
    assert read_overrides(words) == (
        {
            "rounds": 3,
            "partition": {"source": "mnist", "alpha": 0.1},
            "optimizer": "optim.SGD",
        },
        [],
    )
    values, found = read_overrides(["rounds", "name=2024-13-45", "seed=1"])
    assert values == {"seed": 1}
    assert found == [
        "'rounds' is not of the form key=value",
        "cannot read the value of 'name=2024-13-45'",
    ]


def test_relative_paths_start_beside_the_config_file(tmp_path):
    (tmp_path / "m.pt").touch()
    config = _load({**GOOD, "data_handler": "mine.py:Mine"}, tmp_path)
    assert config.model_file == str(tmp_path / "m.pt")
    assert config.data_handler == f"{tmp_path / 'mine.py'}:Mine"
    assert config.name == "c"


def test_relative_paths_are_also_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "m.pt").touch()
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _load(GOOD, tmp_path / "d").model_file == str(tmp_path / "m.pt")


def test_a_resolved_config_reads_back_equal(tmp_path):
    parties = [{"name": "a", "data": "/d/a.npz", "labels": {"fedray-party": "a"}}]
    for data in (GOOD, {"model_file": "m.pt", "parties": parties}):
        config = _load(data, tmp_path)
        assert parse(config.to_dict()) == (config, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("!!python/object/apply:os.system ['id']", "is not YAML"),
        ("1: 2", "must be a mapping"),
        ("name: 2024-13-01", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_an_error(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.yaml: No such file"):
        read_yaml(tmp_path / "nope.yaml")


def test_the_default_partition_is_iid():
    assert PartitionSpec().scheme == "iid"


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("c", "c"),
        ("_my draft", "my-draft"),
        ("...", "federation"),
        ("федерация", "федерация"),
        ("病院", "病院"),
        ("gro\u0308ße", "größe"),  # as macOS writes it
        ("gr\udcf6\udcdfe", "größe"),  # a name in Latin-1
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्षेत्र (2)", "क्षेत्र--2-"),
        ("a\u202eb", "a-b"),
    ],
)
def test_a_run_is_named_after_its_config_file(tmp_path, stem, name):
    assert parse(GOOD, tmp_path / f"{stem}.yaml")[0].name == name


def test_a_party_may_have_a_data_handler_of_its_own(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine:\n    def get_data(self): ...\n")
    path = tmp_path / "c.yaml"
    listed = [
        {"name": "a", "data": "a.npz", "data_handler": "mine.py:Mine"},
        {"name": "b", "data": "b.npz"},
    ]
    config, found = parse({"model_file": "m.pt", "parties": listed}, path)
    assert found == []
    assert config.handler_of(0) == f"{tmp_path}/mine.py:Mine"
    assert config.handler_of(1) == "mnist_pytorch"
    assert config.handlers() == [f"{tmp_path}/mine.py:Mine", "mnist_pytorch"]
    again, found = parse(config.to_dict())
    assert (again, found) == (config, [])


ALONE = {"model_file": "m.pt"}


@pytest.mark.parametrize(
    "name",
    ["größe", "Клиника № 1", "病院-a", "می\u200cخواهم", "क्षेत्र", "a\u202fb", "🏥"],
)
def test_names_of_any_script_are_names(name):
    parties = [{"name": name, "data": "x", "fields": {"region": name}}]
    plain = {**ALONE, "name": name, "parties": parties, "groups": {"by": "region"}}
    assert parse(plain)[1] == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("..", "begins with a dot"),
        ("-x", "begins with a dot or hyphen"),
        ("a\\b", "it has '\\\\' in it"),
        ("a:b", "it has ':' in it"),
        ("a\u202eb", "it has U+202E in it"),
        ("a\x1b[2J", "it has U+001B in it"),
        ("a\ud800", "it has U+D800 in it"),
        ("a ", "ends with one"),
        ("\u200d", "nothing of it can be seen"),
        ("x" * 65, "longer than 64"),
        ("🏥" * 60, "200 bytes"),
        ("", "it is empty"),
    ],
)
def test_what_no_path_can_hold_is_no_name(name, why):
    (problem,) = problems(name=name)
    assert problem.startswith("name ")
    assert why in problem


def test_two_parties_whose_names_look_alike_are_a_mistake():
    names = "gr\u00fcn", "gru\u0308n"
    parties = [{"name": name, "data": "x"} for name in names]
    messages = parse({**ALONE, "parties": parties})[1]
    assert ["given more than once" in message for message in messages] == [True] * 2


@pytest.mark.parametrize(
    ("data", "is_as_written"),
    [
        ("s3://bucket/a.npz", True),
        ("https://host/a?b=c", True),
        ("jdbc:postgresql:patients", True),
        ("patients", True),
        ("public.patients", True),
        ("患者", True),
        ("SELECT x, y FROM t", True),
        ("there.npz", False),  # it is there
        ("folder/elsewhere.npz", False),  # on the party's node
        ("~/a.npz", False),
    ],
)
def test_a_custom_handler_is_given_uris_and_tables_as_written(
    tmp_path, data, is_as_written
):
    (tmp_path / "there.npz").touch()
    parties = [{"name": "a", "data": data}]
    plain = {**ALONE, "parties": parties, "test_data": data}
    config = _load({**plain, "data_handler": "mine.py:Mine"}, tmp_path)
    for source in (config.parties[0].data, config.test_data):
        assert (source == data) == is_as_written
        assert is_as_written or source.startswith("/")


def test_a_built_in_handler_is_given_paths_and_no_uri():
    parties = [{"name": "a", "data": "patients"}, {"name": "b", "data": "s3://b/c"}]
    config, messages = parse({**ALONE, "parties": parties})
    assert config.parties[0].data == str(Path("patients").absolute())
    (message,) = messages
    assert message.startswith("party 'b': data 's3://b/c' is no path, and data_handler")
