"""What a site's parties count of their samples for a model that is made of counts."""

import dataclasses
from typing import Any

import numpy as np

from fedray import models
from fedray.party.failures import READING, sanitize_errors
from fedray.party.loading import GroupPlan, read_samples
from fedray.survey import DataCodes, DataSurvey

NONE = np.arange(0)  # places of no samples


def count_statistics(plan: GroupPlan, codes: DataCodes | None) -> DataSurvey:
    """Count what the plan's blueprint asks for next, over the parties of one site.

    codes : what all parties read their data by.
    """
    step = models.named(plan.blueprint.model_type).statistics
    if step is None:
        raise TypeError(f"model_type {plan.blueprint.model_type} asks for no counts")
    plan = dataclasses.replace(plan, codes=codes)
    site = read_samples(plan)
    counts = []
    with sanitize_errors(plan, READING):
        whole, test = site.samples.train, site.samples.test
        for i, rows in enumerate(site.pieces):
            own_test = _take(test, NONE) if i else test  # counted once
            own = _take(whole, rows), own_test
            counts.append(step.count(plan.blueprint, *own, plan.name))
    return DataSurvey.merge(counts)


def _take(part: Any, rows: np.ndarray) -> Any:
    """The samples at these places of arrays, or of a dataset, which stays unread."""
    is_all = np.array_equal(rows, np.arange(part.n_samples))
    return part if is_all else part.take(rows)
