"""Metrics that a config names: the registry, sums over parties, values, bad input."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fedray import policy
from fedray.config import metrics
from fedray.config.metrics import CLASSES, LABELS, METRICS, VALUES, YES
from fedray.errors import MetricError
from fedray.models.loss_domains import ANYTHING, KERAS, PYTORCH, LossUse
from fedray.models.scoring import MetricPlan, NetworkOutput, compute
from fedray.models.scoring.arrays import class_answers, read_arrays, value_answers

CUTS = (0, 3, 40, 41, 200)  # of parties' samples: unlike many


def names_of(task, without=()):
    return tuple(
        name
        for name, spec in METRICS.items()
        if task in spec.tasks and name not in without
    )


def use_of(name, choices=PYTORCH, **changes):
    return LossUse(name, choices[name], choices, **changes)


def random_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


BATCH = 3


def measure(names, use, out, y, cuts=CUTS):
    """What parties with these cuts of the samples come to together."""
    plan = MetricPlan(tuple(names))
    states = []
    for start, stop in itertools.pairwise(cuts):
        sums = plan.sums()
        for i in range(start, stop, BATCH):
            rows = slice(i, min(stop, i + BATCH))
            sums.read(NetworkOutput(use, out[rows], y[rows]))
        states.append(sums.states())
    assert all(type(one) is np.ndarray for state in states for one in state.values())
    return compute(names, policy.merge_states(states))


def test_every_metric_is_declared_once_with_a_mode_or_a_reason_for_none():
    names = [spec.name for spec in metrics._ALL]
    assert sorted(names) == sorted(set(names))
    for name, spec in METRICS.items():
        is_list = name.endswith("_per_class") or name == "confusion_matrix"
        assert (spec.mode is None) == is_list, name
        assert spec.tasks
    assert set(metrics.OTHER_NAMES) <= set(METRICS)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("f1_macro", "max"), ("loss", "min"), ("rmse", "min"), ("confusion_matrix", None),
     ("mine.py:cost", None), ("nothing", None)],
)  # fmt: skip
def test_the_mode_of_a_metric_is_known_but_of_functions_and_lists(name, mode):
    assert metrics.known_mode(name) == mode


@pytest.mark.parametrize(
    ("name", "meant"),
    [("AUC", "auroc"), ("f1-macro", "f1_macro"), ("F1Score", "f1"), ("r2_score", "r2"),
     ("jaccard", "iou"), ("confusion", "confusion_matrix"), ("f1_makro", "f1_macro"),
     ("qqqq", None)],
)  # fmt: skip
def test_a_metric_that_does_not_exist_was_meant_to_be_another(name, meant):
    assert metrics.suggest_metric(name) == meant


# over parties as over the pooled samples; scikit-learn is the oracle


def test_metrics_of_classes_over_parties_are_those_of_the_pooled_samples():
    sk = pytest.importorskip("sklearn.metrics")
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    n_classes, y = 5, np.random.default_rng(1).integers(0, 5, 200)
    logits = torch.tensor(random_of(200, n_classes) + 1.5 * np.eye(n_classes)[y])
    names = names_of(CLASSES, ("f1", "precision", "recall", "specificity"))
    values, notes = measure(names, use_of("cross_entropy"), logits, torch.tensor(y))
    shares = logits.softmax(1)
    p, s = shares.numpy(), shares.argmax(1).numpy()
    expected = {
        f"{name}_{by}": function(y, s, average=by)
        for name, function in (("f1", sk.f1_score), ("precision", sk.precision_score),
                               ("recall", sk.recall_score))
        for by in ("macro", "micro", "weighted")
    }  # fmt: skip
    expected |= {
        "accuracy": (y == s).mean(),
        "accuracy_top3": sk.top_k_accuracy_score(y, p, k=3),
        "balanced_accuracy": sk.balanced_accuracy_score(y, s),
        "mcc": sk.matthews_corrcoef(y, s),
        "cohen_kappa": sk.cohen_kappa_score(y, s),
        "iou": sk.jaccard_score(y, s, average="macro"),
        "dice": sk.f1_score(y, s, average="macro"),
        "perplexity": np.exp(sk.log_loss(y, p)),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    assert values["confusion_matrix"] == sk.confusion_matrix(y, s).tolist()
    assert values["f1_per_class"] == pytest.approx(sk.f1_score(y, s, average=None))
    tm = torchmetrics.MulticlassAUROC(n_classes, thresholds=1000)
    assert values["auroc"] == pytest.approx(
        float(tm(shares, torch.tensor(y))), abs=1e-6
    )
    exact = sk.roc_auc_score(y, p, multi_class="ovr")
    assert values["auroc"] == pytest.approx(exact, abs=1e-3)
    tm = torchmetrics.MulticlassAveragePrecision(n_classes, thresholds=1000)
    area = values["average_precision"]
    assert area == pytest.approx(float(tm(shares, torch.tensor(y))), abs=1e-6)
    assert notes == ()


def test_metrics_of_yes_or_no_are_of_yes_and_their_averages_of_both_sides():
    sk = pytest.importorskip("sklearn.metrics")
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    out = random_of(200, 1)
    y = out + random_of(200, 1, seed=1) > 0.5
    use = use_of("binary_cross_entropy_with_logits")
    values, _ = measure(names_of(YES), use, torch.tensor(out), torch.tensor(y).float())
    shares, s, t = torch.tensor(out).sigmoid().ravel(), out.ravel() > 0, y.ravel()
    expected = {
        "f1": sk.f1_score(t, s), "f1_macro": sk.f1_score(t, s, average="macro"),
        "precision": sk.precision_score(t, s), "recall": sk.recall_score(t, s),
        "specificity": sk.recall_score(~t, ~s), "iou": sk.jaccard_score(t, s),
        "dice": sk.f1_score(t, s), "mcc": sk.matthews_corrcoef(t, s),
    }  # fmt: skip
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    tm = torchmetrics.BinaryAUROC(thresholds=1000)
    assert values["auroc"] == pytest.approx(
        float(tm(shares, torch.tensor(t))), abs=1e-6
    )
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(t, shares), abs=1e-3)


def test_several_outputs_of_yes_or_no_are_labels():
    sk = pytest.importorskip("sklearn.metrics")
    pytest.importorskip("torchmetrics")
    out = random_of(200, 4)
    y = out + random_of(200, 4, seed=1) > 0.5
    use = use_of("binary_cross_entropy_with_logits")
    every = measure(names_of(LABELS), use, torch.tensor(out), torch.tensor(y).float())
    values, s = every.values, out > 0
    for by in ("macro", "micro", "weighted"):
        assert values[f"f1_{by}"] == pytest.approx(sk.f1_score(y, s, average=by))
    assert values["hamming_loss"] == pytest.approx(sk.hamming_loss(y, s))
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(y, s))
    assert values["iou"] == pytest.approx(sk.jaccard_score(y, s, average="macro"))


@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 3)])
def test_metrics_of_values_over_parties_are_those_of_the_pooled_samples(shape):
    sk = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    pytest.importorskip("torchmetrics")
    y = 3 * random_of(*shape) + 1000  # far from 0: sums of squares lose digits
    out = y + random_of(*shape, seed=1)
    values, _ = measure(
        names_of(VALUES), use_of("mse_loss"), torch.tensor(out), torch.tensor(y)
    )
    columns = [(y.reshape(200, -1)[:, i], out.reshape(200, -1)[:, i])
               for i in range(y.size // 200)]  # fmt: skip
    expected = {
        "mae": sk.mean_absolute_error(y, out), "mse": sk.mean_squared_error(y, out),
        "rmse": sk.mean_squared_error(y, out) ** 0.5, "r2": sk.r2_score(y, out),
        "mape": sk.mean_absolute_percentage_error(y, out),
        "explained_variance": sk.explained_variance_score(y, out),
        "pearson": np.mean([stats.pearsonr(*pair)[0] for pair in columns]),
        "spearman": np.mean([stats.spearmanr(*pair)[0] for pair in columns]),
        "smape": (2 * abs(y - out) / (abs(y) + abs(out))).mean(),
    }  # fmt: skip
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name


# layouts of outputs


def overlaps_by_hand(s, t, classes):
    return [((s == c) & (t == c)).sum() / ((s == c) | (t == c)).sum() for c in classes]


@pytest.mark.parametrize("axis", [1, -1], ids=["torch", "keras"])
@pytest.mark.parametrize("ignored", [None, 255, 0])
def test_iou_of_pixels_leaves_out_what_the_loss_leaves_out(axis, ignored):
    t = np.random.default_rng(0).integers(0, 3, (20, 4, 5))
    if ignored == 255:
        t[:, 0] = 255
    logits = random_of(20, 3, 4, 5)
    out = torch.tensor(logits).movedim(1, axis)
    use = use_of("cross_entropy", class_axis=axis, ignored=ignored)
    names, cuts = ("iou", "iou_per_class", "confusion_matrix", "accuracy"), (0, 7, 20)
    values, _ = measure(names, use, out, torch.tensor(t), cuts)
    s, counts = logits.argmax(1), np.ones(t.shape, bool)
    if ignored is not None:
        counts = t != ignored
    s, t = s[counts], t[counts]
    classes = [c for c in range(3) if c != ignored]
    expected = overlaps_by_hand(s, t, classes)
    assert values["iou"] == pytest.approx(np.mean(expected))
    assert [values["iou_per_class"][c] for c in classes] == pytest.approx(expected)
    assert values["accuracy"] == pytest.approx((s == t).mean())
    assert np.sum(values["confusion_matrix"]) == counts.sum()


@pytest.mark.parametrize("shape", [(20, 1, 4, 5), (20, 4, 5, 1), (20, 4, 5)])
@pytest.mark.parametrize("loss", ["named", "own"])
def test_a_mask_of_one_output_a_pixel_is_yes_or_no(shape, loss):
    logits, t = random_of(*shape), random_of(*shape, seed=1) > 0
    use = use_of("binary_cross_entropy_with_logits")
    if loss == "own":
        use = LossUse("dice.py:loss", ANYTHING, PYTORCH)
    every = torch.tensor(logits), torch.tensor(t).float()
    values, _ = measure(("iou", "dice"), use, *every, (0, 7, 20))
    s = logits > 0
    assert values["iou"] == pytest.approx(overlaps_by_hand(s, t, [True])[0])
    assert values["dice"] == pytest.approx(2 * (s & t).sum() / (s.sum() + t.sum()))


def test_classes_of_a_loss_of_ones_own_are_found_by_the_targets_shape():
    logits, t = random_of(30, 4, 6), np.random.default_rng(0).integers(0, 6, (30, 4))
    use = LossUse("mine.py:loss", ANYTHING, PYTORCH)
    t[0, 0] = -100  # counts for nothing, as in the model's own losses
    every = torch.tensor(logits), torch.tensor(t)
    values, _ = measure(("accuracy", "perplexity"), use, *every, (0, 30))
    counts = t != -100
    assert values["accuracy"] == pytest.approx((logits.argmax(-1) == t)[counts].mean())
    log = torch.tensor(logits).log_softmax(-1).numpy()
    of_true = np.take_along_axis(log, np.where(counts, t, 0)[..., None], -1)[..., 0]
    assert values["perplexity"] == pytest.approx(np.exp(-of_true[counts].mean()))


def test_outputs_of_an_unknown_loss_are_logits_unless_the_model_ends_in_a_sigmoid():
    out, y = torch.tensor([[0.2], [0.9], [0.4], [0.8]]), torch.tensor([0, 1, 0, 1])
    use = LossUse("mine.py:loss", ANYTHING, PYTORCH)

    def read(random_outputs):
        plan = MetricPlan(("accuracy", "auroc"))
        return plan.reader.read(NetworkOutput(use, out, y, False, random_outputs))

    answers = read(lambda: [torch.tensor([0.1, 0.9])])
    assert answers.output.tolist() == [False, True, False, True]
    answers = read(lambda: [torch.tensor([-7.0, 9.0])])
    assert answers.output.tolist() == [True, True, True, True]


def test_a_hinge_tells_sides_and_no_probabilities():
    use = use_of("SquaredHinge", KERAS)
    out, y = torch.tensor([[-0.5], [0.5], [2.0]]), torch.tensor([[-1.0], [1.0], [-1.0]])
    assert measure(("f1",), use, out, y, (0, 3)).values["f1"] == pytest.approx(2 / 3)
    with pytest.raises(MetricError, match="auroc: got labels without probabilities"):
        measure(("auroc",), use, out, y, (0, 3))


# models that predict arrays


def plan_of(*names):
    return MetricPlan(names)


@pytest.mark.parametrize(
    ("output", "task", "answer"),
    [([0, 2, 1], CLASSES, [0, 2, 1]), ([0.0, 2.0, 1.0], CLASSES, [0, 2, 1]),
     ([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3]], CLASSES, [0, 2, 1]),
     ([[9, 1, 3], [0, 0, 8], [0, 2, 1]], CLASSES, [0, 2, 1])],
)  # fmt: skip
def test_predictions_of_ones_own_class_are_classes_or_a_number_for_each(
    output, task, answer
):
    answers = read_arrays(
        plan_of("f1_macro").reader, np.array(output), np.array([0, 1, 2])
    )
    assert (answers.task, answers.output.tolist()) == (task, answer)


def test_predictions_within_0_and_1_are_probabilities_of_yes():
    output, target = np.array([[0.2], [0.7], [0.6]]), np.array([0, 1, 0])
    answers = read_arrays(plan_of("auroc").reader, output, target)
    assert answers.task == YES
    assert answers.output.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("metric", "output", "target", "said"),
    [("f1_macro", [1.5, 2.5], [0, 1], "one number a sample that is no class"),
     ("f1_macro", [0, 1], [0.5, 1], "1 of 2 labels that are no class numbers"),
     ("f1_macro", [0, 1], ["a", "b"], "targets of dtype <U1"),
     ("f1_macro", [0, 1, 2], [0, 1], "3 predictions for 2 targets"),
     ("mae", [0, 1, 2], [0, 1], "predictions \\[3\\] for targets \\[2\\]"),
     ("f1_macro", [[0.5, 0.5], [1, 0]], [0, 2], "a class from 0 to 1 for each")],
)  # fmt: skip
def test_predictions_that_do_not_fit_are_told_without_values(
    metric, output, target, said
):
    with pytest.raises(MetricError, match=said):
        read_arrays(plan_of(metric).reader, np.array(output), np.array(target))


def test_parties_that_know_of_fewer_classes_add_up():
    states = []
    for output, target in (([0, 1, 1], [0, 1, 0]), ([2, 0, 2], [2, 2, 0])):
        sums = plan_of("f1_macro", "specificity_macro", "confusion_matrix").sums()
        sums.add(
            read_arrays(plan_of("f1_macro").reader, np.array(output), np.array(target))
        )
        states.append(sums.states())
    pytest.importorskip("torchmetrics")
    names = ("f1_macro", "specificity_macro", "confusion_matrix")
    values, _ = compute(names, policy.merge_states(states))
    assert values["confusion_matrix"] == [[1, 1, 1], [0, 1, 0], [1, 0, 1]]
    # f1 by hand: 2·1/(2+3), 2·1/(2+1), 2·1/(2+2); specificity: 2/3, 4/5, 3/4
    assert values["f1_macro"] == pytest.approx((2 / 5 + 2 / 3 + 2 / 4) / 3)
    assert values["specificity_macro"] == pytest.approx((2 / 3 + 4 / 5 + 3 / 4) / 3)


# what has no value


@pytest.mark.parametrize(
    ("names", "output", "target", "reason"),
    [(("r2",), [1.0], [2.0], "not defined for these test samples"),
     (("pearson",), [1.0, 1.0], [2.0, 3.0], "all the same"),
     (("mae",), [np.nan, 1.0], [2.0, 3.0], "not a finite number"),
     (("mse",), [1e300, 1.0], [2.0, 3.0], "not a finite number")],
)  # fmt: skip
def test_what_is_not_a_number_is_none_with_a_note(names, output, target, reason):
    if names != ("pearson",):
        pytest.importorskip("torchmetrics")
    sums = plan_of(*names).sums()
    sums.add(value_answers(np.array(output), np.array(target)))
    values, notes = compute(names, sums.states())
    assert values == {names[0]: None}
    assert reason in notes[0]
    assert names[0] in notes[0]


def test_a_curve_needs_two_classes_and_a_class_that_is_absent_is_left_out():
    pytest.importorskip("torchmetrics")
    shares = np.array([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
    sums = plan_of("auroc").sums()
    sums.add(class_answers(shares.argmax(1), np.array([0, 1, 1]), shares, 3))
    assert compute(["auroc"], sums.states()).values["auroc"] == 1.0
    sums = plan_of("auroc").sums()
    sums.add(class_answers(shares.argmax(1), np.array([0, 0, 0]), shares, 3))
    values, notes = compute(["auroc"], sums.states())
    assert values == {"auroc": None}
    assert notes == ("metric auroc has no value: all test samples are of one class",)


def test_outputs_that_are_not_numbers_have_no_curve():
    shares = np.array([[np.nan, np.nan], [0.4, 0.6]])
    sums = plan_of("auroc").sums()
    sums.add(class_answers(np.array([0, 1]), np.array([0, 1]), shares, 2))
    values, notes = compute(["auroc"], sums.states())
    assert values == {"auroc": None}
    assert "outputs are not numbers for 1" in notes[0]


@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [("cross_entropy", [[np.nan, 1.0], [2.0, 1.0]], [0, 1]),
     ("binary_cross_entropy_with_logits", [[np.nan], [1.0]], [[1.0], [0.0]])],
)  # fmt: skip
def test_outputs_that_are_not_numbers_are_no_class_either(loss, output, target):
    output, target = torch.tensor(output), torch.tensor(target)
    use = use_of(loss)
    sums = plan_of("mcc").sums()
    sums.read(NetworkOutput(use, output, target))
    values, notes = compute(["mcc"], sums.states())
    assert values == {"mcc": None}
    assert "outputs are not numbers for 1" in notes[0]


@pytest.mark.parametrize("output", [[[np.nan, 0.4], [0.3, 0.7]], [np.nan, 0.7]])
def test_predictions_that_are_not_numbers_have_no_metric(output):
    sums = plan_of("mcc").sums()
    sums.read_arrays(np.array(output), np.array([0, 1]))
    assert compute(["mcc"], sums.states()).values == {"mcc": None}


def test_rates_of_classes_nobody_has_are_none():
    pytest.importorskip("torchmetrics")
    sums = plan_of("recall_per_class").sums()
    sums.add(class_answers(np.array([0, 2]), np.array([0, 0]), None, 4))
    value = compute(["recall_per_class"], sums.states()).values["recall_per_class"]
    assert value == [0.5, None, 0.0, None]


@pytest.mark.parametrize(
    ("name", "n_classes", "needed"),
    [("f1", 5, "take f1_macro or f1_per_class"), ("recall", 3, "recall_macro"),
     ("confusion_matrix", 5000, "at most 1,000"), ("auroc", 5000, "at most 1,000"),
     ("mae", 3, "one of values"), ("hamming_loss", 3, "several labels a sample")],
)  # fmt: skip
def test_a_metric_that_does_not_fit_the_model_says_what_does(name, n_classes, needed):
    shares = np.full((2, n_classes), 1 / n_classes)
    answers = class_answers(np.array([0, 1]), np.array([0, 1]), shares, n_classes)
    with pytest.raises(MetricError, match=needed):
        plan_of(name).sums().add(answers)


def test_a_function_is_the_mean_over_batches_by_samples():
    plan = MetricPlan((), {"cost": lambda output, target: (output - target).mean()})
    sums = plan.sums()
    sums.call(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), 2)
    sums.call(torch.tensor([9.0]), torch.tensor([0.0]), 1)
    assert compute(["mine.py:cost"], sums.states()).values == {"cost": 13 / 3}
    bad = MetricPlan((), {"cost": lambda output, target: output}).sums()
    with pytest.raises(MetricError, match="cost: got Tensor of shape \\[2\\]; needed"):
        bad.call(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), 2)


def test_the_page_of_metrics_has_each_with_its_task_mode_and_exactness():
    page = (Path(__file__).parent.parent / "docs/metrics.md").read_text("utf-8")
    table = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    rows = {}
    for _, names, _, tasks, _, mode, exactness, _ in table:
        first, *endings = [name.strip(" `") for name in names.split(",")]
        for name in (first, *(first + ending for ending in endings)):
            rows[name] = set(tasks.strip().split(", ")), mode.strip(), exactness.strip()
    assert rows.keys() == METRICS.keys()
    words = {
        "sums": "exact",
        "table": "1,000 thresholds",
        "samples": "`test_data` only",
    }
    letters = {CLASSES: "C", YES: "Y", LABELS: "L", VALUES: "V"}
    for name, (tasks, mode, exactness) in rows.items():
        spec = METRICS[name]
        assert {letters[task] for task in spec.tasks} <= tasks
        assert mode == (spec.mode or mode)
        assert exactness == words[spec.merge]
