"""Every metric that `metrics` of a config may name, each declared once.

What a metric is of, what it needs of the model, whether more of it is better, and how
parties' shares of it become one. No framework is imported here: the sums are made in
`fedray.models.scoring`.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

from fedray.config.suggestions import MAX_COMPARED, nearest, normalize
from fedray.user_code import is_in_memory, is_source

Task = Literal["classes", "yes", "labels", "values"]
Need = Literal["labels", "probabilities", "values"]
Mode = Literal["max", "min"]
Merge = Literal["sums", "table", "samples", "means"]

CLASSES: Task = "classes"  # one of several classes a sample, or a position of it
YES: Task = "yes"  # yes or no: one output of a sample, or of each of its positions
LABELS: Task = "labels"  # several outputs of yes or no a sample
VALUES: Task = "values"
ANY_CLASS = (CLASSES, YES, LABELS)
TASK_NAMES = {
    CLASSES: "classes",
    YES: "yes-or-no outputs",
    LABELS: "several labels a sample",
    VALUES: "values (regression)",
}
N_THRESHOLDS = 1_000  # of a curve, spread evenly from 0 to 1


class MetricSpec(NamedTuple):
    """One metric.

    tasks : that it is defined for.
    needs : labels, which every model of a task tells; probabilities; or values.
    mode : whether the largest or the smallest value is best; None: it is no one number.
    merge : how it is merged over parties: by "sums", exactly; by sums of a "table" of
        `N_THRESHOLDS`; from "samples", so that it is for test_data only; by "means" of
        batches, weighted by samples.
    """

    name: str
    help: str
    tasks: tuple[Task, ...]
    needs: Need
    mode: Mode | None
    merge: Merge = "sums"

    @property
    def is_number(self) -> bool:
        """Whether its value is one number, and not a list or a matrix."""
        return self.mode is not None or self.merge == "means"


def _averages(name: str, what: str) -> list[MetricSpec]:
    """A rate of one class, and its averages over classes."""
    of_all = {
        "macro": "mean over classes",
        "micro": "over all answers together",
        "weighted": "mean over classes, by their samples",
    }
    return [
        MetricSpec(name, f"{what}, of yes or the second of two classes",
                   (CLASSES, YES), "labels", "max"),
        *(MetricSpec(f"{name}_{by}", f"{what}: {how}", ANY_CLASS, "labels", "max")
          for by, how in of_all.items()),
        MetricSpec(f"{name}_per_class", f"{what}, a number for each class",
                   ANY_CLASS, "labels", None),
    ]  # fmt: skip


def _top(k: int) -> MetricSpec:
    text = f"share of samples whose class is among the {k} most probable"
    return MetricSpec(f"accuracy_top{k}", text, (CLASSES,), "probabilities", "max")


_ALL = [
    MetricSpec("accuracy", "share of right answers", ANY_CLASS, "labels", "max"),
    _top(3),
    _top(5),
    _top(10),
    MetricSpec("balanced_accuracy", "mean recall over classes that have samples",
               (CLASSES, YES), "labels", "max"),
    *_averages("precision", "right among those said to be of a class"),
    *_averages("recall", "right among those of a class (sensitivity)"),
    *_averages("f1", "harmonic mean of precision and recall"),
    *_averages("specificity", "right among those not of a class"),
    MetricSpec("hamming_loss", "share of wrong labels", (LABELS,), "labels", "min"),
    MetricSpec("auroc", "area under the ROC curve; of several classes their mean",
               ANY_CLASS, "probabilities", "max", "table"),
    MetricSpec("average_precision", "area under precision and recall (AUPRC); of "
               "several classes their mean", ANY_CLASS, "probabilities", "max",
               "table"),
    MetricSpec("mcc", "Matthews correlation coefficient", (CLASSES, YES), "labels",
               "max"),
    MetricSpec("cohen_kappa", "agreement beyond chance", (CLASSES, YES), "labels",
               "max"),
    MetricSpec("iou", "intersection over union (Jaccard) of yes; of classes and labels "
               "their mean", ANY_CLASS, "labels", "max"),
    MetricSpec("iou_per_class", "intersection over union, a number for each class",
               ANY_CLASS, "labels", None),
    MetricSpec("dice", "overlap of yes; of classes and labels their mean (F1)",
               ANY_CLASS, "labels", "max"),
    MetricSpec("confusion_matrix", "counts: true classes down, said ones across",
               (CLASSES, YES), "labels", None),
    MetricSpec("perplexity", "exponential of the mean negative log-probability of the "
               "true classes or tokens", (CLASSES,), "probabilities", "min"),
    MetricSpec("mae", "mean absolute error", (VALUES,), "values", "min"),
    MetricSpec("mse", "mean squared error", (VALUES,), "values", "min"),
    MetricSpec("rmse", "root of the mean squared error", (VALUES,), "values", "min"),
    MetricSpec("mape", "mean absolute error as a share of the target", (VALUES,),
               "values", "min"),
    MetricSpec("smape", "mean absolute error as a share of the mean of target and "
               "value", (VALUES,), "values", "min"),
    MetricSpec("r2", "share of the targets' variance that is explained; of several "
               "outputs their mean", (VALUES,), "values", "max"),
    MetricSpec("explained_variance", "as r2, without the mean error", (VALUES,),
               "values", "max"),
    MetricSpec("pearson", "correlation of values and targets; of several outputs their "
               "mean", (VALUES,), "values", "max"),
    MetricSpec("spearman", "correlation of ranks", (VALUES,), "values", "max",
               "samples"),
]  # fmt: skip
METRICS: dict[str, MetricSpec] = {spec.name: spec for spec in _ALL}
# what other libraries, and people, call a metric
OTHER_NAMES = {
    "accuracy": "acc correct top1 accuracy_top1 accuracy_score binary_accuracy "
    "categorical_accuracy sparse_categorical_accuracy exact_match",
    "accuracy_top5": "top5 top_5 top5_accuracy top_5_accuracy top_k_accuracy topk "
    "accuracy_topk top_k_accuracy_score",
    "balanced_accuracy": "balanced_acc bacc balanced_accuracy_score",
    "precision": "ppv positive_predictive_value precision_score",
    "recall": "sensitivity tpr true_positive_rate recall_score",
    "specificity": "tnr true_negative_rate selectivity",
    "f1": "f1_score f_score fscore f1score f_measure",
    "f1_macro": "macro_f1 f1_score_macro macro_f1_score",
    "f1_micro": "micro_f1 f1_score_micro micro_f1_score",
    "f1_weighted": "weighted_f1 f1_score_weighted weighted_f1_score",
    "precision_macro": "macro_precision",
    "recall_macro": "macro_recall uar",
    "hamming_loss": "hamming hamming_distance",
    "auroc": "auc roc_auc roc_auc_score auc_roc rocauc aucroc area_under_roc "
    "roc_auc_ovr",
    "average_precision": "auprc aupr ap pr_auc prauc auc_pr average_precision_score "
    "mean_average_precision map",
    "mcc": "matthews matthews_corrcoef phi",
    "cohen_kappa": "kappa cohens_kappa cohen_kappa_score",
    "iou": "jaccard miou mean_iou jaccard_index jaccard_score meaniou",
    "dice": "dice_score dice_coefficient dice_coeff",
    "confusion_matrix": "confusion cm confmat confusionmatrix",
    "perplexity": "ppl",
    "mae": "l1 mean_absolute_error neg_mean_absolute_error",
    "mse": "l2 mean_squared_error neg_mean_squared_error",
    "rmse": "root_mean_squared_error",
    "mape": "mean_absolute_percentage_error",
    "smape": "symmetric_mape",
    "r2": "r2_score rsquared r_squared coefficient_of_determination",
    "explained_variance": "explained_variance_score evs",
    "pearson": "pearsonr pearson_r correlation pearson_corr pcc",
    "spearman": "spearmanr spearman_r rank_correlation",
}
_LOSS = MetricSpec("loss", "the loss on the test samples", (), "values", "min")


def label_of(name: str) -> str:
    """The name under which a metric's values stand: of a function its own."""
    if not is_source(name):
        return name
    return name.rpartition("/" if is_in_memory(name) else ":")[2]


def find_metric(name: str) -> MetricSpec | None:
    """The declaration of a metric: a built-in one, ``loss``, or a function's.

    None where there is no such metric: a number that `evaluate` of a class of the
    user's own may give.
    """
    if name == "loss":
        return _LOSS
    if is_source(name):
        text = "the user's own: the mean over batches, weighted by samples"
        return MetricSpec(name, text, (), "values", None, "means")
    return METRICS.get(name)


def suggest_metric(name: str, metrics: Collection[str] = ()) -> str | None:
    """The metric that a name which does not exist was meant to be; None if none is.

    metrics : that may be meant; empty: all.
    """
    names = [*(metrics or METRICS)]
    wanted = normalize(name)
    for metric in names:
        if wanted in OTHER_NAMES.get(metric, "").split():
            return metric
    return nearest(name, names)


def describe_unknown_metric(name: str, metrics: Collection[str] = ()) -> str:
    """Message about a metric that does not exist: the nearest one, or all."""
    near = suggest_metric(name, metrics)
    listed = f"choose from {', '.join(metrics or METRICS)}, or file.py:function"
    hint = f"did you mean {near!r}?" if near else listed
    return f"unknown metric {name[:MAX_COMPARED]!r}; {hint}"


def describe_tasks(spec: MetricSpec) -> str:
    """What a metric is for, in words."""
    words = list(dict.fromkeys(TASK_NAMES[task] for task in spec.tasks))
    return " or ".join(words)


def known_mode(name: str) -> Mode | None:
    """Whether more of a metric is better; None: it is not known, or no one number."""
    spec = find_metric(name)
    return spec.mode if spec else None
