"""model_type: file.py:ClassName: any class that trains, evaluates and has weights."""
# ruff: noqa: E501  (a class in a line, and what is said of it)

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support.local_rounds import federation, fedray_rounds, train

import fedray
from fedray.cli import main
from fedray.config import parse
from fedray.errors import ConfigError, FedrayError, ModelFileError, PartyError
from fedray.federation import read_config
from fedray.federation.check import check
from fedray.messages import Scores
from fedray.models import named
from fedray.policy.selection import merge_metrics
from fedray.service.schemas import read_settings

MEAN = '''
import numpy as np

class Mean:
    """Moves its one number toward the mean of the samples, half-way an epoch."""

    def __init__(self):
        self.weights = {"m": np.zeros(1, np.float32), "n/steps": np.array(0)}

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = weights

    def train(self, data, context):
        for _ in range(context.epochs):
            self.weights["m"] += context.learning_rate * (data.mean() - self.weights["m"])
            self.weights["n/steps"] += 1
        return {"loss": float(abs(data.mean() - self.weights["m"][0]))}

    def evaluate(self, data, context):
        error = float(abs(data.mean() - self.weights["m"][0]))
        return {"loss": error, "error": error, "round": context.round, "n_samples": len(data)}
'''
HANDLER = """
import numpy as np

class Numbers:
    def __init__(self, path):
        self.numbers = np.load(path)

    def get_data(self):
        return self.numbers[:-2], self.numbers[-2:]
"""


@pytest.fixture
def settings(tmp_path):
    """Two parties of numbers whose means are 2 and 8, with 6 and 2 to train on."""
    np.save(tmp_path / "a.npy", np.full(8, 2.0))
    np.save(tmp_path / "b.npy", np.full(4, 8.0))
    write(tmp_path, MEAN)
    (tmp_path / "numbers_file.py").write_text(HANDLER)
    return {
        "model_type": f"{tmp_path}/mean.py:Mean",
        "data_handler": f"{tmp_path}/numbers_file.py:Numbers",
        "parties": [
            {"name": n, "data": str(tmp_path / f"{n}.npy")} for n in ("a", "b")
        ],
        "learning_rate": 0.5,
        "party_dir": str(tmp_path / "parties"),
    }


def write(folder: Path, *parts: str) -> None:
    (folder / "mean.py").write_text("\n".join(map(textwrap.dedent, parts)))


def changed(body: str) -> str:
    """The class with other methods."""
    lines = textwrap.indent(textwrap.dedent(body), "    ")
    return f"{MEAN}\nBase = Mean\nclass Mean(Base):\n{lines}\n"


def test_a_party_trains_by_its_class_and_updates_weigh_by_their_samples(settings):
    weights = fedray_rounds(settings)
    # by hand: a goes to 1, b to 4; a has 6 samples, b 2: (6 * 1 + 2 * 4) / 8
    np.testing.assert_allclose(weights["m"], [1.75])
    assert weights["m"].dtype == np.float32
    assert weights["n/steps"] == 1


def test_epochs_and_learning_rate_reach_the_class(settings):
    weights, parties, _ = federation(settings | {"epochs": 2, "learning_rate": 0.25})
    update = train(parties["a"], 1, weights)
    np.testing.assert_allclose(update.weights["m"], [0.875])  # 2 * (1 - 0.75 ** 2)
    assert update.weights["n/steps"] == 2


def test_numbers_of_evaluate_become_metrics_that_weigh_by_n_samples(settings):
    weights, parties, _ = federation(settings)
    score = parties["a"].evaluate(weights, round=3).scores
    assert (score.n_samples, score.loss, score.accuracy) == (2, 2.0, None)
    assert score.metrics == {"error": 2.0, "round": 3.0}


def test_metrics_are_means_over_those_that_have_them():
    scores = [
        Scores(3, metrics={"f1": 1.0, "recall": 0.5}),
        Scores(1, metrics={"f1": 0.0}),
        Scores(0, metrics={"f1": 9.0}),
    ]
    assert merge_metrics(scores) == {"f1": 0.75, "recall": 0.5}


FORMS = {
    "a list of arrays": ("[np.zeros(2), np.ones(3)]", ["arr_0", "arr_1"]),
    "a tuple": ("(np.zeros(2),)", ["arr_0"]),
    "a number": ("{'w': 1.5}", ["w"]),
    "torch tensors": ("{'w': __import__('torch').zeros(2)}", ["w"]),
    "bools": ("{'mask': np.ones(2, bool), 'w': np.ones(2)}", ["mask", "w"]),
    "names of many signs": (
        "{'w file': np.ones(1), 'é/ü': np.ones(1)}",
        ["w file", "é/ü"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_set_weights_gets_copies_in_the_form_of_get_weights(form, settings, tmp_path):
    value, names = FORMS[form]
    body = f"""
        def __init__(self):
            self.weights = {value}
            self.kind = repr(type(self.weights)), [repr(type(w)) for w in all_of(self.weights)]

        def set_weights(self, weights):
            kind = [repr(type(w)) for w in all_of(weights)]
            is_list = isinstance(self.weights, (list, tuple))
            assert isinstance(weights, list if is_list else dict)
            if "number" not in self.kind[1][0] and "float" not in self.kind[1][0]:
                assert kind == self.kind[1]
            for one in all_of(weights):
                one[...] = one  # it may write into them
            self.weights = weights

        def train(self, data, context):
            return {{}}

        def evaluate(self, data, context):
            return {{"loss": 1}}
    """
    helper = (
        "def all_of(w):\n    return list(w.values() if isinstance(w, dict) else w)\n"
    )
    write(tmp_path, changed(body) + helper)
    weights, parties, _ = federation(settings)
    assert list(weights) == names
    parties["a"].join(weights)
    update = train(parties["a"], 1, weights)
    for name in names:
        np.testing.assert_array_equal(update.weights[name], weights[name])


BAD_CLASSES = {  # body of the class -> words of the error
    "no_train": ("train = None", "no train()"),
    "arguments": ("def train(self, data): return {}", "gave train(data); needed train(data, context)"),
    "constructor": ("def __init__(self, size): pass", "__init__(size); needed one that needs no"),
    "fails": ("def __init__(self): raise RuntimeError('no disk')", "RuntimeError: no disk"),
    "nothing": ("def get_weights(self): pass", "gave a NoneType; needed a dict or a list"),
    "empty": ("def get_weights(self): return {}", "gave no arrays at all"),
    "text": ("def get_weights(self): return {'w': 'abc'}", "'w' as a str; needed an array"),
    "nested": ("def get_weights(self): return {'a': {'b': 1}}", "such as 'layer/kernel'"),
    "object": ("def get_weights(self): return {'w': np.array([None])}", "'w' of object"),
    "complex": ("def get_weights(self): return {'w': np.ones(2, complex)}", "'w' of complex128"),
    "int name": ("def get_weights(self): return {0: np.ones(2)}", "a name of type int"),
    "control": ("def get_weights(self): return {'a\\x00': np.ones(2)}", "cannot be printed"),
    "reserved": ("def get_weights(self): return {'__metadata__': np.ones(2)}", "__metadata__"),
    "nan": ("def get_weights(self): return {'w': np.full(2, np.nan)}", "NaN or infinity in 'w'"),
    "bfloat16": (
        "def get_weights(self):\n    import torch\n"
        "    return {'w': torch.ones(2, dtype=torch.bfloat16)}",
        "which numpy cannot hold",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CLASSES)
def test_a_class_that_cannot_be_used_is_an_error_before_anything_runs(
    case, settings, tmp_path
):
    body, words = BAD_CLASSES[case]
    write(tmp_path, changed(body))
    config, mistakes = parse(settings)
    assert mistakes == []
    with pytest.raises(ConfigError) as caught:
        named(config.model_type).read(config)
    assert words in str(caught.value)
    assert "mean.py:Mean" in str(caught.value)


@pytest.mark.parametrize("method", ["get_weights", "set_weights", "train", "evaluate"])
def test_a_class_without_a_method_is_found_without_running_it(
    method, settings, tmp_path
):
    write(tmp_path, "raise SystemExit", MEAN.replace(f"def {method}(", "def other("))
    with pytest.raises(ConfigError, match=rf"class Mean .* has no {method}\(\)"):
        read_config(settings)


def test_a_function_is_no_class(settings, tmp_path):
    write(tmp_path, "def Mean(): pass")
    with pytest.raises(ConfigError, match="is a function: name a class with get_weigh"):
        read_config(settings)


def test_a_member_of_an_ensemble_may_have_a_class_of_its_own(settings, tmp_path):
    write(tmp_path, changed("def predict(self, x): return np.ones((len(x), 2)) / 2"))
    own = {"model_type": settings.pop("model_type"), "epochs": 2}
    settings["parties"] = [party | own for party in settings["parties"]]
    config = read_config(settings | {"fusion_algorithm": "ensemble"})
    assert [config.member(place).epochs for place in (0, 1)] == [2, 2]


def test_a_member_of_an_ensemble_has_to_predict(settings):
    with pytest.raises(ConfigError, match=r"class Mean .* has no predict\(\)"):
        read_config(settings | {"fusion_algorithm": "ensemble"})


BAD_CALLS = {  # body of the class -> stage, words of the error
    "train gives nothing": ("def train(self, data, context): pass", "train() of mean.py:Mean gave None; needed a dict of numbers"),
    "train gives a number": ("def train(self, data, context): return 0.3", "gave a float"),
    "a loss of nan": ("def train(self, data, context): return {'loss': np.nan}", "gave loss nan; needed a finite number"),
    "a loss of text": ("def train(self, data, context): return {'loss': '0.3'}", "loss as a str; needed a number"),
    "other shapes": ("def train(self, data, context):\n    self.weights['m'] = np.ones(3, np.float32)\n    return {}", "tensor 'm' got float32[3], needed float32[1]"),
    "other names": ("def train(self, data, context):\n    self.weights['k'] = np.ones(3)\n    return {}", "not of this model: ['k']"),
    "no array": ("def train(self, data, context):\n    self.weights['m'] = None\n    return {}", "'m' as a NoneType"),
    "what is read-only": ("def train(self, data, context): context.global_weights['m'][0] = 1", "assignment destination is read-only"),
    "an exception": ("def train(self, data, context): return {}[context.party]", "KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_training_that_gives_something_else_names_party_call_and_what_it_gave(
    case, settings, tmp_path
):
    body, words = BAD_CALLS[case]
    write(tmp_path, changed(body))
    weights, parties, _ = federation(settings)
    with pytest.raises(PartyError) as caught:
        train(parties["a"], 1, weights)
    assert words in str(caught.value)
    assert "party a, training round 1" in str(caught.value)
    assert "2.0" not in str(caught.value)


BAD_AT_JOINING = {
    "no numbers": ("def evaluate(self, data, context): return {'a': 'b'}", "no numbers"),
    "a list": ("def evaluate(self, data, context): return [1]", "gave a list"),
    "a percentage": ("def evaluate(self, data, context): return {'accuracy': 93.5}", "accuracy 93.5; needed a share from 0 to 1"),
    "half a sample": ("def evaluate(self, data, context): return {'loss': 1, 'n_samples': 0.5}", "n_samples 0.5"),
    "a name of one's own": ("def evaluate(self, data, context): return {'a\\nb': 1}", "under the name 'a\\nb'"),
    "weights that are not set": ("def set_weights(self, weights): self.weights['m'] += 1", "than set_weights() was given before"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_AT_JOINING)
def test_what_can_be_known_without_training_is_an_error_before_round_1(
    case, settings, tmp_path
):
    body, words = BAD_AT_JOINING[case]
    write(tmp_path, changed(body))
    weights, parties, _ = federation(settings)
    weights = {**weights, "m": np.full(1, 3, np.float32)}
    with pytest.raises(PartyError) as caught:
        parties["a"].join(weights)
    assert words in str(caught.value)


def test_sums_in_other_floats_go_back_to_the_first_ones(settings, tmp_path):
    body = """
        def train(self, data, context):
            self.weights = {"m": np.full(1, 0.1), "n/steps": np.int32(7)}
            return {"loss": np.float32(1)}
    """
    write(tmp_path, changed(body))
    weights, parties, _ = federation(settings)
    update = train(parties["a"], 1, weights)
    assert update.weights["m"].dtype == np.float32
    assert update.weights["n/steps"].dtype == np.int64


DATA = {  # what get_data() gives -> what train and evaluate get, training samples
    "a pair": ("[1, 2, 3], [4]", [1, 2, 3], [4], 3),
    "no tests": ("[1, 2, 3], None", [1, 2, 3], None, 3),
    "a dict": ("{'train': [1, 2], 'test': [3]}", [1, 2], [3], 2),
    "a dict without tests": ("{'train': [1, 2]}", [1, 2], None, 2),
    "one for both": ("'a text'", "a text", "a text", 6),
    "an iterator": ("iter([1, 2])", [1, 2], [1, 2], 2),
    "samples and targets": ("((np.ones((4, 2)), np.ones(4)), None)", None, None, 4),
    "two arrays in a list": ("([np.ones((4, 2)), np.ones(4)], None)", None, None, 4),
    "a dict of columns": ("({'x': np.ones(5), 'y': np.ones(5)}, None)", None, None, 5),
}


@pytest.mark.parametrize("case", DATA)
def test_a_handler_may_give_anything(case, settings, tmp_path):
    value, to_train, to_test, n_samples = DATA[case]

    text = HANDLER.replace(
        "return self.numbers[:-2], self.numbers[-2:]", f"return {value}"
    )
    (tmp_path / "numbers_file.py").write_text(text)
    body = """
        def train(self, data, context):
            self.trained_on = data
            return {}

        def evaluate(self, data, context):
            self.tested_on = data
            return {"loss": 1}
    """
    write(tmp_path, changed(body))
    weights, parties, _ = federation(settings)
    joined = parties["a"].join(weights)
    assert joined.n_train.tolist() == [n_samples]
    train(parties["a"], 1, weights)
    own = parties["a"].local_data.model.framework_model()
    if to_train is not None:
        assert own.trained_on == to_train
        assert getattr(own, "tested_on", None) == to_test


BAD_DATA = {
    "nothing": ("None", "get_data() that gives None"),
    "x and y": ("np.ones((4, 2)), np.ones(4)", "two arrays, [4, 2] and [4]"),
    "no samples": ("[], [1]", "no training samples"),
    "no length": ("object(), None", "get_train_counts() of the handler"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_counted_is_an_error(case, settings, tmp_path):
    value, words = BAD_DATA[case]
    text = HANDLER.replace(
        "return self.numbers[:-2], self.numbers[-2:]", f"return {value}"
    )
    (tmp_path / "numbers_file.py").write_text(text)
    weights, parties, _ = federation(settings)
    with pytest.raises(PartyError, match="party a") as caught:
        parties["a"].join(weights)
    assert words in str(caught.value)


def test_data_without_a_length_weighs_by_get_train_counts(settings, tmp_path):
    text = HANDLER.replace(
        "return self.numbers[:-2], self.numbers[-2:]", "return object(), object()"
    )
    text += "\n    def get_train_counts(self):\n        return 1 << 40\n"
    (tmp_path / "numbers_file.py").write_text(text)
    body = """
        def train(self, data, context):
            return {}

        def evaluate(self, data, context):
            return {"loss": 1, "n_samples": 12}
    """
    write(tmp_path, changed(body))
    weights, parties, _ = federation(settings)
    assert parties["a"].join(weights).n_train.tolist() == [1 << 40]
    assert parties["a"].evaluate(weights).scores.n_samples == 12


def test_parties_of_one_data_set_get_samples_and_targets(settings, tmp_path):
    body = """
        def train(self, data, context):
            x, y = data
            assert x.shape == (30, 1, 28, 28) and y.shape == (30,)
            return {"loss": 1}

        def evaluate(self, data, context):
            x, y = data
            return {"loss": float(len(x) == len(y))}
    """
    write(tmp_path, changed(body))
    del settings["parties"], settings["data_handler"]
    from support.local_rounds import group_of

    partition = {"samples_per_party": 30}
    group, weights = group_of(
        settings | {"partition": partition, "num_parties": 3}, range(3)
    )
    group.join(weights)
    _, update = group.train(1, np.arange(3), weights)
    assert update.n_parties == 3
    assert group.evaluate(weights).scores.n_samples == 1000


@pytest.mark.parametrize(
    "key",
    ["optimizer", "loss", "batch_size", "architecture", "proximal_mu", "normalize"],
)
def test_a_key_of_networks_is_an_error_by_name(key, settings):
    values = {
        "optimizer": "SGD",
        "loss": "mse_loss",
        "batch_size": 3,
        "architecture": "a.py:f",
        "proximal_mu": 1.0,
        "normalize": "federated",
    }
    _, mistakes = parse(settings | {key: values[key]})
    assert any(
        f"{key} has no effect with model_type" in mistake for mistake in mistakes
    )


def test_rest_takes_no_code_as_a_model_type():
    for model_type in ("mean.py:Mean", "/tmp/mean.py:Mean", "mean.py"):
        with pytest.raises(ConfigError, match="names code"):
            read_settings({"model_type": model_type, "num_parties": 2}, 10)


def test_a_start_model_is_read_from_a_file_of_the_same_arrays(settings, tmp_path):
    np.savez(
        tmp_path / "start.npz",
        **{"m": np.full(1, 4, np.float32), "n/steps": np.array(9)},
    )
    config, _ = parse(settings | {"model_file": str(tmp_path / "start.npz")})
    _, weights = named(config.model_type).read(config)
    assert weights["m"] == 4
    assert weights["n/steps"].shape == ()
    np.savez(tmp_path / "other.npz", m=np.zeros(2, np.float32))
    for file, words in (("other.npz", "n/steps"), ("mean.py", "Python code")):
        config, _ = parse(settings | {"model_file": str(tmp_path / file)})
        with pytest.raises(ModelFileError, match=words):
            named(config.model_type).read(config)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_shows_metrics_leaves_its_arrays_and_the_files_of_save(
    settings, tmp_path, capsys
):
    body = """
        def save(self, path):
            import pathlib
            pathlib.Path(f"{path}.txt").write_text(str(self.weights["m"][0]))

        def predict(self, x):
            return x * 2
    """
    write(
        tmp_path,
        changed(body),
    )
    import yaml

    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(settings | {"rounds": 3, "aggregation": "adaptive"})
    )
    assert (
        main(["run", str(tmp_path / "run.yaml"), "--run-dir", str(tmp_path / "run")])
        == 0
    )
    assert "error" in capsys.readouterr().out
    lines = [
        json.loads(line)
        for line in (tmp_path / "run/history.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["metrics"]["round"] == 3
    assert lines[-1]["metrics"]["error"] == lines[-1]["loss"]
    weights = np.load(tmp_path / "run/global_model.npz")
    saved = (tmp_path / "run/global_model.txt").read_text()
    assert float(saved) == pytest.approx(weights["m"][0])
    assert "error" in (tmp_path / "run/report.html").read_text()
    (tmp_path / "run/global_model.pt").write_bytes(b"what save() may write")
    again = read_config(settings | {"model_file": str(tmp_path / "run")})
    assert again.model_file == str(tmp_path / "run/global_model.npz")
    loaded = fedray.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(np.ones((2, 1))), [[2], [2]])


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_check_trains_twice_and_names_what_differs(settings, tmp_path):
    body = """
        n = 0

        def train(self, data, context):
            self.n += 1
            self.weights["m"] += self.n
            return {}
    """
    write(tmp_path, changed(body))
    result = check(read_config(settings))
    assert result.problems == []
    assert (
        len([n for n in result.notes if "'m' (1 of 2)" in n and "context.seed" in n])
        == 2
    )
    write(tmp_path, changed(BAD_CALLS["a loss of nan"][0]))
    result = check(read_config(settings))
    assert len(result.problems) == 2
    assert result.problems[0].startswith("party a: ")
    assert "loss nan" in result.problems[0]


@pytest.mark.parametrize("rule", ["iter_avg", "fedadam", "median", "geometric_median"])
def test_rules_of_all_kinds_fuse_its_weights(rule, settings, tmp_path):
    np.save(tmp_path / "c.npy", np.full(4, 5.0))
    settings["parties"].append({"name": "c", "data": str(tmp_path / "c.npy")})
    weights = fedray_rounds(settings | {"fusion_algorithm": rule})
    # from 0 the parties go to 1, 4 and 2.5; one step of Adam is the learning rate
    expected = {"iter_avg": 2.5, "fedadam": 0.01, "median": 2.5}.get(rule)
    if expected is None:
        assert 1 < weights["m"][0] < 4
    else:
        np.testing.assert_allclose(
            weights["m"], [expected], rtol=0.2 * (rule == "fedadam") + 1e-6
        )


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_that_was_stopped_and_goes_on_gives_the_same_bits(settings, tmp_path):
    body = """
        def train(self, data, context):
            self.weights["m"] += np.random.normal() * data.mean()
            return {"loss": 0}
    """
    write(tmp_path, changed(body))
    whole = fedray.run(settings, rounds=4, run_dir=tmp_path / "whole")
    fedray.run(settings, rounds=2, run_dir=tmp_path / "parts")
    parts = fedray.run(settings, rounds=4, run_dir=tmp_path / "parts", resume=True)
    for name, array in whole.weights().items():
        np.testing.assert_array_equal(array, parts.weights()[name], strict=True)
    write(tmp_path, MEAN)
    with pytest.raises(FedrayError, match=r"model_type mean.py is not what it was"):
        fedray.run(settings, rounds=5, run_dir=tmp_path / "parts", resume=True)
