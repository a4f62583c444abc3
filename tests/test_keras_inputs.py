"""Keras models of several inputs, with layers of one's own, and with losses of one's
own; and what Keras cannot do, by name.
"""

import re

import numpy as np
import pytest
import torch
from test_loss_domains import joiner

from fedray import models
from fedray.config import FederationConfig
from fedray.errors import ConfigError, DataError, ModelFileError
from fedray.models.base import PartySlice

NETS = """
import keras
from keras import layers as L

def inputs(): return keras.Input((4,), name="age"), keras.Input((3,), name="blood")
def in_list():
    age, blood = inputs()
    return keras.Model([age, blood], L.Dense(2)(L.Concatenate()([age, blood])))
def in_dict():
    age, blood = inputs()
    out = L.Dense(2)(L.Concatenate()([age, blood]))
    return keras.Model({"age": age, "blood": blood}, out)
def two_outputs():
    age, blood = inputs()
    return keras.Model([age, blood], [L.Dense(2)(age), L.Dense(1)(blood)])
def one(): return keras.Sequential([keras.Input((4,)), L.Dense(1)])

class Scale(L.Layer):
    "A layer of one's own."
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")
    def call(self, x): return x * self.scale
def own_layer(): return keras.Sequential([keras.Input((4,)), Scale(), L.Dense(2)])
def frozen():
    first = L.Dense(3)
    net = keras.Sequential([keras.Input((4,)), first, L.Dense(2)])
    first.trainable = False
    return net
def code():
    return keras.Sequential([keras.Input((4,)), L.Dense(2), L.Dense(4)])

def absolute(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)
def scaled(y_true, y_pred, scale=1.0): return scale * absolute(y_true, y_pred)
class Absolute(keras.losses.Loss):
    def call(self, y_true, y_pred): return absolute(y_true, y_pred)
def broken(y_true, y_pred): return y_pred["logits"]
"""
RNG = np.random.default_rng(0)
AGE, BLOOD = RNG.random((20, 4), np.float32), RNG.random((20, 3), np.float32)
LABELS = np.arange(20) % 2
SPARSE = "sparse_categorical_crossentropy"
LOGITS = {"loss_args": {"from_logits": True}}


@pytest.fixture
def join(tmp_path):
    join = joiner(tmp_path, NETS, "keras")

    def with_own_loss(net, loss, y, x=AGE, **settings):
        if loss.startswith("own:"):
            loss = f"{tmp_path}/nets.py:{loss[4:]}"
        return join(net, loss, y, x, **settings)

    return with_own_loss


def train(model, samples):
    return model.train(samples, PartySlice(np.arange(20), 1))


@pytest.mark.parametrize("net", ["in_list", "in_dict"])
@pytest.mark.parametrize("x", [(AGE, BLOOD), {"blood": BLOOD, "age": AGE}])
def test_a_model_of_several_inputs_trains_and_is_saved(join, tmp_path, net, x):
    model, samples = join(net, SPARSE, LABELS, x, **LOGITS)
    kernel, bias = model.weights().values()
    out = torch.from_numpy(np.concatenate([AGE, BLOOD], 1) @ kernel + bias)
    expected = torch.nn.functional.cross_entropy(out, torch.from_numpy(LABELS)).item()
    assert model.evaluate(samples).means[0] == pytest.approx(expected, rel=1e-5)
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)
    adapter = models.named("keras")
    config = FederationConfig(
        model_type="keras", architecture=f"{tmp_path}/nets.py:{net}", loss=SPARSE
    )
    blueprint, weights = adapter.read(config)
    adapter.write(blueprint, weights, tmp_path / "net.keras")
    again = FederationConfig(model_type="keras", model_file=f"{tmp_path}/net.keras")
    assert list(adapter.read(again)[1]) == list(weights)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        ({"age": AGE}, r"\{age: float32\[4\]\}"),
        ({"age": AGE, "blood": BLOOD, "more": AGE}, "more"),
        ({"years": AGE, "blood": BLOOD}, "years"),
        ((AGE,), r"\(float32\[4\]\)"),
        ((BLOOD, AGE), r"\(float32\[3\], float32\[4\]\)"),
        (AGE, r"float32\[4\]"),
    ],
)
def test_inputs_that_are_not_the_models_are_named(join, x, got):
    needed = r"needed the model's inputs age: \[4\], blood: \[3\], in a dict"
    with pytest.raises(DataError, match=f"samples of .*{got}.*{needed}"):
        join("in_list", SPARSE, LABELS, x)
    with pytest.raises(DataError, match="samples of"):
        join("one", "mse", LABELS, (AGE, BLOOD))


def test_layers_of_ones_own_and_frozen_ones_train_as_in_keras(join):
    model, samples = join("own_layer", SPARSE, LABELS, **LOGITS)
    before = {name: array.copy() for name, array in model.weights().items()}
    train(model, samples)
    assert all(not np.array_equal(before[n], a) for n, a in model.weights().items())
    model, samples = join("frozen", SPARSE, LABELS, **LOGITS)
    before = [array.copy() for array in model.weights().values()]
    train(model, samples)
    after = [*model.weights().values()]
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [
        *(True, True),
        *(False, False),
    ]


@pytest.mark.parametrize(
    ("loss", "args", "factor"),
    [("absolute", {}, 1), ("scaled", {"scale": 2.0}, 2), ("Absolute", {}, 1)],
)
def test_a_loss_of_ones_own_takes_targets_and_outputs(
    join, tmp_path, loss, args, factor
):
    y = AGE[:, :1] * 3
    model, samples = join("one", f"own:{loss}", y, loss_args=args)
    kernel, bias = model.weights().values()
    expected = factor * np.abs(AGE @ kernel + bias - y).mean()
    assert model.evaluate(samples).means == (pytest.approx(expected, rel=1e-5), None)
    assert train(model, samples) == pytest.approx(expected, rel=1e-5)
    adapter = models.named("keras")
    blueprint, weights = adapter.read(model.config)
    adapter.write(blueprint, weights, tmp_path / "own.keras")
    import keras

    assert not keras.models.load_model(tmp_path / "own.keras").compiled


def test_without_targets_the_inputs_are_the_targets(join):
    model, samples = join("code", "mse", None)
    assert train(model, samples) > 0
    assert samples.y.data_ptr() == samples.x.data_ptr()


def test_class_names_of_pytorch_are_understood(join):
    for name in ("CrossEntropyLoss", "torch.nn.CrossEntropyLoss", "cross_entropy"):
        model, samples = join("own_layer", name, LABELS)
        assert model.evaluate(samples).means[0] > 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("model", "loss: model is for model_type: pytorch"),
        ("KLDivLoss", "KLDivLoss cannot be used"),
        ("nets.py:nope", "no 'nope' in loss"),
    ],
)
def test_what_keras_cannot_do_is_refused_by_name(join, tmp_path, loss, message):
    loss = f"{tmp_path}/{loss}" if ".py" in loss else loss
    config = FederationConfig(
        model_type="keras", architecture=f"{tmp_path}/nets.py:one", loss=loss
    )
    (problem,) = models.named("keras").problems(config)
    assert re.search(message, problem), problem


def test_several_outputs_and_targets_are_refused(join):
    with pytest.raises(ModelFileError, match="several outputs, models of one"):
        join("two_outputs", "mse", LABELS, (AGE, BLOOD))
    with pytest.raises(DataError, match="needed one array of targets"):
        join("one", "mse", {"a": LABELS, "b": LABELS})
    with pytest.raises(ConfigError, match="with loss_args factor"):
        join("one", "own:scaled", AGE[:, :1], loss_args={"factor": 1})
