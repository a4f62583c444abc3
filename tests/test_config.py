"""Reading a config: every mistake at once, nothing silently dropped. No Ray."""

from pathlib import Path

import pytest
import yaml

from fedray.config import (
    AttackSpec,
    Doc2VecSpec,
    DpSgdSpec,
    FederationConfig,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
    PrivacySpec,
    keys_of,
    parse,
    read_overrides,
    read_yaml,
    suggestions,
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
        (
            "aggregation",
            True,
            "one of the words 'always', 'adaptive', 'buffered', got True",
        ),
        ("stacked", 1, "stacked must be one of the words 'auto', 'true', 'false'"),
        ("name", "../x", "name '../x' cannot be used: it has '/' in it"),
        ("partition", {"scheme": "iidd"}, "unknown partition scheme 'iidd'"),
        ("partition", {"alfa": 1}, "unknown key 'partition.alfa'"),
        ("partition", {"alpha": 0}, "partition.alpha must be above 0"),
        ("partition", "mnist", "partition must be a mapping, got 'mnist'"),
        ("partition", None, "give either parties or a partition"),
        ("optimizer_args", "x", "optimizer_args must be a mapping, got 'x'"),
        (
            "optimizer_args",
            {"betas": [0.9, float("nan")]},
            "optimizer_args.betas must be a finite number, got [0.9, nan]",
        ),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [("compare: global", "unknown compare 'global'"),
     ("mixed_precision: fp8", "unknown mixed_precision 'fp8'"),
     ("track: wandb", "unknown track 'wandb'"),
     ("compare: true", "unknown compare 'true'"),
     ("compare: null", "none"),
     ("stacked: on", "true")],
)  # fmt: skip
def test_a_word_in_a_file_that_is_no_choice_is_not_read_as_none(tmp_path, text, value):
    (tmp_path / "c.yaml").write_text(text)
    config, found = parse({**GOOD, **read_yaml(tmp_path / "c.yaml")})
    key = text.partition(":")[0]
    got = found[0].partition(";")[0] if found else getattr(config, key)
    assert got == value


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
    values, found = read_overrides(["x", "seed=1", "epochs=a: b: c"])
    assert values == {"seed": 1}
    assert found == [
        "'x' is not of the form key=value",
        "cannot read the value of 'epochs=a: b: c': line 1, column 5: "
        "mapping values are not allowed here",
    ]
    cut = ["optimizer_args={momentum:", "0.9,", "betas:", "[1,", "2]}", "seed=1"]
    values = {"optimizer_args": {"momentum": 0.9, "betas": [1, 2]}, "seed": 1}
    assert read_overrides(cut) == (values, [])


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
        ("rounds: 1\nepochs:2\n", "line 2, column 1: there is no ': ' between key and"),
        ("a: 1\n---\nb: 2\n", "expected a single document in the stream, but found"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("!!python/object/apply:os.system ['id']", "is not YAML"),
        ("rounds: 1\nparties: [", "line 2, column 11: expected the node content"),
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


def _read(folder, text: str) -> tuple[FederationConfig, list[str]]:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return parse(read_yaml(path), path)


def _mistakes(folder, text: str) -> list[str]:
    try:
        return _read(folder, text)[1]
    except ConfigError as error:
        return error.problems


HEAD = "model_file: m.pt\n"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("rounds: 1\nepochs: 2\nrounds: 50\n", [("rounds", 4, 2)]),
        ('rounds: 1\n"rounds": 1\n', [("rounds", 3, 2)]),
        ("parties:\n  - {name: a, data: x}\nparties: []\n", [("parties", 4, 2)]),
        ("parties:\n  - name: a\n    name: b\n    data: x\n", [("name", 4, 3)]),
        ("optimizer_args: {lr: 1, betas: [1], lr: 2}\n", [("lr", 2, 2)]),
        ("groups:\n  by: a\n  k: 2\n  by: b\n", [("by", 5, 3)]),
        ("seed: 1\nseed: 2\nname: a\nname: b\n", [("seed", 3, 2), ("name", 5, 4)]),
        ("seed: 1\nseed: 1\nseed: 1\n", [("seed", 3, 2), ("seed", 4, 2)]),
        ('{"rounds": 1,\n "rounds": 2}', [("rounds", 2, 1)]),
    ],
)
def test_a_key_given_twice_is_an_error_with_its_lines(tmp_path, text, lines):
    text = text if text.startswith("{") else HEAD + text
    assert _mistakes(tmp_path, text) == [
        f"config {tmp_path / 'c.yaml'}, line {line}: the key {key!r} is given twice, "
        f"first in line {first}: keep one"
        for key, line, first in lines
    ]


def test_a_mapping_without_blanks_after_its_colons_is_an_error(tmp_path):
    (found,) = _mistakes(tmp_path, HEAD + "partition: {alpha:0.3, scheme: iid}\n")
    assert found.endswith("line 2: 'alpha:0.3' needs a blank after the colon")
    (found,) = read_overrides(["optimizer_args={momentum:0.9}"])[1]
    assert found.endswith("line 1: 'momentum:0.9' needs a blank after the colon")


def test_merged_mappings_may_repeat_keys(tmp_path):
    text = """
        model_file: m.pt
        parties:
          - &first {name: a, data: x, labels: {zone: on}}
          - {<<: *first, name: b}
          - <<: *first
            name: c
            data: y
    """
    config, found = _read(tmp_path, text)
    assert found == []
    assert [party.name for party in config.parties] == ["a", "b", "c"]
    assert [Path(party.data).name for party in config.parties] == ["x", "x", "y"]
    assert config.parties[2].labels == {"zone": "on"}


WORDS = [
    "on", "no", "yes", "y", "null", "true", "1e3", "1.10", "0123", "0x1F", "2024-01-01",
    "12_000", "1.0", "190", "1e-4",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_text_stays_as_it_is_written_where_text_is_expected(tmp_path, word):
    text = f"""
        model_file: {word}.pt
        parties:
          - {{name: {word}, data: d, labels: {{{word}: {word}}}, fields: {{v: {word}}}}}
        attack: {{kind: alie, parties: [{word}]}}
    """
    config, found = _read(tmp_path, text)
    assert found == []
    (party,) = config.parties
    assert (party.name, party.labels, party.fields) == (word, {word: word}, {"v": word})
    assert config.attack.parties == (word,)
    assert Path(config.model_file).name == f"{word}.pt"
    again = _read(tmp_path, yaml.safe_dump(config.to_dict()))
    assert again == (config, [])
    if word != "null":
        assert read_overrides([f"name={word}", f"loss={word}"]) == (
            {"name": word, "loss": word},
            [],
        )


def test_nothing_is_no_text(tmp_path):
    text = "model_file: m.pt\nname: null\nloss: ~\nparties:\n- {name: , data: x}\n"
    config, found = _read(tmp_path, text)
    assert found == ["parties[0].name must be text, got None"]
    assert (config.name, config.loss) == ("c", None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("-.5", -0.5), ("1_000", 1000), ("0x10", 16),
        ("010", 10), ("true", True), ("no", False), ("null", None), ("Adam", "Adam"),
        ("'1e-4'", 1e-4), ("[0.9, 1e-3]", [0.9, 1e-3]),
        ("{a: {b: 2e0}}", {"a": {"b": 2}}),
        ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("'no'", "no"),
    ],
)  # fmt: skip
def test_numbers_are_numbers_within_arguments(tmp_path, text, value):
    config, found = _read(tmp_path, HEAD + GOOD_TEXT + f"optimizer_args: {{x: {text}}}")
    assert found == []
    assert config.optimizer_args == {"x": value}
    assert type(config.optimizer_args["x"]) is type(value)
    given, found = read_overrides([f"optimizer_args={{x: {text}}}"])
    assert (given, found) == ({"optimizer_args": {"x": value}}, [])
    assert (
        parse(GOOD | {"optimizer_args": {"x": value}})[0].optimizer_args["x"] == value
    )


GOOD_TEXT = "num_parties: 2\npartition: {}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("010", 10), ("0x10", 16), ("1_0", 10), ("+3", 3), ("1e0", 1)],
)
def test_numbers_are_read_as_numbers_are_written(tmp_path, text, value):
    lines = f"learning_rate: {text}\n"
    config, found = _read(tmp_path, HEAD + GOOD_TEXT + lines)
    assert (found, config.learning_rate) == ([], value)
    assert read_overrides([f"learning_rate={text}"]) == ({"learning_rate": value}, [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("round_timeout_s: 10:00", "must be a finite number, got '10:00'"),
        ("rounds: yes", "rounds must be a whole number, got 'yes'"),
        ("rounds: .inf", "rounds must be a whole number, got inf"),
        ("aggregation: on", "unknown aggregation 'on'; choose from"),
        ("seed: 2024-01-01", "seed must be a whole number, got '2024-01-01'"),
        ("1: 2", "unknown key '1'; `fedray config` lists all keys"),
    ],
)
def test_what_is_no_number_is_told_as_it_is_written(tmp_path, line, message):
    (found,) = _mistakes(tmp_path, HEAD + GOOD_TEXT + line)
    assert message in found


def test_a_value_of_python_that_is_no_text_is_an_error_where_text_is_expected():
    party = {"name": "a", "data": "x", "fields": {"new": True, "year": 2024}}
    config, found = parse({"model_file": "m.pt", "parties": [party]})
    assert found == ["parties[0].fields.new must be text, got True"]
    assert config.parties[0].fields == {"year": "2024"}


def test_a_key_given_twice_on_the_command_line_is_an_error():
    assert read_overrides(["rounds=1", "seed=2", "rounds=3"])[1] == [
        "rounds is given twice, rounds=1 and rounds=3: keep one"
    ]
    assert read_overrides(["learning_rate=", "seed= "])[1] == [
        "learning_rate= has no value: give one, or learning_rate=null for none",
        "seed=  has no value: give one, or seed=null for none",
    ]
    (found,) = read_overrides(["optimizer_args={a: 1, a: 2}"])[1]
    assert "the key 'a' is given twice" in found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rounds", "3"], ["'rounds' is not of the form key=value: write rounds=3"]),
        (["rounds:", "3"], ["'rounds:' is not of the form key=value: write rounds=3"]),
        (["lr", "3"], ["'lr' is not of the form key=value: write learning_rate=3"]),
        (
            ["lr", "=", "3"],
            ["'lr' is not of the form key=value: write learning_rate=3"],
        ),
        (["=3"], ["'=3' is not of the form key=value"]),
    ],
)
def test_a_word_that_is_no_setting_is_told_how_it_would_be_one(words, found):
    assert read_overrides(words) == ({}, found)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", 1, "did you mean 'learning_rate'?"),
        ("clients", [], "did you mean 'parties'?"),
        ("num_clients", 2, "did you mean 'num_parties'?"),
        ("numRounds", 2, "did you mean 'rounds'?"),
        ("local-epochs", 2, "did you mean 'epochs'?"),
        ("fedprox", 0.1, "did you mean 'proximal_mu'?"),
        ("fraction_fit", 0.1, "did you mean 'party_fraction'?"),
        ("Batch-Size", 1, "did you mean 'batch_size'?"),
        ("batchsize", 1, "did you mean 'batch_size'?"),
        ("dataset", "x", "did you mean 'partition'?"),
        ("momentum", 0.9, "write optimizer_args: {momentum: ...}"),
        ("device", "cuda", "leave it out: a party takes a GPU wherever its node has"),
        ("num_gpus", 1, "leave it out: a party takes a GPU wherever its node has one"),
        ("output_dir", "x", "write --run-dir FOLDER after the command"),
        ("alpha", 1, "alpha stands in partition: write partition: {alpha: ...}"),
        ("data", "x", "data stands in each of parties: write parties: [{data: ...}]"),
        ("partition.alpha", 1, "alpha stands in partition: write partition: {alpha:"),
        ("partition", {"groups": 1}, "groups stands at the top of the config, not in"),
        ("partition", {"dataset": 1}, "did you mean 'partition.source'?"),
        ("groups", {"of": 1, "by": "x"}, "'groups.of'; `fedray config` lists all keys"),
        ("grops", 1, "did you mean 'groups'?"),
        ("xyzzy", 1, "unknown key 'xyzzy'; `fedray config` lists all keys"),
    ],
)
def test_an_unknown_key_gets_the_suggestion_alone(key, value, message):
    found = [each for each in problems(**{key: value}) if "unknown key" in each]
    assert len(found) == 1
    assert message in found[0]
    assert "choose from" not in found[0]


def test_what_others_call_a_key_is_no_key_and_belongs_to_one():
    places = {"": FederationConfig, "parties": PartySpec, "partition": PartitionSpec}
    places |= {"groups": GroupsSpec, "attack": AttackSpec, "doc2vec": Doc2VecSpec}
    places |= {"privacy": PrivacySpec, "dp_sgd": DpSgdSpec}
    for name, others in suggestions.OTHER_NAMES.items():
        place, _, key = name.rpartition(".")
        assert key in keys_of(places[place])
        assert not set(others.split()) & set(keys_of(places[place]))
        for other in others.split():
            first = suggestions.suggest_key(f"{place}.{other}".lstrip("."),
                                            f"{place}." if place else "",
                                            FederationConfig)  # fmt: skip
            assert first == f"did you mean {name!r}?", other


def test_a_mistake_hides_no_other_one():
    parties = [{"name": "a"}, {"name": "b", "data": "x", "joined": 3, "left": 2}]
    attack = {"kind": "sign_flop", "parties": ["z"], "scale": 2}
    found = parse({"model_file": "m.pt", "parties": parties, "attack": attack})[1]
    told = ("parties[0].data is missing", "did you mean 'sign_flip'?", "no party 'z'",
            "party 'b': left (in round 2) before it joined")  # fmt: skip
    assert len(found) == len(told), found
    for text in told:
        assert any(text in problem for problem in found), text


NETWORK = {"model_file": "m.pt", "num_parties": 8, "partition": {}}
LISTED = {"model_file": "m.pt", "parties": [{"name": "a", "data": "x"}]}
DOCUMENTS = LISTED | {"model_type": "doc2vec", "fusion_algorithm": "doc2vec"}
DOCUMENTS.pop("model_file")
NEEDS = [
    (NETWORK, "server_momentum", 0.9, "fusion_algorithm: fedavgm, fedadagrad"),
    (NETWORK, "adopt", 1.0, "fusion_algorithm: best_model"),
    (NETWORK, "drift_tolerance", 2.5, "aggregation: adaptive"),
    (NETWORK, "max_rounds_apart", 3, "aggregation: adaptive"),
    (NETWORK | {"aggregation": "adaptive", "drift_threshold": 1.0}, "drift_tolerance",
     2.0, "no drift_threshold"),
    (NETWORK, "over_select", 1.5, "party_fraction other than 1"),
    (NETWORK, "distill_epochs", 3, "fusion_algorithm: ensemble; distill given"),
    (NETWORK, "share", "additive", "model_type: doc2vec"),
    (NETWORK, "bucketing", 1, "fusion_algorithm: median"),
    (NETWORK, "doc2vec", {"dm": 1}, "model_type: doc2vec"),
    (NETWORK | {"partition": {"alpha": 0.5}}, "partition.alpha", 0.5,
     "scheme: dirichlet"),
    (NETWORK | {"partition": {"shards_per_party": 2}}, "partition.shards_per_party", 2,
     "scheme: shards"),
    (LISTED, "parties_per_actor", 1, "partition given"),
    (LISTED | {"groups": {"by": "x", "k": 1}}, "groups.k", 1, "by: similarity"),
    (LISTED | {"attack": {"kind": "ipm", "parties": ["a"], "n_classes": 2}},
     "attack.n_classes", 2, "kind: label_flip, scaled_poison"),
    (DOCUMENTS, "batch_size", 64, "model_type: pytorch, keras"),
    (DOCUMENTS, "wire_dtype", "float32", "model_type other than doc2vec"),
    (DOCUMENTS | {"doc2vec": {"dm": 0, "window": 5}}, "doc2vec.window", 5, "dm: 1"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "key", "value", "needed"), NEEDS)
def test_a_key_that_was_given_and_has_no_effect_is_an_error(
    settings, key, value, needed
):
    given = settings if "." in key else settings | {key: value}
    found = [each for each in parse(given)[1] if "no effect" in each]
    assert len(found) == 1
    assert found[0].startswith(f"{key} has no effect with")
    assert f": it is for {needed}" in found[0]
    config = FederationConfig(**given)
    assert any(found[0] == each for each in config.problems())
    assert parse(config.to_dict())[0].without_effect() == []  # it is not written


def test_a_deadline_after_the_timeout_is_an_error():
    (found,) = problems(deadline_s=900)
    assert found.startswith("deadline_s: 900 has no effect with round_timeout_s: 600")
    assert problems(deadline_s=900, round_timeout_s=900) == []


def test_members_of_an_ensemble_have_keys_of_their_own_model_types():
    parties = [
        {"name": "a", "data": "x", "model_type": "keras", "loss_args": {"b": 1}},
        {"name": "b", "data": "x", "model_type": "doc2vec", "loss_args": {"b": 1}},
    ]
    base = {"fusion_algorithm": "ensemble", "model_file": "m.pt", "parties": parties}
    problems = parse(base | {"loss_args": {"c": 1}, "stacked": "auto"})[1]
    assert [problem for problem in problems if "has no effect" in problem] == [
        "party 'b': loss_args has no effect with model_type: doc2vec: it is for "
        "model_type: pytorch, keras"
    ]
