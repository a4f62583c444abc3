"""Members of unlike models: read, trained apart, put together, loaded, distilled."""

import json

import numpy as np
import pytest

import fedray
from fedray.data import MnistPytorch
from fedray.ensemble import MemberSignature, fit_samples, incompatible_members
from fedray.errors import ConfigError, DataError, JoinFailed, RoundFailed
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


def test_samples_are_reshaped_to_each_members_layout():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert (fit_samples(x, (4, 5, 3), "m")[1, 2, 3, 1] == x[1, 1, 2, 3]).all()
    assert (fit_samples(np.moveaxis(x, 1, 3), (3, 4, 5), "m") == x).all()
    grey = np.arange(12).reshape(2, 2, 3)
    for shape in ((1, 2, 3), (2, 3, 1), (6,)):
        assert fit_samples(grey, shape, "m").shape == (2, *shape)
        assert (fit_samples(grey, shape, "m").ravel() == grey.ravel()).all()
    # three channels in a row, another size, sides swapped: no one meaning
    for shape in ((60,), (3, 4, 6), (5, 4, 3)):
        with pytest.raises(DataError, match="member m: got samples"):
            fit_samples(x, shape, "m")


def test_a_member_with_another_number_of_classes_is_named():
    forms = {
        "a": MemberSignature((4,), 10),
        "b": MemberSignature((4,), 7),
        "c": MemberSignature((2, 2), 10),
    }
    found = incompatible_members(forms, fedray.FederationConfig())
    assert list(found) == ["b"]
    assert "tells 7 classes apart, most others 10" in found["b"]


def test_a_member_whose_sample_shape_does_not_fit_is_named():
    shapes = {"a": (1, 28, 28), "b": (784,), "c": (1, 14, 14), "d": (28, 28, 1)}
    forms = {name: MemberSignature(shape, 10) for name, shape in shapes.items()}
    found = incompatible_members(forms, fedray.FederationConfig())
    assert list(found) == ["c"]
    assert "samples are [1, 14, 14], most others' [1, 28, 28]" in found["c"]


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
        ({"optimizer_args": {"lr": 1}}, "party 'a': optim.SGD refuses optimizer_args"),
    ],
)
def test_conflicting_settings_are_reported_when_the_config_is_read(
    unlike, change, told
):
    with pytest.raises(ConfigError) as error:
        read_config(unlike | change)
    assert told in str(error.value)


def test_a_member_has_its_own_optimizer_with_its_arguments(unlike):
    a, b = unlike["parties"]
    b |= {"optimizer": "Adam", "loss_args": {"label_smoothing": 0.1}}
    everyones = {"optimizer": "optim.SGD", "optimizer_args": {"momentum": 0.5}}
    config = read_config(unlike | everyones)
    assert config.member(0).optimizer_args == {"momentum": 0.5}
    assert config.member(1).optimizer_args == {}  # SGD's are not for its Adam
    assert config.member(1).loss_args == {"label_smoothing": 0.1}
    a["optimizer_args"] = {"momentum": 0.9, "nesterov": True}
    b["optimizer_args"] = {"beta_1": 0.8}
    config = read_config(read_config(unlike | everyones))
    assert config.member(0).optimizer_args == a["optimizer_args"]
    assert config.member(1).optimizer_args == b["optimizer_args"]
    b["optimizer_args"] = {"beta": 0.8}
    with pytest.raises(ConfigError, match="party 'b': Adam refuses optimizer_args"):
        read_config(unlike | everyones)


def test_a_party_without_a_model_is_named(unlike):
    del unlike["parties"][0]["architecture"]
    with pytest.raises(ConfigError, match="party 'a': model_file is missing"):
        read_config(unlike)


def test_members_of_two_frameworks_predict_together_and_are_distilled(
    cluster, unlike, tmp_path
):
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
    # the mean by hand: of the 20 first test digits every second one weighs, the others
    # tell the accuracy
    wa, wb = ((said[:20:2].argmax(1) == y_test[:20:2]).mean() for said in each.values())
    assert wa != wb
    by_hand = (wa * each["a"] + wb * each["b"]) / (wa + wb)
    np.testing.assert_allclose(told, by_hand, atol=1e-12)
    np.testing.assert_allclose(told.sum(1), 1, atol=1e-6)  # Keras's are float32
    right = made.classes(x_test[1:20:2]) == y_test[1:20:2]
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
    assert result.model == run / "global_model.pt"
    assert kept["distill_loss"] < 0.1
    student = fedray.load(result.model)  # its code lies beside it
    right = student.classes(x_test[1:20:2]) == y_test[1:20:2]
    assert kept["student_accuracy"] == pytest.approx(right.mean())
    # gone on with after its last round: nothing trains, the same is put together
    (run / "ensemble.json").unlink()
    again = fedray.run(unlike | more, run_dir=run, resume=True)
    assert again.accuracy == result.accuracy
    assert len(again.history) == 4
    assert json.loads((run / "ensemble.json").read_text()) == kept


def test_a_member_with_other_classes_cannot_join(cluster, unlike, tmp_path):
    code = (tmp_path / "k.py").read_text()
    (tmp_path / "k.py").write_text(code.replace("Dense(10", "Dense(12"))
    b = dict(unlike["parties"][1], loss="sparse_categorical_crossentropy")
    (tmp_path / "labels.py").write_text(
        "from fedray.data import MnistKeras\n"
        "class Labels(MnistKeras):\n"
        "    def get_data(self):\n"
        "        return [(x, rows.argmax(1)) for x, rows in super().get_data()]\n"
    )
    b |= {"name": "c", "data_handler": f"{tmp_path}/labels.py:Labels"}
    config = unlike | {"parties": [unlike["parties"][0], b], "rounds": 1}
    told = "c: its model tells 12 classes apart"
    with pytest.raises(JoinFailed, match=told):
        fedray.run(config, run_dir=tmp_path / "run")
    found = check(read_config(config))
    assert [told in problem for problem in found.problems] == [True]
    assert found.model["model_type"] == "keras, pytorch"


def test_a_member_that_fails_is_named(cluster, settings, trouble, tmp_path):
    trouble("fail")
    config = settings | {"fusion_algorithm": "ensemble"}
    with pytest.raises(RoundFailed, match="trouble was asked for"):
        fedray.run(config, run_dir=tmp_path / "run")


def test_a_run_with_one_global_model_loads_as_an_ensemble_of_one(
    cluster, settings, tmp_path
):
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    (_, _), (x_test, y_test) = MnistPytorch("mnist").get_data()
    both = np.r_[0:20, 40:60]  # a's and b's own test digits
    for path in (tmp_path / "run", result.model):  # arrays, whose code the config names
        right = fedray.load(path).classes(x_test) == y_test
        assert right[both].mean() == pytest.approx(result.accuracy)
