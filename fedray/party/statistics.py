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
        whole: Any = site.samples.train
        test: Any = site.samples.test
        if plan.config.partition is None:
            return step.count(plan.blueprint, whole, test, plan.name)
        for i, rows in enumerate(site.pieces):
            own_test = test.take(NONE) if i else test  # counted once
            own = step.count(plan.blueprint, whole.take(rows), own_test, plan.name)
            counts.append(own)
    return DataSurvey.merge(counts)
