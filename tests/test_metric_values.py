"""Metrics that a config names: the registry, sums over parties, values, bad input."""

import pytest

from fedray.config import metrics


def test_every_metric_is_declared_once_with_a_mode_or_a_reason_for_none():
    names = [spec.name for spec in metrics._ALL]
    assert sorted(names) == sorted(set(names))
    for name, spec in metrics.METRICS.items():
        is_list = name.endswith("_per_class") or name == "confusion_matrix"
        assert (spec.mode is None) == is_list, name
        assert spec.tasks
    assert set(metrics.OTHER_NAMES) <= set(metrics.METRICS)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("f1_macro", "max"), ("loss", "min"), ("rmse", "min"), ("confusion_matrix", None),
     ("mine.py:cost", None), ("nothing", None)],
)  # fmt: skip
def test_the_mode_of_a_metric_is_known_but_of_functions_and_lists(name, mode):
    assert metrics.mode_of(name) == mode


@pytest.mark.parametrize(
    ("name", "meant"),
    [("AUC", "auroc"), ("f1-macro", "f1_macro"), ("F1Score", "f1"), ("r2_score", "r2"),
     ("jaccard", "iou"), ("confusion", "confusion_matrix"), ("f1_makro", "f1_macro"),
     ("qqqq", None)],
)  # fmt: skip
def test_a_metric_that_does_not_exist_was_meant_to_be_another(name, meant):
    assert metrics.suggest_metric(name) == meant
