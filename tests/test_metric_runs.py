"""Metrics of every model type, in runs and checks, on trained models, in the report."""

import itertools
import json
import shutil

import numpy as np
import pytest

import fedray
from fedray import models, policy
from fedray.cli import main
from fedray.config import parse
from fedray.errors import ConfigError, MetricError
from fedray.messages import RoundReport
from fedray.nested import Anything, Arrays
from fedray.report import write_report

N_CLASSES, CUTS = 3, (0, 4, 30, 60)
rng = np.random.default_rng(0)
Y = rng.integers(0, N_CLASSES, 60)
X = (rng.normal(size=(60, 4)) + 2 * np.eye(4)[Y]).astype(np.float32)
CODE = '''
import numpy as np
import torch
from torch import nn


def net():
    return nn.Linear(4, 3)


def single():
    return nn.Linear(4, 1)


def cost(output, target):
    return (output.argmax(1) != target).float().mean()


def broken(output, target):
    return output


def secret(output, target):
    raise ValueError(f"secret {target.tolist()}")


def nothing(output, target):
    return float("nan")


class Labelled(nn.Module):
    """A causal model: its loss compares each output with the next label."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Embedding(5, 5)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        shifted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(*shifted, ignore_index=-100), logits


class Own:
    def __init__(self):
        self.w = np.eye(4)[:, :3]

    def get_weights(self):
        return {"w": self.w}

    def set_weights(self, weights):
        self.w = weights["w"]

    def train(self, data, context):
        return {"loss": 1.0}

    def evaluate(self, data, context):
        return {"loss": 1.0, "mine": 2.0}

    def predict(self, x):
        z = np.exp(x @ self.w)
        return z / z.sum(1, keepdims=True)


class Labels(Own):
    def predict(self, x):
        return (x @ self.w).argmax(1)


class Mute(Own):
    predict = None
'''


@pytest.fixture
def code(tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    return tmp_path / "own.py"


def live_model(**settings):
    config, problems = parse({"partition": {"source": "mnist"}, "num_parties": 2,
                              **settings})  # fmt: skip
    assert problems == []
    blueprint, weights = models.read(config)
    model = models.named(config.model_type).make(blueprint, config, "cpu")
    model.load(weights)
    model.metrics = models.plan_metrics(config, blueprint)
    return model, config


def measure(model, config, x=X, y=Y):
    """What an evaluation by parts comes to, as the aggregator computes it."""
    states = []
    for start, stop in itertools.pairwise(CUTS):
        part = Arrays(x[start:stop], y[start:stop])
        if config.model_type not in models.MODELS:
            part = Anything((part.x, part.y), len(part.x))
        states.append(model.evaluate(model.ready(part)).states)
    return models.compute_metrics(config.metrics, policy.merge_states(states))


NAMES = ["f1_macro", "confusion_matrix", "auroc"]


def assert_pooled(values, shares, names=NAMES):
    sk = pytest.importorskip("sklearn.metrics")
    s = shares.argmax(1)
    expected = sk.f1_score(Y, s, average="macro")
    assert values["f1_macro"] == pytest.approx(expected, abs=1e-6)
    assert values["confusion_matrix"] == sk.confusion_matrix(Y, s).tolist()
    if "auroc" in names:
        exact = sk.roc_auc_score(Y, shares, multi_class="ovr")
        assert values["auroc"] == pytest.approx(exact, abs=5e-3)  # of 60 samples


def test_pytorch(code):
    pytest.importorskip("torchmetrics")
    metrics = [*NAMES, f"{code}:cost"]
    model, config = live_model(
        architecture=f"{code}:net", loss="cross_entropy", metrics=metrics
    )
    values, notes = measure(model, config)
    shares = model.predict(X)
    assert_pooled(values, shares)
    assert values["cost"] == pytest.approx((shares.argmax(1) != Y).mean(), abs=1e-6)
    assert notes == ()


def test_keras(tmp_path):
    pytest.importorskip("torchmetrics")
    keras = pytest.importorskip("fedray.models.keras.backend").keras
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    net.save(tmp_path / "net.keras")
    model, config = live_model(
        model_type="keras", model_file=str(tmp_path / "net.keras"),
        loss="cross_entropy", metrics=NAMES,
    )  # fmt: skip
    assert_pooled(measure(model, config).values, model.predict(X))


@pytest.mark.parametrize("kind", ["Own", "Labels"])
def test_a_class_of_ones_own_is_measured_by_its_predictions(code, kind):
    pytest.importorskip("torchmetrics")
    names = NAMES if kind == "Own" else NAMES[:2]
    model, config = live_model(model_type=f"{code}:{kind}", metrics=names)
    shares = model.predict(X)
    shares = shares if shares.ndim > 1 else np.eye(3)[shares]
    assert_pooled(measure(model, config)[0], shares, names)
    assert model.evaluate(model.ready(Anything((X, Y), 60))).metrics == {"mine": 2.0}


def test_a_class_without_probabilities_or_pairs_says_what_is_needed(code):
    pytest.importorskip("torchmetrics")
    model, config = live_model(model_type=f"{code}:Labels", metrics=["auroc"])
    with pytest.raises(MetricError, match="auroc: got labels without probabilities"):
        measure(model, config)
    with pytest.raises(MetricError, match="no pair of inputs and targets, but a str"):
        model.evaluate(model.ready(Anything("words", 1)))


def test_a_causal_model_is_compared_with_the_next_label(code):
    ids = np.random.default_rng(1).integers(0, 5, (12, 6))
    model, config = live_model(
        architecture=f"{code}:Labelled", loss="model", metrics=["accuracy"]
    )
    samples = model.ready(Arrays(ids, ids))  # not probed: as in a restarted actor
    scores = model.evaluate(samples)
    values, _ = models.compute_metrics(config.metrics, scores.states)
    logits = model.module.layer.weight.detach().numpy()[ids]
    expected = (logits.argmax(-1)[:, :-1] == ids[:, 1:]).mean()
    assert scores.accuracy is None
    assert values["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"loss": "mse_loss", "metrics": ["f1_macro"]},
      "f1_macro is for classes or yes-or-no outputs or several labels a sample, and "
      "loss mse_loss is of values"),
     ({"loss": "cross_entropy", "metrics": ["mae"]}, "take such as accuracy, f1_macro"),
     ({"loss": "soft_margin_loss", "metrics": ["auroc"]}, "gives labels alone"),
     ({"loss": "multi_margin_loss", "metrics": ["auroc"]}, "gives labels alone"),
     ({"loss": "cross_entropy", "metrics": ["own.py:absent"]}, "absent")],
)  # fmt: skip
def test_metrics_of_another_task_are_refused_with_the_model(code, settings, said):
    settings["metrics"] = [
        name.replace("own.py", str(code)) for name in settings["metrics"]
    ]
    with pytest.raises(ConfigError, match=said):
        live_model(architecture=f"{code}:net", **settings)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [(["f1_makro"], "unknown metric 'f1_makro'; did you mean 'f1_macro'?"),
     (["loss"], "unknown metric 'loss'"),
     (["f1_macro", "f1_macro"], "f1_macro is given more than once"),
     (["f1_macro", "mae"], "no model gives both"),
     (["hamming_loss", "mcc"], "no model gives both"),
     (["spearman"], "needs all samples in one place: give test_data"),
     (["a.py:mae"], "the function mae has the name of a built-in metric")],
)  # fmt: skip
def test_mistakes_in_the_names_are_found_without_a_model(metrics, said):
    _, problems = parse({"partition": {"source": "mnist"}, "num_parties": 2,
                         "architecture": "a.py:net", "metrics": metrics})  # fmt: skip
    assert [problem for problem in problems if said in problem]


@pytest.mark.parametrize(
    ("function", "said"),
    [("broken", "broken: got a?\\s?Tensor of shape \\[16, 3\\]; needed one number"),
     ("secret", "metrics: secret: got ValueError.*; needed a function of a batch's")],
)  # fmt: skip
def test_a_function_that_fails_is_told_before_round_1_without_samples(
    code, function, said
):
    model, _ = live_model(
        architecture=f"{code}:net", loss="cross_entropy", metrics=[f"{code}:{function}"]
    )
    with pytest.raises(MetricError, match=said) as raised:
        model.try_evaluation("party a", model.ready(Arrays(X, Y)))
    assert "[0, 1" not in str(raised.value)
    assert "secret [" not in str(raised.value)


def test_a_function_that_gives_nan_has_no_value_and_a_note(code):
    model, config = live_model(
        architecture=f"{code}:net", loss="cross_entropy", metrics=[f"{code}:nothing"]
    )
    values, notes = measure(model, config)
    assert values == {"nothing": None}
    assert notes == ("metric nothing has no value: it is not a finite number",)


def test_documents_have_no_metrics():
    _, problems = parse({"model_type": "doc2vec", "fusion_algorithm": "doc2vec",
                         "parties": [{"name": "a", "data": "a"}],
                         "metrics": ["accuracy"]})  # fmt: skip
    assert any("metrics has no effect with model_type: doc2vec" in p for p in problems)


def test_the_report_shows_all_values_and_the_confusion_matrix(tmp_path, monkeypatch):

    from fedray.report import metric_tables

    monkeypatch.setattr(metric_tables, "read_label_names", lambda folder: ("no", "<b>"))
    values = {"f1_macro": 0.5, "auroc": None, "recall_per_class": [0.25, None],
              "confusion_matrix": [[3, 1], [0, 1234]]}  # fmt: skip
    line = RoundReport(
        round=1, chosen=2, reported=2, fused=2, aggregated=True, refused=0, loss=1.0,
        accuracy=0.5, bytes_moved=1, seconds=1.0, train_seconds=1.0,
        evaluate_seconds=0.0, evaluated=9, metrics=values,
        notes=["metric auroc has no value: one class"],
    )  # fmt: skip
    path = write_report(tmp_path, {"metrics": ["x.py:cost"]}, [line])
    html = path.read_text("utf-8")
    for text in ("f1_macro", "1,234", "cost is a function of the config", "one class"):
        assert text in html
    assert "<b></th>" not in html


@pytest.mark.ray
def test_a_run_measures_its_metrics_as_over_all_samples(tmp_path, code, capsys):
    pytest.importorskip("torchmetrics")
    parties = []
    for i, (start, stop) in enumerate(itertools.pairwise(CUTS)):
        np.savez(tmp_path / f"{i}.npz", x_train=X, y_train=Y,
                 x_test=X[start:stop], y_test=Y[start:stop])  # fmt: skip
        parties.append({"name": f"p{i}", "data": str(tmp_path / f"{i}.npz")})
    np.savez(tmp_path / "all.npz", x=X, y=Y)
    settings = {"architecture": f"{code}:net", "data_handler": "npz",
                "parties": parties, "rounds": 2, "loss": "cross_entropy",
                "metrics": [*NAMES, f"{code}:cost", "f1_per_class"]}  # fmt: skip
    result = fedray.run(settings, run_dir=tmp_path / "run")
    trained = fedray.load(result.folder)
    values = result.history[-1].metrics
    assert_pooled(values, trained.predict(X))
    line = json.loads((tmp_path / "run/history.jsonl").read_text().splitlines()[-1])
    assert line["metrics"] == values
    assert "confusion" in (tmp_path / "run/report.html").read_text().lower()
    score = trained.evaluate(X, Y)
    assert score.metrics["confusion_matrix"] == values["confusion_matrix"]
    code_of = main(["evaluate", str(tmp_path / "run"), "--data",
                    str(tmp_path / "all.npz"), "--json"])  # fmt: skip
    assert not code_of
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["metrics"]["f1_macro"] == pytest.approx(values["f1_macro"])
    shutil.rmtree(tmp_path / "run")
