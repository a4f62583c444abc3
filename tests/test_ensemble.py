"""Members of unlike models: read, trained apart, put together, loaded, distilled."""

import json

import numpy as np
import pytest
import torch
from test_reference import assert_close
from test_turnover import kill_aggregator
from torch import nn

import fedray
from fedray.data import MnistPytorch
from fedray.ensemble import Form, disagreeing, fitted
from fedray.errors import (
    ConfigError,
    DataError,
    JoinFailed,
    ModelFileError,
    RoundFailed,
    RunFolderError,
)
from fedray.federation import read_config
from fedray.federation.check import check

KERAS = """
    import keras

    def model():
        return keras.Sequential([
            keras.Input((28, 28, 1)), keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ])
"""


@pytest.fixture
def unlike(tmp_path, settings):
    """A torch MLP at party a, a Keras model at b; tests at the aggregator."""
    file = tmp_path / "k.py"
    file.write_text("\n".join(line[4:] for line in KERAS.splitlines()))
    del settings["architecture"], settings["loss"], settings["optimizer"]
    a, b = settings["parties"]
    a |= {"architecture": f"{tmp_path}/mlp.py:mlp", "epochs": 2}
    b |= {
        "model_type": "keras",
        "architecture": f"{file}:model",
        "loss": "categorical_crossentropy",
        "data_handler": "mnist_keras",
    }
    return settings | {"fusion_algorithm": "ensemble", "test_data": a["data"]}


def test_one_array_comes_to_each_member_in_its_own_layout():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert (fitted(x, (4, 5, 3), "m")[1, 2, 3, 1] == x[1, 1, 2, 3]).all()
    assert (fitted(np.moveaxis(x, 1, 3), (3, 4, 5), "m") == x).all()
    grey = np.arange(12).reshape(2, 2, 3)
    for shape in ((1, 2, 3), (2, 3, 1), (6,)):
        assert fitted(grey, shape, "m").shape == (2, *shape)
        assert (fitted(grey, shape, "m").ravel() == grey.ravel()).all()
    # three channels in a row, another size, sides swapped: no one meaning
    for shape in ((60,), (3, 4, 6), (5, 4, 3)):
        with pytest.raises(DataError, match="member m: got samples"):
            fitted(x, shape, "m")


def test_who_tells_other_classes_apart_is_named():
    forms = {"a": Form((4,), 10), "b": Form((4,), 7), "c": Form((2, 2), 10)}
    found = disagreeing(forms, fedray.FederationConfig())
    assert list(found) == ["b"]
    assert "tells 7 classes apart, most others 10" in found["b"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"aggregation": "adaptive"}, "aggregation does not go with ensemble"),
        ({"party_fraction": 0.5}, "party_fraction does not go with ensemble"),
        ({"groups": {"by": "similarity"}}, "groups does not go with ensemble"),
        ({"member_weights": "accuracy", "test_data": None}, "needs test_data"),
        ({"distill": "none.pt"}, "distill_data (what for) go together"),
        ({"distill": "none.pt", "distill_data": "x.npz"}, "does not exist"),
        ({"fusion_algorithm": "fedavg"}, "party 'b': ['model_type', 'architecture'"),
        ({"optimizer": "Nonsense"}, "party 'b': unknown optimizer 'Nonsense'"),
    ],
)
def test_what_does_not_go_together_is_told_at_once(unlike, change, told):
    with pytest.raises(ConfigError) as error:
        read_config(unlike | change)
    assert told in str(error.value)


def test_a_party_without_a_model_is_named(unlike):
    del unlike["parties"][0]["architecture"]
    with pytest.raises(ConfigError, match="party 'a': model_file is missing"):
        read_config(unlike)


def test_unlike_members_answer_together_and_are_distilled(cluster, unlike, tmp_path):
    (x, _), (x_test, y_test) = MnistPytorch("mnist").get_data()
    np.savez(tmp_path / "unlabeled.npz", x=(x[:200] * 255).astype(np.uint8))
    more = {
        "distill": f"{tmp_path}/mlp.py:mlp",
        "distill_data": str(tmp_path / "unlabeled.npz"),
        "distill_epochs": 30,
        "member_weights": "accuracy",
    }
    run = tmp_path / "run"
    result = fedray.run(unlike | more, run_dir=run)
    assert [line.group for line in result.history] == ["a", "b"] * 2
    made = fedray.load(run)
    each, told = made.each(x_test), made.predict(x_test)
    assert [(m.name, m.config.model_type) for m in made.members] == [
        ("a", "pytorch"),
        ("b", "keras"),
    ]
    # the mean by hand; the accuracy that was told, on the 20 first test digits
    wa, wb = (line.accuracy for line in result.history[-2:])
    by_hand = (wa * each["a"] + wb * each["b"]) / (wa + wb)
    np.testing.assert_allclose(told, by_hand, atol=1e-12)
    np.testing.assert_allclose(told.sum(1), 1, atol=1e-6)  # Keras's are float32
    right = made.classes(x_test[:20]) == y_test[:20]
    assert result.accuracy == pytest.approx(right.mean())
    for name, line in zip("ab", result.history[-2:], strict=True):
        own = (each[name][:20].argmax(1) == y_test[:20]).mean()
        assert own == pytest.approx(line.accuracy)
    # other layouts, a copy elsewhere: the same answers
    np.testing.assert_array_equal(made.predict(x_test[:, 0, :, :, None]), told)
    made.save(tmp_path / "copy")
    np.testing.assert_array_equal(fedray.load(tmp_path / "copy").predict(x_test), told)
    # the student agrees with its teachers on what it learned from
    kept = json.loads((run / "ensemble.json").read_text())
    assert result.model == run / kept["student"] == run / "global_model.pt"
    assert kept["distill_loss"] < 0.1
    # gone on with after its last round: nothing trains, the same is put together
    (run / "ensemble.json").unlink()
    again = fedray.run(unlike | more, run_dir=run, resume=True)
    assert again.accuracy == result.accuracy
    assert len(again.history) == 4
    assert json.loads((run / "ensemble.json").read_text()) == kept


def test_a_member_of_other_classes_cannot_join(cluster, unlike, tmp_path):
    code = (tmp_path / "k.py").read_text()
    (tmp_path / "k.py").write_text(code.replace("Dense(10", "Dense(12"))
    b = dict(unlike["parties"][1], loss="sparse_categorical_crossentropy")
    del b["data_handler"]
    b |= {"name": "c", "data_handler": "mnist_keras"}
    config = unlike | {"parties": [unlike["parties"][0], b], "rounds": 1}
    told = "c: its model tells 12 classes apart"
    with pytest.raises(JoinFailed, match=told):
        fedray.run(config, run_dir=tmp_path / "run")
    found = check(read_config(config))
    assert [told in problem for problem in found.problems] == [True]
    assert found.model["model_type"] == "keras, pytorch"


@pytest.fixture
def two_nets(settings, tmp_path):
    """Two members of one framework and different widths: quick to train."""
    (tmp_path / "wide.py").write_text(
        "from torch import nn\n\ndef wide():\n    return nn.Sequential("
        "nn.Flatten(), nn.Linear(784, 24), nn.Tanh(), nn.Linear(24, 10))\n"
    )
    settings["parties"][1]["architecture"] = f"{tmp_path}/wide.py:wide"
    return settings | {"fusion_algorithm": "ensemble", "rounds": 6}


def members_of(result) -> dict:
    return {name: result.weights(name) for name in "ab"}


def test_a_killed_aggregator_goes_on_to_the_same_members(cluster, two_nets, tmp_path):
    plain = members_of(fedray.run(two_nets, run_dir=tmp_path / "plain"))
    killed = []

    def kill(progress):
        if progress.round >= 3 and not killed:
            killed.append(progress.round)
            kill_aggregator("killed")

    result = fedray.run(two_nets, run_dir=tmp_path / "killed", watch=kill)
    assert killed
    assert [line.group for line in result.history] == ["a", "b"] * 6
    for name, weights in members_of(result).items():
        assert_close(weights, plain[name], 0)


def test_a_narrow_wire_leaves_members_their_own_floats(cluster, two_nets, tmp_path):
    two_nets["rounds"] = 2
    wide = fedray.run(two_nets, run_dir=tmp_path / "wide")
    narrow = fedray.run(two_nets, run_dir=tmp_path / "narrow", wire_dtype="float16")
    moved = [sum(line.bytes_moved for line in r.history) for r in (wide, narrow)]
    assert moved[1] == moved[0] / 2
    for name, weights in members_of(narrow).items():
        assert {str(array.dtype) for array in weights.values()} == {"float32"}
        assert_close(weights, members_of(wide)[name], 2e-3)


def test_what_loads_and_what_does_not(cluster, two_nets, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    runs = tmp_path / ".fedray" / "runs"
    result = fedray.run(two_nets, rounds=1, name="named")
    x = MnistPytorch("mnist").get_data()[1][0][:5]
    told = fedray.load("named").predict(x)
    for path in (runs / "named", str(runs / "named"), runs / "named" / "ensemble.json"):
        np.testing.assert_array_equal(fedray.load(path).predict(x), told)
    with pytest.raises(ModelFileError, match="arrays without their layers"):
        fedray.load(result.models["a"])  # made by code, which lies with the run
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1))
    torch.save(net, tmp_path / "whole.pt")
    with torch.no_grad():
        plain = net(torch.from_numpy(x)).numpy()
    alone = fedray.load(tmp_path / "whole.pt")
    assert [member.name for member in alone.members] == ["whole"]
    assert (alone.classes(x) == plain.argmax(1)).all()
    with pytest.raises(RunFolderError, match="nowhere: there is no run and no ens"):
        fedray.load("nowhere")
    (tmp_path / "text.pt").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.pt"):
        fedray.load(tmp_path / "text.pt")
    (runs / "named" / "ensemble.json").unlink()
    with pytest.raises(RunFolderError, match=r"let it end, or load one of \["):
        fedray.load("named")


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((0, 1, 28, 28), "f4"), r"shape \[0, 1, 28, 28\]"),
        (np.zeros(784, "f4"), r"float32 of shape \[784\]; needed an array x or x_tra"),
        (np.zeros((4, 784), "i8"), r"int64 of shape \[4, 784\]"),
        (np.full((4, 1, 28, 28), np.nan, "f4"), "NaN or infinity; needed finite"),
        (np.zeros((4, 3, 5), "f4"), "shape"),  # no 784 numbers: the model refuses it
    ],
)
def test_a_distill_set_of_the_wrong_shape_is_told_before_anyone_trains(
    two_nets, tmp_path, array, told
):
    np.savez(tmp_path / "unlabeled.npz", x=array)
    two_nets |= {
        "distill": f"{tmp_path}/mlp.py:mlp",
        "distill_data": str(tmp_path / "unlabeled.npz"),
    }
    with pytest.raises(DataError, match=told) as error:
        fedray.run(two_nets, run_dir=tmp_path / "run")
    assert "distill_data" in str(error.value)
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_a_member_that_fails_is_named(cluster, settings, trouble, tmp_path):
    trouble("fail")
    config = settings | {"fusion_algorithm": "ensemble"}
    with pytest.raises(RoundFailed, match="trouble was asked for"):
        fedray.run(config, run_dir=tmp_path / "run")


def test_an_ordinary_run_loads_as_an_ensemble_of_one(cluster, settings, tmp_path):
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    (_, _), (x_test, y_test) = MnistPytorch("mnist").get_data()
    right = fedray.load(tmp_path / "run").classes(x_test) == y_test
    both = np.r_[0:20, 40:60]  # a's and b's own test digits
    assert right[both].mean() == pytest.approx(result.accuracy)
