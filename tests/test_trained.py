"""Trained models: predictions for every loss, scores, files of predictions, ONNX."""

import csv
import json
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import fedray
from fedray import models
from fedray.cli import main
from fedray.config import FederationConfig
from fedray.data import MnistPytorch
from fedray.ensemble import DataSource, Ensemble, Member, evaluate_data, export_onnx
from fedray.errors import DataError

X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
CODE = """
    import torch
    from torch import nn

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            return self.layer(x).reshape(-1, 3, 2)

    def one(): return nn.Linear(4, 1)
    def three(): return nn.Linear(4, 3)
    def four(): return nn.Linear(4, 4)
    def log_three(): return nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
    def sigmoid(): return nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    def pixels(): return Pixels()
"""
KERAS = """
    import keras
    from keras import layers

    def sigmoid():
        return keras.Sequential([keras.Input((4,)), layers.Dense(1, "sigmoid")])

    def two_inputs():
        p, q = keras.Input((4,), name="p"), keras.Input((3,), name="q")
        return keras.Model([p, q], layers.Dense(2)(layers.Concatenate()([p, q])))

    def softmax():
        return keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])

    def value():
        return keras.Sequential([keras.Input((4,)), layers.Dense(2)])
"""
LOSSES = {  # name of the model -> loss, what predictions are of its outputs
    "one": ("binary_cross_entropy_with_logits", torch.sigmoid),
    "three": ("cross_entropy", lambda out: out.softmax(1)),
    "log_three": ("nll_loss", torch.exp),
    "sigmoid": ("binary_cross_entropy", lambda out: out),
    "four": ("mse_loss", lambda out: out),
    "pixels": ("cross_entropy", lambda out: out.softmax(1).movedim(1, -1)),
}


def trained(tmp_path, code, name, **settings):
    """A model of freshly drawn weights, ready to predict."""
    file = tmp_path / "made.py"
    file.write_text(textwrap.dedent(code))
    config = FederationConfig(architecture=f"{file}:{name}", **settings)
    blueprint, weights = models.named(config.model_type).read(config)
    return Ensemble([Member("all", blueprint.settle(config), blueprint, weights)])


@pytest.mark.parametrize("name", LOSSES)
def test_predictions_are_in_the_terms_of_the_targets(tmp_path, name):
    loss, by_hand = LOSSES[name]
    model = trained(tmp_path, CODE, name, loss=loss)
    with torch.no_grad():
        expected = by_hand(model.module(torch.from_numpy(X)).double())
    np.testing.assert_allclose(model.predict(X), expected.numpy(), atol=1e-7)
    assert model.predict(X).dtype == np.float64


def test_several_outputs_of_yes_or_no_have_a_class_each(tmp_path):
    loss = "binary_cross_entropy_with_logits"
    model = trained(tmp_path, CODE, "three", loss=loss)
    with torch.no_grad():
        out = model.module(torch.from_numpy(X)).numpy()
    np.testing.assert_array_equal(model.classes(X), out > 0)
    y = (out > 0).astype(np.float32)
    y[0] = 1 - y[0]  # one of seven is wrong
    assert model.evaluate(X, y).accuracy == pytest.approx(6 / 7)


def test_counts_are_predicted_as_counts_not_as_their_logarithms(tmp_path):
    model = trained(tmp_path, CODE, "one", loss="poisson_nll_loss")
    with torch.no_grad():
        expected = model.module(torch.from_numpy(X)).double().exp()
    np.testing.assert_allclose(model.predict(X), expected.numpy(), rtol=1e-6)
    with pytest.raises(DataError, match="one of classes"):
        model.classes(X)


def test_classes_of_positions_are_along_their_own_axis(tmp_path):
    model = trained(tmp_path, CODE, "pixels", loss="cross_entropy")
    with torch.no_grad():
        expected = model.module(torch.from_numpy(X)).argmax(1)
    assert model.classes(X).shape == (7, 2)
    np.testing.assert_array_equal(model.classes(X), expected.numpy())
    assert model.evaluate(X, expected.numpy()).accuracy == 1


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("sigmoid", "binary_crossentropy"),
        ("softmax", "categorical_crossentropy"),
        ("value", "mean_squared_error"),
    ],
)
def test_a_keras_model_predicts_what_it_gives(tmp_path, name, loss):
    pytest.importorskip("fedray.models.keras")  # which chooses the backend
    model = trained(tmp_path, KERAS, name, loss=loss, model_type="keras")
    expected = model.module.predict(X, verbose=0)
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-6)


def test_evaluate_gives_the_loss_of_training(tmp_path):
    model = trained(tmp_path, CODE, "four", loss="mse_loss")
    with torch.no_grad():
        out = model.module(torch.from_numpy(X))
    score = model.evaluate(X, out.numpy() + 2)
    assert score.loss == pytest.approx(4, rel=1e-5)  # (out + 2 - out)²
    assert (score.accuracy, score.n_samples) == (None, 7)
    with pytest.raises(DataError, match=r"targets of shape \[3\]"):
        model.evaluate(X, np.zeros((7, 3), np.float32))


def test_samples_that_the_model_does_not_take_are_named(tmp_path):
    model = trained(tmp_path, CODE, "three", loss="cross_entropy")
    with pytest.raises(DataError, match=r"for member all.*shape \[5\]"):
        model.predict(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("name", ["three", "pixels"])
def test_onnx_computes_the_same_for_batches_of_any_size(tmp_path, name):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")

    model = trained(tmp_path, CODE, name, loss="cross_entropy")
    export_onnx(model, tmp_path / "model.onnx", shape=(4,))
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (given,) = session.get_inputs()
    (out,) = session.run(None, {given.name: X})
    with torch.no_grad():
        expected = model.module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "two_inputs"])
def test_onnx_of_keras_computes_the_same_for_batches_of_any_size(tmp_path, name):
    pytest.importorskip("fedray.models.keras")  # which chooses the backend
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = trained(
        tmp_path, KERAS, name, model_type="keras", loss="mean_squared_error"
    )
    x = {"p": X, "q": X[:, :3]} if name == "two_inputs" else X
    model.models[0].export_onnx(x, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    arrays = x.values() if name == "two_inputs" else [x]
    given = [one.name for one in session.get_inputs()]
    (out,) = session.run(None, dict(zip(given, arrays, strict=True)))
    np.testing.assert_allclose(out, model.predict(x), atol=1e-6)


def test_a_model_that_torch_cannot_export_is_told(tmp_path):
    pytest.importorskip("onnxscript")
    from fedray.errors import ModelFileError

    model = trained(tmp_path, CODE, "three", loss="cross_entropy")

    class Hostile(nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.sort(x.detach().numpy()))

    model.models[0].module = Hostile()
    with pytest.raises(ModelFileError, match="torch cannot export this model"):
        export_onnx(model, tmp_path / "model.onnx", shape=(4,))
    assert not (tmp_path / "model.onnx").exists()


@pytest.fixture
def command(capsys):
    """Runs a command; its exit code, what it prints and its errors."""

    def run(*words):
        code = main(list(map(str, words)))
        return code, *capsys.readouterr()

    return run


def test_the_commands_score_and_predict_a_finished_run(
    cluster, settings, command, tmp_path
):
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=1)
    (_, _), (x, y) = MnistPytorch("mnist").get_data()
    kept = np.r_[0:20, 40:60]  # a's and b's own test digits
    data, run = tmp_path / "d.npz", tmp_path / "run"
    np.savez(data, x_train=x[:1], y_train=y[:1], x_test=x[kept], y_test=y[kept])
    code, out, _ = command("evaluate", run, "--data", data, "--json")
    score = json.loads(out)
    assert (code, score["n_samples"], score["part"]) == (0, 40, "test")
    assert score["accuracy"] == pytest.approx(result.accuracy)
    assert score["loss"] == pytest.approx(result.loss, rel=1e-5)
    for name in ("p.csv", "p.npz"):
        assert command("predict", run, "--data", data, "--out", tmp_path / name)[0] == 0
    predicted = fedray.load(run).predict(x[kept])
    with np.load(tmp_path / "p.npz") as file:
        np.testing.assert_array_equal(file["predictions"], predicted)
        assert (file["labels"] == y[kept]).mean() == pytest.approx(result.accuracy)
    rows = list(csv.reader((tmp_path / "p.csv").open()))
    assert rows[0][:3] == ["sample", "label", "probability of 0"]
    np.testing.assert_array_equal(np.array(rows[1:], float)[:, 2:], predicted)
    code, _, errors = command("predict", run, "--data", data, "--out", "no/p.csv")
    assert (code, "no/p.csv cannot be written: No such file" in errors) == (1, True)
    code, _, errors = command("predict", run, "--data", data, "--out", "p.txt")
    assert (code, "needed .csv or .npz" in errors) == (1, True)


def test_a_model_file_alone_needs_a_data_handler(command, tmp_path):
    alone = tmp_path / "alone.pt"
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), alone)
    code, _, errors = command("evaluate", alone, "--data", "mnist")
    assert (code, "needed --data-handler" in errors) == (1, True)
    more = ("--data-handler", "mnist_pytorch", "--part", "all")
    code, out, _ = command("evaluate", alone, "--data", "mnist", *more)
    assert (code, out.splitlines()[0]) == (0, "5,000 samples of mnist")


def test_an_autoencoder_is_scored_by_its_inputs(tmp_path):
    model = trained(tmp_path, CODE, "four", loss="mse_loss")
    expected = ((model.predict(X) - X) ** 2).mean()
    assert model.evaluate(X).loss == pytest.approx(expected, rel=1e-5)
    np.savez(tmp_path / "d.npz", x=X)
    source = DataSource(str(tmp_path / "d.npz"), "npz", options={"y": []})
    assert evaluate_data(model, source).loss == pytest.approx(expected, rel=1e-5)
    classifier = trained(tmp_path, CODE, "three", loss="cross_entropy")
    with pytest.raises(DataError, match="no targets, so that the inputs are the tar"):
        classifier.evaluate(X)


@pytest.mark.parametrize("part", [None, "train", "all", "test"])
def test_a_file_without_tests_of_its_own_counts_once_and_whole(part, command, tmp_path):
    model, file = tmp_path / "m.pt", tmp_path / "d.npz"
    torch.save(nn.Sequential(nn.Linear(4, 3)), model)
    np.savez(file, x=X, y=np.arange(len(X)) % 3)
    words = ("--data", file, "--data-handler", "npz")
    words += ("--part", part) if part else ()
    code, out, _ = command("evaluate", model, *words)
    name = f"{part} " if part in ("train", "test") else ""
    assert (code, out.splitlines()[0]) == (0, f"{len(X)} {name}samples of {file}")
    code, _, _ = command("predict", model, *words, "--out", tmp_path / "p.csv")
    assert code == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == len(X) + 1


def test_each_part_of_an_image_folder_is_its_own(command, tmp_path):
    image = pytest.importorskip("PIL.Image")
    model, pets = tmp_path / "m.pt", tmp_path / "pets"
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), model)
    for part, n_images in (("train", 3), ("test", 1)):
        for label in ("cat", "dog"):
            (pets / part / label).mkdir(parents=True)
            for i in range(n_images):
                image.new("RGB", (2, 2)).save(pets / part / label / f"{i}.png")
    words = ("evaluate", model, "--data", pets, "--data-handler", "image_folder")
    for part, n_images in (("train", 6), ("test", 2), ("all", 8)):
        _, out, _ = command(*words, "--part", part, "--json")
        assert json.loads(out)["n_samples"] == n_images


ROWS = """
    import numpy as np

    class Rows:
        def __init__(self, path):
            with np.load(path) as file:
                self.x, self.y = file["x"], file["y"]

        def get_data(self):
            return (self.x, self.y), None

    class Listed(Rows):
        def get_data(self):
            return Items(self.x, self.y), None

    class Items:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __len__(self):
            return len(self.x)

        def __getitem__(self, place):
            return self.x[place], self.y[place]
"""


@pytest.mark.parametrize("handler", ["Rows", "Listed"])
def test_a_run_of_an_ensemble_is_scored_on_data_as_its_parties_read_them(
    command, tmp_path, handler
):
    own = [trained(tmp_path, CODE, "three", seed=seed).members[0] for seed in (0, 1)]
    members = [replace(member, name=n) for member, n in zip(own, "ab", strict=True)]
    y = np.arange(7) % 3
    np.savez(tmp_path / "d.npz", x=X, y=y)
    (tmp_path / "rows.py").write_text(textwrap.dedent(ROWS))
    run, made = tmp_path / "run", Ensemble(members)
    made.save(run)
    config = {
        "fusion_algorithm": "ensemble", "data_handler": f"{tmp_path}/rows.py:{handler}",
        "architecture": f"{tmp_path}/made.py:three", "loss": "cross_entropy",
        "parties": [{"name": name, "data": f"{tmp_path}/d.npz"} for name in "ab"],
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    code, out, errors = command("evaluate", run, "--data", tmp_path / "d.npz", "--json")
    assert (code, errors) == (0, "")
    expected = np.mean([one.predict(X) for one in made.models], 0)
    score = json.loads(out)
    assert score["accuracy"] == pytest.approx((expected.argmax(1) == y).mean())
    loss = -np.log(expected[np.arange(7), y]).mean()
    assert score["loss"] == pytest.approx(loss)
    out = tmp_path / "p.npz"
    assert command("predict", run, "--data", tmp_path / "d.npz", "--out", out)[0] == 0
    np.testing.assert_allclose(np.load(out)["predictions"], expected, atol=1e-12)
