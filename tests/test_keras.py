"""Keras models in a federation: equal to PyTorch, repeatable, clear errors."""

import json
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import fedray
from fedray import data, fusion, models, policy
from fedray.config import parse
from fedray.errors import DataError, JoinFailed, PartyError
from fedray.messages import ActorLocation
from fedray.models import PartySlice
from fedray.models.keras.backend import keras
from fedray.models.keras.optimizers import OPTIMIZERS
from fedray.nested import Arrays
from fedray.party import GroupPlan, PartyGroup
from fedray.weights import cast

L = keras.layers
ADAPTER = models.named("keras")
NETS = """
    import keras
    import numpy as np
    from keras import layers as L

    def net():
        return keras.Sequential([
            keras.Input((28, 28, 1)), L.Flatten(), L.Dense(16, activation="relu"),
            L.Dense(10),
        ])

    def shares():
        return keras.Sequential([keras.Input((28, 28, 1)), net(), L.Softmax()])

    def logs():
        last = L.Activation("log_softmax")
        return keras.Sequential([keras.Input((28, 28, 1)), net(), last])

    def drops():
        return keras.Sequential([
            keras.Input((28, 28, 1)), L.Flatten(), L.Dropout(0.5), L.Dense(16),
            L.BatchNormalization(), L.Dropout(0.2, seed=3), L.Dense(10),
        ])

    @keras.saving.register_keras_serializable("tests")
    class Inner(L.Layer):
        # batch norm within a layer, and random features that are no weights
        def __init__(self, **settings):
            super().__init__(**settings)
            self.norm = L.BatchNormalization()
            self.features = np.random.randn(784, 8).astype("float32")

        def build(self, shape):
            self.norm.build((None, 8))

        def call(self, x, training=False):
            return self.norm(keras.ops.matmul(x, self.features), training=training)

    def hidden():
        return keras.Sequential([
            keras.Input((28, 28, 1)), L.Flatten(), Inner(), L.Dense(10)
        ])

    def words():
        return keras.Sequential([
            keras.Input((3,)), L.Embedding(50, 4), L.Flatten(), L.Dense(10)
        ])
"""


@pytest.fixture
def twin(settings, tmp_path):
    """The tiny federation with the same small network in Keras."""
    file = tmp_path / "nets.py"
    file.write_text(textwrap.dedent(NETS))
    return settings | {
        "model_type": "keras",
        "architecture": f"{file}:net",
        "data_handler": "mnist_keras",
        "optimizer": "SGD",
    }


def settled(settings):
    config, found = parse(settings)
    assert found == ADAPTER.problems(config) == []
    blueprint, weights = models.named(config.model_type).read(config)
    return blueprint.settle(config), blueprint, weights


def made(settings, **changes):
    """A model, its weights, and the shipped digits as it takes them."""
    config, blueprint, weights = settled(settings | changes)
    model = ADAPTER.make(blueprint, config, "cpu")
    samples = data.load(config.data_handler, "mnist")
    first = Arrays(samples.x_train[:100], samples.y_train[:100])
    return model, weights, model.ready(first)


def rounds(settings, start=None):
    """The rounds as the aggregator runs them, with plain calls for actors."""
    config, blueprint, weights = settled(settings)
    weights = start or weights
    handler = data.named(config.data_handler)
    parties = [
        PartyGroup(
            GroupPlan(party.name, range(i, i + 1), config, blueprint, handler),
            lambda: ActorLocation("here"),
        )
        for i, party in enumerate(config.parties)
    ]
    rule = fusion.from_config(config, blueprint.parameters)
    state = rule.init(weights)
    for round in range(1, config.rounds + 1):
        trained = (
            p.train(round, np.array(p.plan.parties), weights)[1] for p in parties
        )
        weights, state = rule.step(weights, fusion.combine(rule, trained), state)
        weights = cast(weights, blueprint.schema)
    return weights


def as_torch(weights):
    """Weights of `net` as those of the same network in PyTorch: kernels turned."""
    names = ["1.weight", "1.bias", "3.weight", "3.bias"]
    return {n: a.T for n, a in zip(names, weights.values(), strict=True)}


def assert_twins(ours, theirs, tolerance=1e-4):
    for name, array in as_torch(ours).items():
        np.testing.assert_allclose(array, theirs[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"proximal_mu": 1.0}], ids=["SGD", "FedProx"])
def test_the_same_network_in_keras_and_pytorch_agrees_after_three_rounds(
    settings, twin, changes
):
    changes |= {"rounds": 3, "epochs": 2}
    start = settled(twin)[2]
    ours = rounds(twin | changes)
    theirs = rounds(settings | changes, as_torch(start))
    assert_twins(ours, theirs)
    moved = np.abs(ours["dense.kernel"] - start["dense.kernel"]).max()
    assert moved > 1e-2  # or nothing was compared


@pytest.mark.parametrize(
    "changes",
    [
        {"local_steps": 5, "gradient_clip_norm": 0.3, "proximal_mu": 0.5},
        {"scheduler": "cosine", "scheduler_every": "step", "learning_rate": 0.5},
        {"scheduler": "StepLR", "scheduler_args": {"step_size": 1, "gamma": 0.3}},
    ],
    ids=["steps", "every step", "every round"],
)
def test_schedules_clipping_and_steps_are_those_of_pytorch(settings, twin, changes):
    for keys in (settings, twin):
        del keys["epochs"]
    start = settled(twin | changes)[2]
    ours = rounds(twin | changes | {"rounds": 3})
    theirs = rounds(settings | changes | {"rounds": 3}, as_torch(start))
    plain = rounds(twin | {"rounds": 3})
    assert_twins(ours, theirs)
    assert max(np.abs(ours[n] - plain[n]).max() for n in ours) > 1e-2


def test_mixed_precision_rounds_the_arithmetic_and_not_the_weights(twin):
    model, weights, samples = made(twin)
    mixed, _, _ = made(twin, mixed_precision="bfloat16")
    _, exact = trained(model, weights, samples, 5)
    ours, again = (trained(mixed, weights, samples, 5)[1] for _ in range(2))
    for name, array in ours.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, again[name])
        change = np.abs(exact[name] - weights[name]).max()
        assert 0 < np.abs(array - exact[name]).max() < 0.2 * change


def test_the_same_network_in_keras_and_pytorch_agrees_through_real_actors(
    settings, twin, tmp_path, cluster
):
    start = settled(twin)[2]
    torch.save(
        {n: torch.tensor(a) for n, a in as_torch(start).items()}, tmp_path / "t.pt"
    )
    settings |= {"rounds": 3, "model_file": str(tmp_path / "t.pt")}
    theirs = fedray.run(settings, run_dir=tmp_path / "torch")
    ours = fedray.run(twin, rounds=3, run_dir=tmp_path / "keras")
    assert_twins(ours.weights(), theirs.weights())
    for our, their in zip(ours.history, theirs.history, strict=True):
        assert our.loss == pytest.approx(their.loss, abs=1e-4)
        assert our.accuracy == pytest.approx(their.accuracy, abs=1e-9)
    model = keras.saving.load_model(ours.model)
    assert ours.model.name == "global_model.keras"
    for array, fused in zip(model.get_weights(), ours.weights().values(), strict=True):
        assert (array == fused).all()
    assert (ours.folder / "global_model.safetensors").exists()
    text = (ours.folder / "config.yaml").read_text()
    assert "loss: cross_entropy" in text
    assert "learning_rate: 0.1" in text
    again = fedray.run(twin, rounds=4, run_dir=tmp_path / "keras", resume=True)
    assert len(again.history) == 4


def test_compile_settings_of_a_file_are_trained_with_and_written_to_the_run_folder(
    twin, tmp_path, cluster
):
    model = keras.Sequential([keras.Input((28, 28, 1)), L.Flatten(), L.Dense(10)])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3, beta_1=0.8), loss, metrics=["accuracy"])
    model.save(tmp_path / "m.keras")
    silent = ("architecture", "optimizer", "learning_rate", "loss")
    settings = {k: v for k, v in twin.items() if k not in silent}
    settings |= {"model_file": str(tmp_path / "m.keras"), "rounds": 1}
    settings |= {"data_handler": "mnist_pytorch"}
    with pytest.raises(
        JoinFailed, match=r"\[28, 28, 1\], as the model takes; Keras .*mni"
    ):
        fedray.run(settings, run_dir=tmp_path / "wrong")
    settings |= {"data_handler": "mnist_keras"}
    result = fedray.run(settings, run_dir=tmp_path / "run")
    from fedray.config import read_yaml

    message = read_yaml(result.folder / "config.yaml")
    assert (message["optimizer"], message["learning_rate"]) == ("Adam", 0.003)
    assert message["optimizer_args"] == {"beta_1": 0.8}
    assert message["loss"] == "categorical_crossentropy"
    assert message["loss_args"] == {"from_logits": True}
    assert 0 < result.accuracy < 1
    more = fedray.run(settings | {"rounds": 2}, run_dir=result.folder, resume=True)
    assert len(more.history) == 2
    assert keras.saving.load_model(more.model).optimizer.beta_1 == 0.8
    json.loads((result.folder / "history.jsonl").read_text().splitlines()[1])


def trained(model, weights, samples, seed, n=40):
    model.load(weights)
    loss = model.train(samples, PartySlice(np.arange(n), seed))
    return loss, {name: a.copy() for name, a in model.weights().items()}


def test_training_twice_gives_the_same_bits_also_with_dropout(twin):
    drops = twin["architecture"].replace(":net", ":drops")
    model, weights, samples = made(twin, architecture=drops)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    once = trained(model, weights, samples, 7)
    trained(model, weights, samples, 8, n=30)
    again = trained(model, weights, samples, 7)
    fresh = trained(made(twin, architecture=drops)[0], weights, samples, 7)
    other = trained(model, weights, samples, 9)
    for loss, arrays in (again, fresh):
        assert loss == once[0]
        assert all((arrays[name] == once[1][name]).all() for name in weights)
    assert other[0] != once[0]
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()
    assert "batch_normalization.moving_mean" in weights
    assert not [name for name in weights if "seed" in name]


def test_batch_norm_statistics_are_buffers_and_are_sent(twin):
    drops = twin["architecture"].replace(":net", ":drops")
    blueprint = settled(twin | {"architecture": drops})[1]
    buffers = set(blueprint.schema) - set(blueprint.parameters)
    assert {name.rpartition(".")[2] for name in buffers} == {
        "moving_mean",
        "moving_variance",
    }
    model, weights, samples = made(twin, architecture=drops)
    moved = trained(model, weights, samples, 1)[1]
    assert all((moved[name] != weights[name]).any() for name in buffers)


def test_frozen_layers_are_not_trained(twin, tmp_path):
    frozen = L.Dense(16, activation="relu", trainable=False)
    net = [keras.Input((28, 28, 1)), L.Flatten(), frozen, L.Dense(10)]
    keras.Sequential(net).save(tmp_path / "f.keras")
    file = {"model_file": str(tmp_path / "f.keras"), "architecture": None}
    model, weights, samples = made(twin, **file)
    moved = trained(model, weights, samples, 1)[1]
    same = [name for name in weights if (moved[name] == weights[name]).all()]
    assert same == ["dense.kernel", "dense.bias"]


def test_regularizers_are_trained_with_and_not_part_of_the_reported_loss(
    twin, tmp_path
):
    """By hand: one full batch, SGD: kernel − rate·(gradient + 2·0.1·kernel)."""

    def net(**given):
        dense = L.Dense(10, kernel_initializer="ones", **given)
        keras.Sequential([keras.Input((28, 28, 1)), L.Flatten(), dense]).save(
            tmp_path / "r.keras"
        )
        file = {"model_file": str(tmp_path / "r.keras"), "architecture": None}
        model, weights, samples = made(twin, batch_size=40, **file)
        return trained(model, weights, samples, 1)[1]["dense.kernel"]

    with_it, without = net(kernel_regularizer=keras.regularizers.L2(0.1)), net()
    np.testing.assert_allclose(with_it, without - 0.1 * 0.2, atol=1e-6)


@pytest.mark.parametrize(
    ("net", "loss"),
    [
        ("net", "cross_entropy"),
        ("logs", "nll_loss"),
        ("shares", "categorical_crossentropy"),
        ("shares", "sparse_categorical_crossentropy"),
        ("shares", "keras.losses.CategoricalCrossentropy"),
    ],
)
def test_keras_and_pytorch_losses_of_one_meaning_have_the_same_value(twin, net, loss):
    """Held against PyTorch's on the same outputs; accuracy is counted by hand."""
    net = twin["architecture"].replace(":net", f":{net}")
    model, weights, samples = made(twin, architecture=net, loss=loss)
    model.load(weights)
    model.probe("a", samples)
    with torch.no_grad():
        out = model.model(samples.x, training=False)
    logits = out if loss in ("cross_entropy", "nll_loss") else out.log()
    labels = torch.tensor(data.load("mnist_pytorch", "mnist").y_train[:100])
    theirs = nn.functional.cross_entropy(logits, labels)
    ours, accuracy = model.evaluate(samples).means
    assert ours == pytest.approx(float(theirs), abs=1e-5)
    assert accuracy == int((out.argmax(1) == labels).sum()) / 100


def test_labels_and_one_hot_rows_train_the_same_loss(twin):
    model, _, samples = made(twin)
    x, rows = samples.x.numpy(), samples.y
    labels = rows.argmax(1).numpy()
    assert (model.ready(Arrays(x, labels)).y == rows).all()
    assert (model.ready(Arrays(x, labels[:, None])).y == rows).all()


@pytest.mark.parametrize(
    ("net", "loss", "message"),
    [
        (
            "net",
            "categorical_crossentropy",
            "no probabilities.*needed a model that ends",
        ),
        ("shares", "cross_entropy", "are probabilities already"),
        ("net", "nll_loss", "no log-probabilities.*fit these: .*cross_entropy"),
    ],
)
def test_a_loss_that_does_not_fit_the_outputs_is_an_error_before_training(
    twin, net, loss, message
):
    net = twin["architecture"].replace(":net", f":{net}")
    model, weights, samples = made(twin, architecture=net, loss=loss)
    model.load(weights)
    with pytest.raises(DataError, match=message):
        model.probe("a", samples)


def test_samples_and_targets_that_do_not_fit_are_errors(twin):
    model, _, samples = made(twin)
    x, y = samples.x.numpy(), samples.y.numpy()
    with pytest.raises(DataError, match=r"\[28, 28, 1\], as the model takes; Keras"):
        model.probe("a", model.ready(Arrays(x.transpose(0, 3, 1, 2), y)))
    with pytest.raises(DataError, match=r"1 of 100 labels outside 0\.\.9"):
        model.probe("a", model.ready(Arrays(x, np.array([10] + [0] * 99))))
    with pytest.raises(DataError, match=r"rows of 9 classes.*10"):
        model.probe("a", model.ready(Arrays(x, y[:, :9])))


def test_regression_has_no_accuracy_and_binary_classification_has(twin, tmp_path):
    x = np.random.default_rng(0).random((30, 3), np.float32)
    for last, loss, y in (
        ("linear", "mse", x.sum(1)),
        ("sigmoid", "bce", x[:, 0] > 0.5),
    ):
        net = [keras.Input((3,)), L.Dense(1, activation=last)]
        keras.Sequential(net).save(tmp_path / "v.keras")
        config, blueprint, weights = settled(
            twin | {"architecture": None, "model_file": str(tmp_path / "v.keras"),
                    "loss": loss}
        )  # fmt: skip
        model = ADAPTER.make(blueprint, config, "cpu")
        model.load(weights)
        samples = model.ready(Arrays(x, y.astype(np.float32)))
        model.probe("a", samples)
        out = x @ weights["dense.kernel"][:, 0]
        measured = model.evaluate(samples).means
        if loss == "mse":
            assert measured == (pytest.approx(((out - y) ** 2).mean(), rel=1e-5), None)
        else:
            assert measured[1] == ((out > 0) == y).mean()


def test_parties_of_one_actor_train_as_if_alone(twin):
    model, weights, samples = made(twin)
    parts = [PartySlice(np.arange(20), 1), PartySlice(np.arange(20, 45), 2)]
    first, *_ = [
        (float(loss[0]), stack["dense.kernel"][0].copy())
        for loss, stack in model.train_each(weights, parts, samples)
    ]
    alone = trained(model, weights, samples, 1, n=20)
    assert first[0] == alone[0]
    assert (first[1] == alone[1]["dense.kernel"]).all()


def test_stacked_is_for_pytorch(twin):
    _, problems = parse(twin | {"stacked": "true"})
    assert problems == [
        "stacked has no effect with model_type: keras: it is for model_type: pytorch"
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains(twin, optimizer):
    model, weights, samples = made(twin, optimizer=optimizer, learning_rate=0.01)
    loss, arrays = trained(model, weights, samples, 1)
    assert np.isfinite(loss)
    assert (arrays["dense.kernel"] != weights["dense.kernel"]).any()
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_optimizer_args_are_passed_to_the_optimizer(twin):
    """By hand, of two full batches: the second step has 0.9 of the first in it."""
    given = {"batch_size": 40, "epochs": 2, "optimizer_args": {"momentum": 0.9}}
    model, weights, samples = made(twin, **given)
    arrays = trained(model, weights, samples, 1)[1]
    once, _, _ = made(twin, batch_size=40)
    first = trained(once, weights, samples, 1)[1]
    second = trained(once, first, samples, 1)[1]
    for name in weights:
        step = first[name] - weights[name]
        np.testing.assert_allclose(arrays[name], second[name] + 0.9 * step, atol=1e-6)


def test_an_error_about_unfitting_data_names_the_party(twin, digits):
    config, blueprint, _ = settled(twin | {"data_handler": "mnist_pytorch"})
    plan = GroupPlan("a", range(1), config, blueprint, "mnist_pytorch")
    with pytest.raises(PartyError, match=r"party a, joining: .*mnist_keras"):
        PartyGroup(plan, lambda: ActorLocation("here")).join()
    assert policy.seed_for(0, 1, "a") != policy.seed_for(0, 2, "a")


@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_proximal_training_from_own_weights_is_pulled_to_the_global_ones(twin, mu):
    model, weights, samples = made(twin, proximal_mu=mu)
    rows = np.arange(40)

    def after(base, start):
        part = PartySlice(rows, 5, start=start)
        ((_, stack),) = model.train_each(base, [part], samples)
        return {name: array[0].copy() for name, array in stack.items()}

    own = after(weights, None)
    apart, pulled_nowhere = after(weights, own), after(own, None)
    far = [
        sum(float(((end[n] - weights[n]) ** 2).sum()) for n in weights)
        for end in (apart, pulled_nowhere)
    ]
    if mu:
        assert far[0] < far[1]
    else:
        assert all((apart[n] == pulled_nowhere[n]).all() for n in weights)


@pytest.mark.slow
def test_the_keras_example_job_learns_the_digits(tmp_path, cluster):
    from pathlib import Path

    job = Path(__file__).parent.parent / "jobs" / "mnist_keras.yaml"
    result = fedray.run(job, rounds=2, run_dir=tmp_path / "run")
    assert result.accuracy > 0.8


def state_of(model) -> str:
    generators = torch.get_rng_state(), np.random.get_state()
    variables = [variable.numpy().copy() for variable in model.model.variables]
    return repr((generators, variables))


@pytest.mark.parametrize("net", ["drops", "hidden"])
def test_a_step_is_tried_at_joining_and_undone(twin, digits, net):
    nets = twin["architecture"].rpartition(":")[0]
    twin["parties"] = [{"name": "a", "data": digits("one", 33)}]  # the last batch: 17
    config, blueprint, weights = settled(twin | {"architecture": f"{nets}:{net}"})
    plan = GroupPlan("a", range(1), config, blueprint, "mnist_keras")
    group = PartyGroup(plan, lambda: ActorLocation("here"))
    model = group.local_data.model
    model.load(weights)
    before = state_of(model)
    group.join(weights)
    assert state_of(model) == before
    assert model.takes_batch_statistics
    assert model.batch_sizes(33) == [16, 17]
    if net == "hidden":
        (note,) = blueprint.notes
        assert "features float32[784, 8]; not trained, sent or saved" in note


@pytest.mark.parametrize("value", [-1, 50])
def test_an_id_outside_an_embedding_is_found_in_any_sample(twin, value):
    nets = twin["architecture"].rpartition(":")[0]
    config, blueprint, _ = settled(twin | {"architecture": f"{nets}:words"})
    model = ADAPTER.make(blueprint, config, "cpu")
    ids = np.arange(60).reshape(20, 3) % 50
    model.probe("a", model.ready(Arrays(ids, np.zeros(20, np.int64))))
    ids[7, 1] = value  # Keras takes -1 as the last row
    with pytest.raises(DataError, match=r"ids outside 0\.\.49, the rows of layer"):
        model.probe("a", model.ready(Arrays(ids, np.zeros(20, np.int64))))


def test_loss_arguments_that_fit_no_output_are_an_error_before_training(twin):
    model, _, samples = made(twin, loss_args={"axis": 3, "from_logits": True})
    with pytest.raises(DataError, match="loss_args: axis 3"):
        model.probe("a", samples)
