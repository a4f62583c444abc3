"""One pass over several parties' samples says of each what a pass of its own would."""

import numpy as np
import pytest
import torch
from test_keras_inputs import NETS as KERAS_NETS
from test_loss_domains import joiner
from test_sklearn import Federation, config_of, cut, data_for
from test_torch_losses import CE, LABELS, NETS, SERIES, TAGS, X
from torch.utils.data import DataLoader, TensorDataset, default_collate

from fedray.datasets import DatasetPart
from fedray.models.pytorch import model as torch_model
from fedray.models.sklearn.estimators import ESTIMATORS

STARTS = np.array([0, 3, 3, 10, 20])  # of four parties, one without samples
ROWS = np.array([0, 2, 3])
WEIGHT = {"loss_args": {"weight": [1.0, 2.0, 5.0]}}
IGNORED = np.where(np.arange(20)[:, None] < 3, -100, TAGS)  # the first party counts not
SOFT = np.full((20, 3), 1 / 3, np.float32)
YES = (np.arange(20) % 2).astype(np.float32)[:, None]


def assert_as_alone(model, samples):
    """Columns of one pass beside a pass for each party, and beside all together."""
    scores = model.evaluate(samples, STARTS)
    rows = scores.by_party
    assert rows.n_samples.tolist() == [3, 0, 7, 10]
    whole = model.evaluate(samples)
    np.testing.assert_array_equal(
        np.array(scores.means, float), np.array(whole.means, float)
    )  # bit for bit
    assert scores.weights == whole.weights
    for row in ROWS.tolist():
        alone = model.evaluate(samples.take(slice(*STARTS[row : row + 2])))
        n = alone.n_samples
        loss_weight, answers = alone.weights or (n, n * (alone.accuracy is not None))
        assert rows.loss_weight[row] == pytest.approx(loss_weight)
        expected = pytest.approx(alone.loss * loss_weight, rel=1e-5, abs=1e-9)
        assert rows.loss[row] == expected
        if alone.accuracy is None:
            assert rows.answers[row] == 0
        else:
            assert rows.right[row] / rows.answers[row] == alone.accuracy
            assert alone.weights is None or rows.answers[row] == answers
    return rows


@pytest.mark.parametrize("size", [64, 4])
@pytest.mark.parametrize(
    "model_of",
    [
        ("values", CE, LABELS, X, {}),
        ("values", CE, LABELS, X, WEIGHT),
        ("values", CE, SOFT, X, WEIGHT),
        ("in_dict", CE, LABELS, X, {"loss_args": {"label_smoothing": 0.1}}),
        ("tagger", CE, TAGS, SERIES, {}),
        ("tagger", CE, IGNORED, SERIES, {"loss_args": {"ignore_index": -100}}),
        ("first", CE, TAGS, SERIES, WEIGHT),
        ("values", "multi_margin_loss", LABELS, X, {}),
        ("values", "mse_loss", X[:, :3], X, {}),
        ("one", "binary_cross_entropy_with_logits", YES, X,
         {"loss_args": {"pos_weight": [3.0]}}),
        ("values", "own", X[:, :3], X, {}),
        ("in_tuple", "own", X[:, :3], X, {}),
        ("own_dict", "model", LABELS, X, {}),
    ],
)  # fmt: skip
def test_pytorch(tmp_path, monkeypatch, model_of, size):
    net, loss, y, x, settings = model_of
    monkeypatch.setitem(torch_model.EVALUATION_BATCH, "cpu", size)
    loss = f"{tmp_path}/nets.py:absolute" if loss == "own" else loss
    join = joiner(tmp_path, NETS, "pytorch")
    assert_as_alone(*join(net, loss, y, x, **settings))


KERAS_CODE = (
    KERAS_NETS
    + """
def pixels(): return keras.Sequential([keras.Input((4, 2)), L.Dense(3)])
def classes(): return keras.Sequential([keras.Input((6,)), L.Dense(3)])
def shares(): return keras.Sequential([keras.Input((6,)), L.Dense(3, "softmax")])
def sigmoids(): return keras.Sequential([keras.Input((4,)), L.Dense(2, "sigmoid")])
def padded():
    embedding = L.Embedding(9, 4, mask_zero=True)
    return keras.Sequential([keras.Input((4,)), embedding, L.Dense(3)])
"""
)
SPARSE, LOGITS = "sparse_categorical_crossentropy", {"from_logits": True}
IDS = np.where(np.arange(4) < np.arange(20)[:, None] % 4 + 1, 1 + TAGS, 0)


@pytest.mark.parametrize(
    "model_of",
    [
        ("classes", SPARSE, LABELS, X, LOGITS),
        ("shares", "categorical_crossentropy", LABELS, X, {}),
        ("pixels", SPARSE, TAGS, SERIES, LOGITS),
        ("pixels", SPARSE, np.maximum(IGNORED, -1), SERIES,
         {**LOGITS, "ignore_class": -1}),
        ("padded", SPARSE, TAGS, IDS, LOGITS),
        ("one", "mean_squared_error", X[:, :1], X[:, :4], {}),
        ("sigmoids", "dice", X[:, :2].round(), X[:, :4], {}),
        ("one", "own", X[:, :1], X[:, :4], {}),
    ],
)  # fmt: skip
def test_keras(tmp_path, model_of):
    net, loss, y, x, args = model_of
    loss = f"{tmp_path}/nets.py:absolute" if loss == "own" else loss
    join = joiner(tmp_path, KERAS_CODE, "keras")
    assert_as_alone(*join(net, loss, y, x, loss_args=args))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scikit_learn(name):
    x, y = data_for(name)
    federation = Federation(config_of(name), cut(x, y)).run(1)
    model = federation.models[0]
    model.load(federation.weights)
    assert_as_alone(model, federation.samples[0].take(slice(20)))


def twice(items):
    return [torch.cat([one, one]) for one in default_collate(items)]


def thinned(items):
    return default_collate([item for item in items if item[1] != 1] or items[:1])


@pytest.mark.parametrize("collate", [twice, thinned])
def test_a_collate_fn_that_changes_how_many_samples_there_are(tmp_path, collate):
    join = joiner(tmp_path, NETS, "pytorch")
    model, _ = join("values", CE, LABELS, X)
    tests = TensorDataset(torch.from_numpy(X), torch.from_numpy(LABELS))
    part = DatasetPart(tests, len(X), DataLoader(tests, 8, collate_fn=collate))
    samples = model.ready(part)
    rows = model.evaluate(samples, STARTS).by_party
    for row in ROWS.tolist():
        alone = model.evaluate(samples.take(slice(*STARTS[row : row + 2])))
        assert rows.loss[row] / rows.loss_weight[row] == pytest.approx(alone.loss)
        assert rows.right[row] / rows.answers[row] == alone.accuracy
