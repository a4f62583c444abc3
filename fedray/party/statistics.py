"""What a site's parties count of their samples for a model that is made of counts."""

import dataclasses

import numpy as np

from fedray import models
from fedray.errors import DataError
from fedray.nested import Arrays, take
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
        if not isinstance(whole, Arrays) or not isinstance(test, Arrays):
            got = "what is no arrays from the data_handler"
            raise DataError(plan.name, got, "arrays of samples and targets")
        for rows in site.pieces:
            is_all = np.array_equal(rows, np.arange(whole.n_samples))
            train = whole
            if not is_all:
                train = Arrays(take(whole.x, rows), take(whole.y, rows))
            counts.append(step.count(plan.blueprint, train, test, plan.name))
            test = Arrays(take(test.x, NONE), take(test.y, NONE))  # counted once
    return DataSurvey.merge(counts)
