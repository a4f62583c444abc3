"""What a loss is not defined for is an error before training, with the ones that fit.

Samples are tried as a party does when it joins, and `fedray check` with it.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedray import models
from fedray.config import FederationConfig
from fedray.errors import DataError
from fedray.federation import read_config
from fedray.federation.check import check
from fedray.models import loss_domains
from fedray.models.base import PartySlice
from fedray.models.keras import losses as keras_losses
from fedray.models.keras.backend import to_snake_case
from fedray.models.pytorch import losses as pytorch_losses
from fedray.models.torch_samples import TensorSamples
from fedray.nested import Arrays

NETS = """
from torch import nn

def values(): return nn.Linear(6, 8)
def one(): return nn.Linear(6, 1)
def flat(): return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
def shares(): return nn.Sequential(nn.Linear(6, 8), nn.Softmax(1))
def logs(): return nn.Sequential(nn.Linear(6, 8), nn.LogSoftmax(1))
def yes(): return nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())
def bare(): return nn.Linear(6, 1, bias=False)
def half(): return nn.Linear(6, 8).half()
def always(): return nn.Sequential(nn.Linear(6, 1), nn.Softmax(1))
def pixels(): return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 1))
"""
RNG = np.random.default_rng(0)
X = RNG.random((20, 6), np.float32)
LABELS = np.arange(20) % 8
BITS = np.arange(20) % 2
ONE_HOT = np.eye(8)[LABELS]
MULTI_HOT = np.tile([[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]], (10, 1))
SOFT = RNG.dirichlet(np.ones(8), 20)
PIXELS = RNG.integers(0, 3, (20, 2, 3))
LOGITS = "binary_cross_entropy_with_logits"
VALUES = "mse_loss, l1_loss, smooth_l1_loss, huber_loss"


@pytest.fixture
def join(tmp_path):
    """Try samples on a model as a party does when it joins: the model and the samples.

    ``join("one", LOGITS, y)``; a loss of None is left out of the config.
    """
    return joiner(tmp_path, NETS, "pytorch")


def joiner(folder, nets, model_type):
    """The function `join` for the networks of some code."""
    file = folder / "nets.py"
    file.write_text(nets)
    adapter = models.named(model_type)

    def join(net, loss, y, x=X, **settings):
        config = FederationConfig(
            model_type=model_type, architecture=f"{file}:{net}", loss=loss, **settings
        )
        blueprint, weights = adapter.read(config)
        model = adapter.make(blueprint, config, "cpu")
        samples = model.ready(Arrays(x, y))
        model.probe("a", samples)
        model.load(weights)
        return model, samples

    return join


@pytest.mark.parametrize(
    ("net", "loss", "y", "message"),
    [
        (
            "values",
            "cross_entropy",
            MULTI_HOT,
            f"row 0 sums to 2.*these: {LOGITS}",
        ),
        ("values", "cross_entropy", 0 * ONE_HOT, "row 0 sums to 0"),
        ("values", "cross_entropy", 100 * SOFT, r"do not sum to 1 \(row 0"),
        ("values", "cross_entropy", SOFT - 0.5, "rows with numbers below 0"),
        ("values", "cross_entropy", X[:, :2], "rows of 2 classes.*needed rows of 8"),
        ("values", "cross_entropy", LABELS + 0.7, "labels that are no whole numbers"),
        ("values", "cross_entropy", LABELS + 1, r"2 of 20 .*0\.\.7 \(values 1 to 8\)"),
        (
            "values",
            "cross_entropy",
            np.arange(20) % 10,
            "labels of the model's 8 outputs",
        ),
        (
            "values",
            "nll_loss",
            LABELS,
            "no log-.*log_softmax.*these: cross_entropy",
        ),
        ("shares", "nll_loss", LABELS, "no log-probabilities"),
        ("logs", "nll_loss", SOFT, "not one-hot.*fit these: cross_entropy$"),
        ("shares", "cross_entropy", LABELS, "are probabilities already"),
        ("values", "multi_margin_loss", MULTI_HOT, "not one-hot .row 0 sums to 2"),
        ("one", None, X[:, 0], rf"one output.*config names none.*these: {LOGITS}, mse"),
        ("one", None, X[:, 0] * 9 - 4, f"names none.*fit these: {VALUES}$"),
        ("flat", "cross_entropy", BITS, f"one output.*fit these: {LOGITS}"),
        (
            "one",
            LOGITS,
            BITS + 1,
            f"values 1 to 2.*values from 0 to 1; .* {VALUES}",
        ),
        ("one", LOGITS, BITS * 2 - 1, "values -1 to 1.*fit these: soft_margin_loss"),
        (
            "one",
            LOGITS,
            BITS * 255,
            "10 of 20 targets outside .*values 0 to 255",
        ),
        ("one", "soft_margin_loss", BITS, f"other than -1 and 1.*fit these: {LOGITS}"),
        ("one", "poisson_nll_loss", -X[:, 0], f"needed values from 0; .* {VALUES}$"),
        ("one", "binary_cross_entropy", BITS, f"no probabilities.*sigmoid.* {LOGITS}"),
        ("bare", "binary_cross_entropy", BITS, "outputs that are no probabilities"),
        ("always", "binary_cross_entropy", BITS, "are 1 for every sample"),
        ("yes", LOGITS, BITS, "probabilities already.*these: binary_cross_entropy, "),
        (
            "values",
            LOGITS,
            LABELS,
            r"needed \[8\].*fit these: cross_entropy",
        ),
        ("one", "mse_loss", X[:, :2], r"shape \[2\].*needed \[1\], as the model gives"),
        ("pixels", "mse_loss", X.reshape(20, 2, 3), r"needed \[3, 2, 3\]"),
        (
            "pixels",
            "cross_entropy",
            PIXELS[:, None],
            r"0\.\.2 .*shape \[2, 3\]",
        ),
        ("values", "mse_loss", np.full((20, 8), 1e300), "float32 does not hold"),
        ("half", "mse_loss", np.full((20, 8), 70_000), "float16 does not hold.*6.55e"),
    ],
)
def test_pytorch_targets_and_outputs_outside_a_losss_domain_are_errors(
    join, net, loss, y, message
):
    with pytest.raises(DataError, match=message):
        join(net, loss, y)


def test_samples_that_overflow_in_the_models_own_dtype_are_an_error(join):
    with pytest.raises(DataError, match=r"got samples .* float16 does not hold"):
        join("half", "cross_entropy", LABELS, X * np.float32(1e6))


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        ("values", "cross_entropy", LABELS),
        ("values", "cross_entropy", LABELS.astype(float)[:, None]),
        ("values", "cross_entropy", LABELS.astype(np.uint8)),
        ("values", "cross_entropy", ONE_HOT.astype(bool)),
        ("logs", "cross_entropy", LABELS),  # its log_softmax changes nothing
        ("logs", "nll_loss", ONE_HOT),
        ("values", "multi_margin_loss", LABELS),
    ],
)
def test_labels_and_one_hot_rows_train_as_the_same_labels(join, net, loss, y):
    model, samples = join(net, loss, y)
    x, targets = samples.x, samples.y
    assert (targets.dtype, targets.tolist()) == (torch.int64, LABELS.tolist())
    out = model.module(x)
    expected = getattr(functional, loss)(out, torch.from_numpy(LABELS))
    n_right = int((out.argmax(1).numpy() == LABELS).sum())
    assert model.evaluate(samples).means == (
        pytest.approx(expected.item()),
        n_right / 20,
    )


def test_class_probabilities_are_trained_as_they_are(join):
    model, samples = join("values", "cross_entropy", SOFT)
    log_shares = model.module(samples.x).log_softmax(1).detach().numpy()
    by_hand = -(SOFT * log_shares).sum(1).mean()
    loss, accuracy = model.evaluate(samples).means
    assert loss == pytest.approx(by_hand, rel=1e-5)
    assert accuracy == (log_shares.argmax(1) == SOFT.argmax(1)).mean()


def test_a_label_for_each_position_of_a_sample_is_trained_and_scored(join):
    model, samples = join("pixels", "cross_entropy", PIXELS)
    shares = model.module(samples.x).softmax(1).detach().numpy()  # (20, 3, 2, 3)
    of_labels = np.take_along_axis(shares, PIXELS[:, None], 1)
    loss, accuracy = model.evaluate(samples).means
    assert loss == pytest.approx(-np.log(of_labels).mean(), rel=1e-5)
    assert accuracy == pytest.approx((shares.argmax(1) == PIXELS).mean())
    first = model.train(samples, PartySlice(np.arange(20), seed=1))
    assert first == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("net", "loss", "y", "accuracy"),
    [
        ("one", LOGITS, BITS, True),
        ("one", LOGITS, BITS.astype(bool)[:, None], True),
        ("yes", "binary_cross_entropy", X[:, 0], True),  # shares of yes
        ("values", LOGITS, MULTI_HOT, True),
        ("one", "soft_margin_loss", BITS * 2 - 1, True),
        ("one", "mse_loss", X[:, 0] * 1e6, False),
        ("one", "poisson_nll_loss", BITS * 100, False),
        ("pixels", "mse_loss", np.zeros((20, 18)), False),  # flat targets, in order
    ],
)
def test_targets_within_a_losss_domain_are_taken(join, net, loss, y, accuracy):
    model, samples = join(net, loss, y)
    value, right = model.evaluate(samples).means
    assert math.isfinite(value)
    assert (right is not None) == accuracy


def test_outputs_are_judged_before_a_files_weights_are_here(tmp_path):
    """A party builds a file's module with zeros: its sigmoid is not seen by them."""
    for last, message in ((torch.nn.Identity(), "no prob"), (torch.nn.Sigmoid(), "")):
        net = torch.nn.Sequential(torch.nn.Linear(6, 1, bias=False), last)
        torch.save(net, tmp_path / "net.pt")
        file = str(tmp_path / "net.pt")
        config = FederationConfig(model_file=file, loss="binary_cross_entropy")
        blueprint, _ = models.named("pytorch").read(config)
        model = models.named("pytorch").make(blueprint, config, "cpu")
        before = {name: array.copy() for name, array in model.weights().items()}
        samples = model.ready(Arrays(X, BITS))
        if message:
            with pytest.raises(DataError, match=message):
                model.probe("a", samples)
        else:
            model.probe("a", samples)
        after = model.weights()
        assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("loss", ["ctc_loss", "kl_div", "triplet_margin_loss"])
def test_losses_that_cannot_be_used_are_refused_by_name(join, tmp_path, loss):
    config = FederationConfig(architecture=f"{tmp_path}/nets.py:one", loss=loss)
    (problem,) = models.named("pytorch").problems(config)
    assert problem.startswith(f"loss {loss} cannot be used: ")


def test_every_loss_that_is_accepted_has_a_domain():
    assert set(keras_losses.CLASSES.values()) == set(loss_domains.KERAS)
    assert set(pytorch_losses.LOSSES) == set(loss_domains.PYTORCH)
    for name in loss_domains.PYTORCH:
        assert callable(getattr(functional, name))


def test_the_table_of_the_docs_has_every_loss():
    docs = Path(__file__).parent.parent / "docs" / "models-and-data.md"
    section = docs.read_text(encoding="utf-8").split("## Losses")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if "|" in line]
    names = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert names == {*loss_domains.PYTORCH, *map(to_snake_case, loss_domains.KERAS)}


KERAS_NETS = """
import keras
from keras import layers as L

def net(*layers): return keras.Sequential([keras.Input((6,)), *layers])
def values(): return net(L.Dense(8))
def one(): return net(L.Dense(1))
def shares(): return net(L.Dense(8, activation="softmax"))
def yes(): return net(L.Dense(1, activation="sigmoid"))
def tags(): return net(L.Dense(8, activation="sigmoid"))
def counts(): return net(L.Dense(1, activation="softplus"))
def series(): return net(L.Reshape((2, 3)), L.Dense(4, activation="softmax"))
def picture(): return net(L.Reshape((2, 3, 1)), L.Conv2D(4, 1, activation="softmax"))
def mixed():
    with_half = keras.DTypePolicy("mixed_float16")
    return net(L.Dense(1, dtype=with_half))
"""
SERIES = RNG.integers(0, 4, (20, 2))
CLASSES_OF_PIXELS = RNG.integers(0, 4, (20, 2, 3))


@pytest.fixture
def join_keras(tmp_path):
    """As `join`, of Keras."""
    return joiner(tmp_path, KERAS_NETS, "keras")


@pytest.mark.parametrize(
    ("net", "loss", "y", "message"),
    [
        ("shares", None, MULTI_HOT, "row 0 sums to 2.*config names none"),
        ("shares", "sparse_categorical_crossentropy", SOFT, "not one-hot"),
        ("shares", "categorical_crossentropy", LABELS + 0.7, "no whole numbers"),
        ("one", None, X[:, 0] * 9 - 4, "one output.*these: mean_squared_error, "),
        ("one", "binary_crossentropy", BITS, f"no probabilities.*these: .*{LOGITS}"),
        ("yes", LOGITS, BITS, "already.*these: binary_crossentropy, "),
        ("yes", "bce", BITS * 2 - 1, "values -1 to 1.*0 to 1; .*these: .*hinge"),
        ("one", "hinge", BITS * 3 - 1, "other than -1 and 1 or 0 and 1.*-1 to 2"),
        ("one", "poisson", BITS, "outputs below 0.*softplus"),
        ("counts", "poisson", BITS - 1, "values -1 to 0.*needed values from 0"),
        ("one", "mean_squared_logarithmic_error", BITS - 1, "needed values from 0"),
        ("one", "mape", BITS, "10 of 20 targets that are 0.*other than 0"),
        ("shares", "kl_divergence", MULTI_HOT, "row 0 sums to 2.*numbers from 0"),
        ("tags", "kl_divergence", SOFT, "outputs that are no probabilities"),
        ("one", "cosine_similarity", BITS, "one output"),
        ("values", "categorical_hinge", MULTI_HOT, "not one-hot"),
        ("values", "dice", MULTI_HOT, "no probabilities.*sigmoid"),
        ("mixed", "mse", np.full(20, 1e300), "float32 does not hold"),
    ],
)
def test_keras_targets_and_outputs_outside_a_losss_domain_are_errors(
    join_keras, net, loss, y, message
):
    with pytest.raises(DataError, match=message):
        join_keras(net, loss, y)


@pytest.mark.parametrize(
    ("net", "loss", "y", "settings"),
    [
        ("shares", "categorical_crossentropy", SOFT, {}),
        ("shares", "sparse_categorical_crossentropy", ONE_HOT, {}),
        ("values", "categorical_crossentropy", LABELS, {"from_logits": True}),
        ("values", "categorical_hinge", LABELS, {}),
        ("tags", "binary_crossentropy", MULTI_HOT, {}),
        ("one", "hinge", BITS * 2 - 1, {}),
        ("one", "squared_hinge", BITS, {}),
        ("counts", "poisson", BITS * 100, {}),
        ("shares", "kl_divergence", SOFT, {}),
        ("tags", "tversky", MULTI_HOT, {}),
        ("values", "cosine_similarity", SOFT * 9 - 1, {}),
        ("series", "sparse_categorical_crossentropy", SERIES, {}),
        ("series", "categorical_crossentropy", np.eye(4)[SERIES], {}),
        ("series", "sparse_categorical_crossentropy", SERIES - 1, {"ignore_class": -1}),
        ("picture", "sparse_categorical_crossentropy", CLASSES_OF_PIXELS, {}),
        ("picture", "categorical_crossentropy", CLASSES_OF_PIXELS, {}),
        ("tags", "dice", MULTI_HOT, {"axis": [1]}),
    ],
)
def test_keras_targets_within_a_losss_domain_are_taken(
    join_keras, net, loss, y, settings
):
    model, samples = join_keras(net, loss, y, loss_args=settings)
    assert math.isfinite(model.evaluate(samples).means[0])
    assert math.isfinite(model.train(samples, PartySlice(np.arange(20), seed=1)))


@pytest.mark.parametrize("ignored", [{}, {"ignore_class": 3}])
def test_labels_of_pixels_have_the_same_loss_as_rows(join_keras, ignored):
    by_label = "sparse_categorical_crossentropy"
    pixels = CLASSES_OF_PIXELS % 3
    model, samples = join_keras("picture", by_label, pixels, loss_args=ignored)
    rows, row_samples = join_keras("picture", "categorical_crossentropy", pixels)
    expected = rows.evaluate(row_samples).means
    assert model.evaluate(samples).means == pytest.approx(expected, rel=1e-6)


def test_an_ignored_class_counts_for_no_accuracy(join_keras):
    loss = "sparse_categorical_crossentropy"
    model, samples = join_keras("shares", loss, LABELS, loss_args={"ignore_class": -1})
    own = torch.from_numpy(model.probabilities(X).argmax(1))
    y = torch.where(torch.arange(20) < 15, own, (own + 1) % 8)
    y[:10] = -1  # of ten labels that count, five are right
    samples = TensorSamples(samples.x, y)
    assert model.evaluate(samples).means[1] == 0.5
    assert model.evaluate(samples.take(slice(10))).means[1] is None


def test_an_axis_of_the_batch_is_no_axis_of_classes(join_keras):
    with pytest.raises(DataError, match="loss_args: axis 0"):
        join_keras("shares", "categorical_crossentropy", LABELS, loss_args={"axis": 0})


def test_samples_that_overflow_in_keras_mixed_precision_are_an_error(join_keras):
    """The layer computes in float16, whose largest number is 65,504."""
    with pytest.raises(DataError, match=r"got samples .* float16 does not hold"):
        join_keras("mixed", "mse", X[:, 0], X * np.float32(1e6))


def test_check_names_every_party_whose_targets_do_not_fit(tmp_path, cluster):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "class Own:\n"
        "    def __init__(self, path): self.file = np.load(path)\n"
        "    def get_data(self):\n"
        "        part = lambda n: (self.file['x'], self.file[n])\n"
        "        return part('y'), part('test')\n"
    )
    targets = {"fits": (BITS, BITS)}
    targets |= {"train": (BITS + 1, BITS), "test": (BITS, BITS * 9)}
    for name, (y, test) in targets.items():
        np.savez(tmp_path / f"{name}.npz", x=X, y=y, test=test)
    parties = [{"name": n, "data": str(tmp_path / f"{n}.npz")} for n in targets]
    config = {
        "architecture": f"{tmp_path}/nets.py:one",
        "data_handler": f"{tmp_path}/own.py:Own",
        "loss": LOGITS,
        "parties": parties,
    }
    problems = sorted(check(read_config(config)).problems)
    assert len(problems) == 2
    assert re.search("^party test: .*values 0 to 9", problems[0])
    assert re.search("^party train: .*values 1 to 2", problems[1])
