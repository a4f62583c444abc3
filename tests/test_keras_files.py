"""Keras files: read exactly, written for plain Keras, refused when hostile."""

import json
import resource
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedray import models
from fedray.config import parse
from fedray.errors import ConfigError, ModelFileError
from fedray.models.keras.backend import keras
from fedray.models.keras.build import build
from fedray.models.keras.safe_load import ACTIVATIONS, LAYERS

L = keras.layers
ADAPTER = models.named("keras")
PARTS = {"partition": {}, "num_parties": 2, "model_type": "keras"}


def read(path, **settings):
    """Blueprint and weights of a file or, without one, of an architecture."""
    given = {"model_file": str(path)} if path else {}
    config, found = parse({**PARTS, **given, **settings})
    assert found == []
    return ADAPTER.read(config)


def small():
    """As small as it gets, with everything that may be special in it."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(4, activation="relu", kernel_regularizer="l2"),
            L.BatchNormalization(),
            L.Dropout(0.5),
            L.Dense(3, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """small.keras, small.h5 and small.weights.h5, compiled and fitted once."""
    folder = tmp_path_factory.mktemp("keras")
    model = small()
    rate = keras.optimizers.Adam(3e-3, beta_1=0.8)
    model.compile(rate, "categorical_crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).random((8, 6), np.float32)
    model.fit(x, np.eye(3)[np.arange(8) % 3], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("small.keras", "small.h5"):
            model.save(folder / name)
        model.save_weights(folder / "small.weights.h5")
    return folder


def loaded(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return keras.saving.load_model(path)


# What people save


@pytest.mark.parametrize("name", ["small.keras", "small.h5"])
def test_a_whole_model_is_read_in_the_order_of_get_weights(folder, name):
    blueprint, weights = read(folder / name)
    theirs = loaded(folder / name).get_weights()
    assert len(theirs) == len(weights) == 8
    for ours, other in zip(weights.values(), theirs, strict=True):
        assert (ours == other).all()
        assert ours.dtype == other.dtype
    norm = [f"batch_normalization.{w}" for w in ("gamma", "beta")]
    moved = ["dense.kernel", "dense.bias", *norm, "dense_1.kernel", "dense_1.bias"]
    assert list(blueprint.parameters) == moved
    assert set(weights) - set(moved) == {
        "batch_normalization.moving_mean",
        "batch_normalization.moving_variance",
    }


@pytest.mark.parametrize("name", ["small.keras", "small.h5"])
def test_plain_keras_opens_a_written_file_and_predicts_the_same(folder, name, tmp_path):
    blueprint, weights = read(folder / name)
    ADAPTER.write(blueprint, weights, tmp_path / "out.keras")
    ours, theirs = loaded(tmp_path / "out.keras"), loaded(folder / name)
    x = np.random.default_rng(1).random((5, 6), np.float32)
    assert (ours.predict(x, verbose=0) == theirs.predict(x, verbose=0)).all()
    assert type(ours.optimizer) is type(theirs.optimizer)
    assert ours.optimizer.beta_1 == 0.8
    assert float(ours.optimizer.learning_rate) == np.float32(3e-3)
    assert ours.get_compile_config()["metrics"] == ["accuracy"]
    ADAPTER.write(blueprint, weights, tmp_path / "out.safetensors")
    from safetensors.numpy import load_file

    arrays = load_file(tmp_path / "out.safetensors")
    assert all((arrays[n] == weights[n]).all() for n in weights)
    assert {p.name for p in tmp_path.iterdir()} == {"out.keras", "out.safetensors"}


def test_the_answer_for_a_client_is_in_the_order_of_get_weights(folder):
    arrays, info = ADAPTER.answer(*read(folder / "small.keras"))
    model = loaded(folder / "small.keras")
    model.set_weights([np.array(a) for a in arrays])
    assert info["shapes"] == [list(w.shape) for w in model.get_weights()]
    assert info["dtypes"] == ["float32"] * 8
    assert info["names"][:2] == ["dense.kernel", "dense.bias"]


def test_variable_names_do_not_depend_on_models_built_before(folder, tmp_path):
    names = list(read(folder / "small.keras")[1])
    small().save(tmp_path / "later.keras")  # whose layers are dense_7 or so
    assert list(read(tmp_path / "later.keras")[1]) == names


def test_compile_settings_of_the_file_are_used_where_the_config_sets_none(folder):
    own = read(folder / "small.keras")[0].settings
    assert own["optimizer"] == "Adam"
    assert own["learning_rate"] == 0.003
    assert own["optimizer_args"] == {"beta_1": 0.8}
    assert (own["loss"], own["loss_args"]) == ("categorical_crossentropy", {})
    given = {"learning_rate": 0.5, "loss": "cross_entropy"}
    own = read(folder / "small.h5", **given)[0].settings
    assert (own["optimizer"], own["learning_rate"]) == ("Adam", 0.5)
    assert own["loss"] == "cross_entropy"
    own = read(folder / "small.keras", optimizer="optim.SGD")[0].settings
    assert (own["optimizer"], own["learning_rate"]) == ("optim.SGD", 0.01)
    assert own["optimizer_args"] == {}  # Adam's are not for it


@pytest.mark.parametrize(
    ("optimizer", "loss", "message"),
    [
        (
            keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
            "mse",
            "learning rate is a schedule.*give learning_rate",
        ),
        ("sgd", lambda y, p: keras.ops.mean(y - p), "loss.*give loss in the config"),
        ("sgd", ["mse"], "one is read: give loss"),
    ],
)
def test_compile_settings_that_cannot_be_used_are_errors(
    tmp_path, optimizer, loss, message
):
    model = small()
    model.compile(optimizer, loss)
    model.save(tmp_path / "m.keras")
    with pytest.raises(ModelFileError, match=message):
        read(tmp_path / "m.keras")
    read(tmp_path / "m.keras", loss="mse", learning_rate=0.1)


def old_file(folder, path, change):
    """A Keras 2 file: an .h5 whose compile settings are those of Keras 3, changed."""
    shutil.copy(folder / "small.h5", path)
    with h5py.File(path, "r+") as file:
        settings = json.loads(file.attrs["training_config"])
        settings["optimizer_config"] = settings.pop("optimizer", None) or settings.pop(
            "optimizer_config"
        )
        change(settings)
        file.attrs["training_config"] = json.dumps(settings)
    return path


def of_optimizer(kind, **args):
    return lambda settings: settings.update(
        optimizer_config={"class_name": kind, "config": args}
    )


def test_an_old_files_optimizer_is_understood(folder, tmp_path):
    old = of_optimizer("SGD", lr=0.05, momentum=0.9, decay=0.0, nesterov=False)
    own = read(old_file(folder, tmp_path / "m.h5", old))[0].settings
    assert (own["optimizer"], own["learning_rate"]) == ("SGD", 0.05)
    assert own["optimizer_args"] == {"momentum": 0.9}
    old = of_optimizer("Nadam", lr=0.002, schedule_decay=0.004, epsilon=None)
    own = read(old_file(folder, tmp_path / "m.h5", old))[0].settings
    assert (own["learning_rate"], own["optimizer_args"]) == (0.002, {})
    loss = {"class_name": "CategoricalCrossentropy", "config": {"reduction": "auto"}}
    path = old_file(folder, tmp_path / "m.h5", lambda s: s.update(loss=loss))
    assert read(path)[0].settings["loss_args"] == {}


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        (
            of_optimizer("SGD", lr=0.05, decay=1e-4),
            "by a decay",
            {"learning_rate": 0.1},
        ),
        (of_optimizer("Adam", lr=0.1, warmup=9), "'warmup'", {"optimizer": "Adam"}),
        (lambda s: s.update(loss_weights=[0.5]), "'loss_weights'", {"loss": "mse"}),
        (
            lambda s: s["optimizer_config"].update(module="my.code"),
            "optimizer 'Adam' is not Keras's own",
            {"optimizer": "Adam"},
        ),
        (
            lambda s: s.update(loss={"class_name": "Huber", "registered_name": "a>H"}),
            "loss 'Huber' is not Keras's own",
            {"loss": "mse"},
        ),
        (lambda s: s.update(sample_weight_mode="temporal"), "_mode'", {"loss": "mse"}),
        (
            lambda s: s.update(loss={"class_name": "Huber", "config": {"fn": "x"}}),
            "Huber has settings 'fn'",
            {"loss": "mse"},
        ),
    ],
)
def test_a_files_setting_that_is_not_understood_is_never_dropped(
    folder, tmp_path, change, message, remedy
):
    path = old_file(folder, tmp_path / "m.h5", change)
    with pytest.raises(ModelFileError, match=f"{message}.*in the config"):
        read(path)
    read(path, **remedy)


def test_an_uncompiled_file_gets_the_documented_defaults(tmp_path):
    small().save(tmp_path / "m.keras")
    own = read(tmp_path / "m.keras")[0].settings
    assert (own["optimizer"], own["learning_rate"]) == ("SGD", 0.01)
    assert own["loss"] == "categorical_crossentropy"


def test_a_loss_object_keeps_its_arguments(tmp_path):
    model = small()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile("sgd", loss, metrics=[keras.metrics.CategoricalAccuracy()])
    model.save(tmp_path / "m.keras")
    blueprint, weights = read(tmp_path / "m.keras")
    args = {"from_logits": True, "label_smoothing": 0.1}
    assert blueprint.settings["loss"] == "categorical_crossentropy"
    assert blueprint.settings["loss_args"] == args
    ADAPTER.write(blueprint, weights, tmp_path / "out.keras")
    config = loaded(tmp_path / "out.keras").get_compile_config()
    assert config["loss"]["config"]["label_smoothing"] == 0.1
    assert config["metrics"][0]["class_name"] == "CategoricalAccuracy"


def test_weights_alone_need_an_architecture(folder, tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "import keras\nfrom keras import layers as L\n"
        "def net(): return keras.Sequential([keras.Input((6,)), L.Dense(4), "
        "L.BatchNormalization(), L.Dense(3)])\n"
        "def other(): return keras.Sequential([keras.Input((7,)), L.Dense(4)])\n"
        "class Own(keras.Model):\n"
        "    def __init__(self, n): super().__init__(); self.build((None, n))\n"
        "def own(): return Own(3)\n"
        "def torch_one(): import torch; return torch.nn.Linear(2, 2)\n"
    )
    with pytest.raises(
        ModelFileError, match=r"weights without their layers.*give arch"
    ):
        read(folder / "small.weights.h5")
    expected = [w.shape for w in loaded(folder / "small.keras").get_weights()]
    for name in ("small.weights.h5", "small.keras", "small.h5"):
        weights = read(folder / name, architecture=f"{file}:net")[1]
        assert [w.shape for w in weights.values()] == expected
    alone = read(folder / "small.weights.h5", architecture=f"{file}:net")[1]
    whole = read(folder / "small.keras")[1]
    assert (alone["dense.kernel"] == whole["dense.kernel"]).all()
    with pytest.raises(ModelFileError, match=r"need 1 more array float32\[7, 4\]"):
        read(folder / "small.keras", architecture=f"{file}:other")
    with pytest.raises(ModelFileError, match=r"Linear, a keras\.Model is needed"):
        read(None, architecture=f"{file}:torch_one")
    with pytest.raises(ModelFileError, match=r"cannot save|no weights|no shapes"):
        read(None, architecture=f"{file}:own")


def test_an_architecture_starts_from_the_seed_and_leaves_random_state_alone(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "import keras\ndef net():\n"
        "    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])\n"
    )
    before = np.random.get_state()[1].copy()
    once, again, other = (
        read(None, architecture=f"{file}:net", seed=seed)[1]["dense.kernel"]
        for seed in (1, 1, 2)
    )
    assert (once == again).all()
    assert (once != other).any()
    assert (np.random.get_state()[1] == before).all()


def test_functional_and_nested_models_are_rebuilt(tmp_path):
    given = keras.Input((8, 8, 1))
    inner = keras.Sequential([L.Conv2D(2, 3, padding="same"), L.ReLU()])
    twice = L.Concatenate()([inner(given), L.MaxPooling2D(1)(inner(given))])
    out = L.Dense(2)(L.GlobalAveragePooling2D()(twice))
    model = keras.Model(given, out)
    model.save(tmp_path / "m.keras")
    blueprint, weights = read(tmp_path / "m.keras")
    assert len(weights) == 4
    ADAPTER.write(blueprint, weights, tmp_path / "out.keras")
    x = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    ours = loaded(tmp_path / "out.keras").predict(x, verbose=0)
    assert (ours == model.predict(x, verbose=0)).all()


BASE = {"Conv1D": (8, 12), "Conv2D": (4, 8, 3), "Conv3D": (4, 4, 3, 2)}
MADE = {
    "InputLayer": None, "StackedRNNCells": None, "LSTMCell": None, "GRUCell": None,
    "SimpleRNNCell": None, "Dot": None, "Attention": None, "AdditiveAttention": None,
    "Subtract": None, "MultiHeadAttention": None, "GroupQueryAttention": None,
    "Dense": lambda: L.Dense(3), "Activation": lambda: L.Activation("relu"),
    "EinsumDense": lambda: L.EinsumDense("abc,cd->abd", (8, 4)),
    "Embedding": lambda: L.Embedding(9, 3), "Rescaling": lambda: L.Rescaling(0.5),
    "Normalization": lambda: L.Normalization(mean=[1.0] * 12, variance=[4.0] * 12),
    "RNN": lambda: L.RNN(L.LSTMCell(3)), "LSTM": lambda: L.LSTM(3),
    "GRU": lambda: L.GRU(3), "SimpleRNN": lambda: L.SimpleRNN(3),
    "Bidirectional": lambda: L.Bidirectional(L.LSTM(3)),
    "TimeDistributed": lambda: L.TimeDistributed(L.Dense(3)),
    "Reshape": lambda: L.Reshape((-1,)), "RepeatVector": lambda: L.RepeatVector(2),
    "Permute": lambda: L.Permute((2, 1)), "GroupNormalization": lambda:
    L.GroupNormalization(1), "Softmax": lambda: L.Softmax(),
}  # fmt: skip
MANY = ("Add", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
FLAT = {"Embedding": "flat", "RepeatVector": "flat", "Dense": "flat"}


def output(model, x):
    return model(x, training=False).detach().numpy()


def branch(kind, inputs):
    """One layer on an input that it takes, flat; None where it takes more than one."""
    rank = next((n for n in "123" if f"{n}D" in kind), "1")
    made = MADE.get(kind, 0)
    if made is None:
        return None
    few = {}
    if not made:
        few = {"filters": 2, "kernel_size": 2} if "Conv" in kind else {}
        few = {"kernel_size": 2} if "Depthwise" in kind else few
        few |= {"pool_size": 2} if kind[-9:-2] == "Pooling" and "G" not in kind else {}
        few |= {"rate": 0.1} if "Dropout" in kind else {}
        few |= {"stddev": 0.1} if kind == "GaussianNoise" else {}
    given = inputs[FLAT.get(kind, f"Conv{rank}D")]
    layer = made() if made else getattr(L, kind)(**few)
    seen = layer([given, given]) if kind in MANY else layer(given)
    return L.Flatten()(seen)


def test_every_known_layer_is_rebuilt_and_computes_the_same(tmp_path):
    """All beside each other in one model; those that take more are tried elsewhere."""
    given = keras.Input((96,))
    inputs = {kind: L.Reshape(shape)(given) for kind, shape in BASE.items()}
    inputs["flat"] = given
    branches = [branch(kind, inputs) for kind in sorted(LAYERS)]
    branches = [seen for seen in branches if seen is not None]
    model = keras.Model(given, L.Dense(2)(L.Concatenate()(branches)))
    model.save(tmp_path / "m.keras")
    blueprint, weights = read(tmp_path / "m.keras", loss="mse")
    again = build(blueprint.plan)
    again.set_weights(list(weights.values()))
    x = np.random.default_rng(0).integers(0, 9, (2, 96)).astype(np.float32)
    ours, theirs = (output(m, x) for m in (again, model))
    np.testing.assert_array_equal(ours, theirs)
    assert len(branches) > 60


def test_layers_on_several_inputs_are_rebuilt(tmp_path):
    given = keras.Input((4, 8))
    seen = [L.MultiHeadAttention(2, 4)(given, given), L.Attention()([given, given])]
    seen += [L.AdditiveAttention()([given, given]), L.Subtract()([given, given])]
    seen += [L.GroupQueryAttention(4, 2, 1)(given, given)]
    seen += [L.RNN(L.StackedRNNCells([L.GRUCell(4), L.SimpleRNNCell(8)]), True)(given)]
    dot = L.Dot(1)([L.Flatten()(given), L.Flatten()(L.Add()(seen))])
    model = keras.Model(given, dot)
    model.save(tmp_path / "m.keras")
    blueprint, weights = read(tmp_path / "m.keras", loss="mse")
    again = build(blueprint.plan)
    again.set_weights(list(weights.values()))
    x = np.random.default_rng(0).random((2, 4, 8), np.float32)
    ours, theirs = (output(m, x) for m in (again, model))
    np.testing.assert_array_equal(ours, theirs)


def test_every_known_activation_is_one_of_keras():
    assert {
        name for name in ACTIVATIONS if not hasattr(keras.activations, name)
    } == set()


def test_fedray_fuse_averages_keras_files_and_keras_opens_the_result(tmp_path, capsys):
    from fedray.cli import main

    for name, value in (("a", 1.0), ("b", 4.0)):
        model = keras.Sequential([keras.Input((2,)), L.Dense(1)])
        model.compile("sgd", "mse")
        model.set_weights([np.full((2, 1), value), np.zeros(1)])
        model.save(tmp_path / f"{name}.keras")
    files = [str(tmp_path / f"{name}.keras") for name in "ab"]
    out = tmp_path / "c.keras"
    assert main(["fuse", *files, "--samples", "2,1", "--out", str(out)]) == 0
    fused = loaded(out)
    assert fused.get_weights()[0].tolist() == [[2.0], [2.0]]  # (2·1 + 1·4) / 3
    assert main(["fuse", *files, "--out", str(tmp_path / "c.pt")]) == 1
    assert "--out must end in .keras or .safetensors" in capsys.readouterr().err


# What strangers send


def forged(path, source, config=None, arrays=None, more=None):
    """A .keras file like `source` with its description or its arrays changed."""
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if config:
        changed = json.loads(parts["config.json"])
        config(changed)
        parts["config.json"] = json.dumps(changed).encode()
    if arrays:
        inner = path.with_suffix(".inner.h5")
        inner.write_bytes(parts["model.weights.h5"])
        with h5py.File(inner, "r+") as file:
            arrays(file)
        parts["model.weights.h5"] = inner.read_bytes()
        inner.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (parts | (more or {})).items():
            archive.writestr(name, content)
    return path


def refused(path, about):
    """The reason, found within bounded work and memory here."""
    started, before = time.process_time(), peak_mib()
    with pytest.raises(ModelFileError, match=about) as caught:
        ADAPTER.read_file(path)
    assert time.process_time() - started < 2
    assert peak_mib() - before < 200
    return caught.value.reason


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def layer(i, **changes):
    def change(config):
        config["config"]["layers"][i] |= changes

    return change


def argument(i, **changes):
    def change(config):
        config["config"]["layers"][i]["config"] |= changes

    return change


def said(module, name, config, registered=None):
    return {"module": module, "class_name": name, "config": config,
            "registered_name": registered}  # fmt: skip


EVIL = "echo > {flag}"
LAMBDA = said("builtins", "__lambda__", {"code": "4wAAAAA=", "defaults": None})
CODE = {
    "Lambda layer": layer(1, **said("keras.layers", "Lambda", {"function": LAMBDA})),
    "torch module": layer(
        1, **said("keras.layers", "TorchModuleWrapper", {"module": {"config": "gASV"}})
    ),
    "lambda for activation": argument(1, activation=LAMBDA),
    "system for activation": argument(
        1, activation=said("builtins", "function", "system", "os.system")
    ),
    "function of posix": argument(1, activation=said("posix", "function", "system")),
    "class of subprocess": layer(1, **said("subprocess", "Popen", {"args": EVIL})),
    "own class called Dense": layer(1, module="mine", registered_name="mine>Dense"),
    "registered as another": layer(1, registered_name="mine>Dense"),
    "module of keras that is no layer": layer(
        1, **said("keras.utils", "get_file", {"origin": "http://localhost"})
    ),
    "saved model": layer(1, **said("keras.layers", "TFSMLayer", {"filepath": "/"})),
    "vocabulary": layer(
        1, **said("keras.layers", "TextVectorization", {"vocabulary": "/etc/passwd"})
    ),
    "jax layer": layer(1, **said("keras.layers", "JaxLayer", {"call_fn": LAMBDA})),
    "array in JSON": argument(
        1, kernel_initializer=said("keras", "__numpy__", {"value": [1], "dtype": "O"})
    ),
    "tensor in JSON": argument(
        1, units={"class_name": "__tensor__", "config": {"value": 1, "dtype": "int32"}}
    ),
    "initializer by path": argument(
        1, kernel_initializer=said("keras.src.saving", "load_model", {})
    ),
    "model of another class": lambda config: config.update(class_name="Own"),
}


@pytest.mark.parametrize("name", CODE)
def test_code_in_a_file_is_refused_and_never_run(folder, tmp_path, name):
    path = forged(tmp_path / "evil.keras", folder / "small.keras", CODE[name])
    refused(path, "not known to fedray|not Keras's own|read are Sequential")


def bomb(config):
    """Eight models, each of which calls the one before it four times."""
    inner = config["config"]["layers"][1]
    for i in range(8):
        layers = [dict(inner, inbound_nodes=[{}] * 4)]
        inner = said("keras", "Functional", {"name": f"m{i}", "layers": layers})
    config["config"]["layers"] = [inner]


def reshaped(*layers):
    """Layers behind the first one that give no weights but much output."""

    def change(config):
        config["config"]["layers"][2:3] = [
            said("keras.layers", kind, args) for kind, args in layers
        ]

    return change


def deep(config):
    inner = config["config"]["layers"][1]["config"]
    for _ in range(500):
        inner["x"] = {}
        inner = inner["x"]


def many(config):
    config["config"]["layers"][1:1] = [{"class_name": "Flatten", "config": {}}] * 10_000


BOMBS = {
    "Dense of 10**7": (argument(4, units=10**7), "arrays? float32"),
    "Dense of 10**12": (argument(4, units=10**12), "arrays? float32|do not build"),
    "Embedding": (
        layer(1, **said("keras.layers", "Embedding", {
            "input_dim": 10**9, "output_dim": 10**4})),
        "arrays? float32|do not build",
    ),
    "RepeatVector": (reshaped(("RepeatVector", {"n": 10**9})), "more than"),
    "UpSampling": (
        reshaped(("Reshape", {"target_shape": [1, 1, 4]}),
                 ("UpSampling2D", {"size": [1000, 1000]}),
                 ("UpSampling2D", {"size": [1000, 1000]}),
            ("GlobalAveragePooling2D", {})),
        "more than",
    ),
    "ZeroPadding": (
        reshaped(("Reshape", {"target_shape": [2, 2]}),
                 ("ZeroPadding1D", {"padding": [10**9, 1]}), ("Flatten", {})),
        "past 1024",
    ),
    "a pool of a billion": (
        reshaped(("Reshape", {"target_shape": [4, 1]}),
                 ("MaxPooling1D", {"pool_size": [10**9], "padding": "same"}),
                 ("Flatten", {})),
        "past 1024",
    ),
    "dropout's own shape": (argument(3, noise_shape=[10**6, 10**6]), "noise_shape"),
    "attention": (
        reshaped(("RepeatVector", {"n": 10**6}),
                 ("Attention", {}), ("Flatten", {})),
        "do not build|more than",
    ),
    "models that call each other": (bomb, "call each other"),
    "deep JSON": (deep, "larger or deeper"),
    "10,000 layers": (many, "more than 1000 layers"),
    "NaN": (argument(3, rate=float("nan")), "not JSON"),
    "infinite": (argument(3, rate=1e999), "not JSON|not finite"),
    "no dtype": (argument(1, dtype="string"), "its dtype is 'string'"),
    "stateful": (argument(1, stateful=True), "stateful"),
    "no config": (layer(1, config=None), "has no config"),
    "wrong argument": (argument(1, unit=3), "do not build"),
    "no input": (lambda c: c["config"]["layers"].pop(0), "no shapes yet|do not build"),
    "no layers": (lambda c: c["config"].update(layers=[]), "no |do not build"),
    "layers that are a number": (
        lambda c: c["config"].update(layers=3), "do not build",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_layers_that_need_too_much_memory_are_refused_without_allocating_it(
    folder, tmp_path, name
):
    change, message = BOMBS[name]
    if name == "no input":
        source = folder / "small.keras"
        path = forged(tmp_path / "x.keras", source, lambda c: (
            c["config"].pop("build_input_shape"), c.pop("build_config"), change(c),
            [one.pop("build_config", None) for one in c["config"]["layers"]],
        ))  # fmt: skip
    else:
        path = forged(tmp_path / "x.keras", folder / "small.keras", change)
    refused(path, message)


NAMES = ["../../x", "/etc/passwd", "a\0b", "\u202egpj", "x" * 1_000_000, "", "a\\b", 3]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:12])
def test_unprintable_names_are_refused_and_not_printed(folder, tmp_path, name):
    change = argument(1, name=name)
    path = forged(tmp_path / "x.keras", folder / "small.keras", change)
    reason = refused(path, "it names a layer")
    assert len(reason) < 300
    assert reason.isprintable()


@pytest.mark.parametrize("depth", [100_000])
def test_deeply_nested_json_is_refused(folder, tmp_path, depth):
    for text in (b"[" * depth, b'{"a":' * depth, b"[]", b"\xff", b" " * (9 << 20)):
        more = {"config.json": text}
        path = forged(tmp_path / "x.keras", folder / "small.keras", more=more)
        refused(path, "JSON|at most|has 9437184 bytes")


def dataset(file):
    return file["layers/dense/vars/0"]


def other(**given):
    def change(file):
        del file["layers/dense/vars/0"]
        file["layers/dense/vars"].create_dataset("0", **given)

    return change


def link(made):
    def change(file):
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = made

    return change


def virtual(file):
    layout = h5py.VirtualLayout((6, 4), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (6, 4))
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_virtual_dataset("0", layout)


def circle(file):
    file["layers/dense/loop"] = file["layers"]


def filled(value):
    def change(file):
        dataset(file)[0, 0] = value

    return change


KERNEL = np.zeros((6, 4), np.float32)
ARRAYS = {
    "external link": (link(h5py.ExternalLink("/etc/hostname", "/x")), "ExternalLink"),
    "soft link": (link(h5py.SoftLink("/layers/dense/vars/1")), "SoftLink"),
    "virtual": (virtual, "another file"),
    "external data": (
        other(shape=(6, 4), dtype="f4", external=[("/etc/passwd", 0, 96)]),
        "another file",
    ),
    "circle": (circle, "in it twice"),
    "objects": (other(shape=(6, 4), dtype=h5py.ref_dtype), "not of numbers"),
    "texts": (other(data=["a"] * 4), "not of numbers"),
    "records": (other(shape=(2,), dtype=[("a", "f4"), ("b", "i4")]), "not of numbers"),
    "complex": (other(data=KERNEL.astype(np.complex64)), "not of numbers"),
    "a shape without data": (
        other(shape=(10**6, 10**6), dtype="f4", chunks=(1000, 1000)),
        "more than is stored",
    ),
    "compressed": (other(data=KERNEL, compression="gzip"), "compressed"),
    "nine dimensions": (other(data=KERNEL.reshape([1] * 7 + [6, 4])), "9 dimensions"),
    "another shape": (other(data=KERNEL.T), r"need 1 more array float32\[6, 4\]"),
    "float64": (other(data=KERNEL.astype(np.float64)), r"more array float32\[6, 4\]"),
    "integers": (other(data=KERNEL.astype(np.int32)), r"more array float32\[6, 4\]"),
    "missing": (lambda file: file.__delitem__("layers/dense/vars/0"), "more array"),
    "elsewhere": (
        lambda file: file.move("layers/dense", "layers/x"),
        "its layers'",
    ),
    "NaN": (filled(np.nan), "'dense.kernel' holds NaN"),
    "infinity": (filled(-np.inf), "'dense.kernel' holds NaN or infinity"),
    "odd name": (lambda file: file.create_group("a\u202eb"), "names something"),
    "deep": (lambda file: file.create_group("/".join("a" * 100)), "deeper"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_unsafe_arrays_of_a_keras_file_are_refused(folder, tmp_path, name):
    change, message = ARRAYS[name]
    refused(
        forged(tmp_path / "x.keras", folder / "small.keras", arrays=change), message
    )


def test_unsafe_h5_files_are_refused(folder, tmp_path):
    path = tmp_path / "x.h5"

    def changed(change):
        path.write_bytes((folder / "small.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    with h5py.File(folder / "small.h5") as file:
        names: list[str] = []
        file.visit(names.append)
        kernel = next(name for name in names if name.endswith("/kernel"))

    def outside(file):
        del file[kernel]
        file[kernel] = h5py.ExternalLink("/etc/hostname", "/x")

    def code(file):
        config = json.loads(file.attrs["model_config"])
        CODE["Lambda layer"](config)
        file.attrs["model_config"] = json.dumps(config)

    def bomb(file):
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"]["units"] = 10**7
        file.attrs["model_config"] = json.dumps(config)

    refused(changed(outside), "ExternalLink")
    refused(changed(code), "Lambda' is not known")
    refused(changed(bomb), "arrays? float32")
    refused(
        changed(lambda file: file.attrs.update(model_config=3)), "without their lay"
    )
    refused(changed(lambda file: file.attrs.update(model_config="{")), "not JSON")


def test_compile_settings_run_no_code(folder, tmp_path):
    def hostile(config):
        config["compile_config"] = {
            "optimizer": said("os", "system", {"command": "true"}),
            "loss": said("os", "system", {"command": "true"}),
            "metrics": [
                LAMBDA,
                said("keras.metrics", "AUC", {"num_thresholds": 10**10}),
            ],
        }

    path = forged(tmp_path / "x.keras", folder / "small.keras", hostile)
    refused(path, "optimizer 'system' is not Keras's own")
    config, _ = parse({**PARTS, "model_file": str(path), "optimizer": "SGD"})
    with pytest.raises(ModelFileError, match="loss 'system' is not Keras's own"):
        ADAPTER.read(config)
    blueprint, _ = read(path, optimizer="SGD", loss="mse")
    assert blueprint.plan.metrics == ()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_with_other_members_than_keras_writes_are_refused(folder, tmp_path):
    source, path = folder / "small.keras", tmp_path / "x.keras"
    forged(path, source)
    ADAPTER.read_file(path)  # the forger can write a good file
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    refused(path, "one name")
    refused(forged(path, source, more={"../../x": b"1"}), "no model of known layers")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (1 << 28))
    refused(path, "compressed")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    refused(path, "not one of model.save")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}")
    refused(path, "it has no model.weights.h5")


@pytest.mark.parametrize("name", ["small.keras", "small.h5"])
def test_truncated_and_random_files_are_refused(folder, tmp_path, name):
    whole, path = (folder / name).read_bytes(), tmp_path / name
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path, "empty|cut short|damaged|neither")
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path, "neither a .keras file")
    path.write_bytes(whole[:8] + np.random.default_rng(0).bytes(5000))
    refused(path, "damaged")
    refused(tmp_path, "directory")
    refused(tmp_path / "none.keras", "no such file")


def test_a_file_that_crashes_the_hdf5_library_ends_only_the_child_process(
    folder, tmp_path
):
    """Lengths in its heap of texts are zeroed: HDF5 2 walks it for ever."""
    path = tmp_path / "x.h5"
    data = bytearray((folder / "small.h5").read_bytes())
    at = data.index(b"GCOL")
    data[at + 16 : at + 200] = bytes(184)
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"damaged|claim|without"):
        ADAPTER.read_file(path)


def test_keras_on_another_backend_is_a_clear_error():
    code = (
        "import sys, types; k = types.ModuleType('keras'); sys.modules['keras'] = k\n"
        "k.backend = types.SimpleNamespace(backend=lambda: 'jax')\n"
        "from fedray import models\n"
        "try: models.named('keras')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ConfigError Keras is already imported on its jax")


def test_a_keras_json_in_the_home_folder_has_no_effect(tmp_path, monkeypatch):
    settings = {"backend": "jax", "floatx": "float64",
                "image_data_format": "channels_first"}  # fmt: skip
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    code = (
        "import os, sys; from fedray import models; models.named('keras')\n"
        "import keras; c = keras.config\n"
        "print(c.backend(), c.floatx(), c.image_data_format(), 'tensorflow' in "
        "sys.modules, os.environ['KERAS_BACKEND'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        "torch",
        "float32",
        "channels_last",
        "False",
        "tensorflow",
    ]


def test_pytorch_federations_never_import_keras():
    code = (
        "import sys; from fedray import models, party, offline\n"
        "models.named('pytorch')\n"
        "print('keras' in sys.modules, 'h5py' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer": "optim.Adamm"},
            "unknown optimizer 'Adamm'; did you mean 'Adam'",
        ),
        ({"optimizer": "os.system"}, r"unknown optimizer 'os.system'; choose from"),
        ({"optimizer": "LossScaleOptimizer"}, "unknown optimizer"),
        ({"optimizer_args": {"betta": 1}}, "refuses optimizer_args"),
        ({"optimizer_args": {"momentum": "much"}}, "refuses optimizer_args"),
        ({"loss": "mean_sqared"}, "unknown loss 'mean_sqared'; did you mean 'mean_sq"),
        ({"loss_args": {"x": 1}}, "refuses loss_args"),
        ({"loss_args": {"reduction": "sum"}}, "is no mean"),
    ],
)
def test_unknown_optimizers_and_losses_are_errors_that_list_the_known_ones(
    settings, message
):
    config, found = parse({**PARTS, "architecture": __file__ + ":small", **settings})
    assert found == []
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(ADAPTER.problems(config))


@pytest.mark.parametrize(
    "name", ["optim.Adadelta", "keras.optimizers.Adadelta", "Adadelta", "adadelta"]
)
def test_optimizers_are_found_by_the_last_part_of_their_name(name):
    from fedray.models.keras.optimizers import make_optimizer

    config, _ = parse({**PARTS, "optimizer": name, "learning_rate": 0.7})
    made = make_optimizer(config)
    assert type(made).__name__ == "Adadelta"
    assert float(made.learning_rate) == np.float32(0.7)
    assert Path(keras.__file__).exists()
