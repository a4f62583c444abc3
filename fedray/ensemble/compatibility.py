"""Whether members can answer together: as many classes, samples that serve them all."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedray.config import FederationConfig
from fedray.ensemble.distillation import Student
from fedray.ensemble.members import Form, fitted
from fedray.errors import DataError

STUDENT = "the student"


def disagreeing(
    members: Mapping[str, Form], config: FederationConfig
) -> dict[str, str]:
    """Who cannot be in one ensemble with most others, and why; empty if all can."""
    if not members:
        return {}
    found, student = {}, Student(config) if config.distill else None
    n_needed = _most(form.n_classes for form in members.values())
    sample = _most(form.sample for form in members.values())
    if student and student.n_classes != n_needed:
        told = f"it tells {student.n_classes} classes apart, the members "
        found[STUDENT] = f"{told}{n_needed}"
    for name, form in members.items():
        if form.n_classes != n_needed:
            told = f"its model tells {form.n_classes} classes apart, most others "
            found[name] = f"{told}{n_needed}: members of an ensemble need the same"
        elif not _fits(np.empty((1, *sample), np.bool_), form):
            told = f"its samples are {list(form.sample)}, most others' {list(sample)}: "
            found[name] = f"{told}one array must serve all members of an ensemble"
        elif student and not _fits(student.x[:1], form):
            told = f"{list(student.x.shape[1:])} of distill_data {config.distill_data}"
            found[name] = f"its samples are {list(form.sample)}, not {told}"
    return found


def _most(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _fits(x: np.ndarray, form: Form) -> bool:
    try:
        fitted(x, form.sample, "")
        return True
    except DataError:
        return False
