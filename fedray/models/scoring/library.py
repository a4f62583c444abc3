"""torchmetrics: sums of values at parties, and the values that are computed of sums."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from fedray.errors import MissingExtra

EXTRA = "metrics"
VALUE_METRICS: dict[str, tuple[str, dict[str, Any]]] = {  # torchmetrics' class, and
    "mae": ("MeanAbsoluteError", {}),  # its arguments
    "mse": ("MeanSquaredError", {}),
    "rmse": ("MeanSquaredError", {"squared": False}),
    "mape": ("MeanAbsolutePercentageError", {}),
    "smape": ("SymmetricMeanAbsolutePercentageError", {}),
    "r2": ("R2Score", {}),
    "explained_variance": ("ExplainedVariance", {}),
    "spearman": ("SpearmanCorrCoef", {}),
}
WITHOUT = {  # metrics that are computed here, of the sums alone
    *("accuracy", "accuracy_top3", "accuracy_top5", "accuracy_top10"),
    *("balanced_accuracy", "hamming_loss", "mcc", "iou", "iou_per_class", "dice"),
    *("confusion_matrix", "perplexity", "pearson"),
}


def library(metric: str) -> Any:
    """The package torchmetrics.

    Raises
    ------
    MissingExtra
        If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchmetrics
    except ImportError:
        raise MissingExtra(f"metrics: [{metric}]", EXTRA) from None
    return torchmetrics


def require(metrics: Iterable[str]) -> None:
    """Raise MissingExtra where one of these metrics needs the package, and it lacks."""
    if needing := [name for name in metrics if name not in WITHOUT]:
        library(needing[0])


def make(metric: str, name: str, **args: Any) -> Any:
    """An object of a class of torchmetrics, which computes in float64.

    metric : that it is for; name : of the class, within ``classification`` or at the
        top.
    """
    package = library(metric)
    holder = package if hasattr(package, name) else package.classification
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples that are kept
        return getattr(holder, name)(**args).set_dtype(torch.float64)


def make_value_sums(metric: str, n_outputs: int = 1) -> Any:
    """The object of torchmetrics that adds up values for a metric.

    n_outputs : of a sample, where it has to be known.
    """
    name, args = VALUE_METRICS[metric]
    if metric == "spearman":
        args = {"num_outputs": n_outputs}
    return make(metric, name, **args)


def read(metric_object: Any) -> dict[str, np.ndarray]:
    """The sums of an object of torchmetrics, by their names there."""
    return {
        name: _to_array(state) for name, state in metric_object.metric_state.items()
    }


def _to_array(state: Any) -> np.ndarray:
    tensor = state if isinstance(state, torch.Tensor) else torch.cat(state)
    return tensor.detach().cpu().numpy()


def compute(metric_object: Any, states: Mapping[str, np.ndarray]) -> np.ndarray:
    """What an object of torchmetrics computes of these sums, float64."""
    for name, array in states.items():
        tensor = torch.from_numpy(np.asarray(array))
        is_list = isinstance(getattr(metric_object, name), list)
        setattr(metric_object, name, [tensor] if is_list else tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sums were not made by its own `update`
        value = metric_object.compute()
    return value.detach().double().numpy()
