"""Whether members fit one ensemble: as many classes, samples that serve them all."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedray.config import FederationConfig
from fedray.ensemble.distillation import Student
from fedray.ensemble.members import MemberSignature, fit_samples
from fedray.errors import DataError

STUDENT = "the student"


def incompatible_members(
    members: Mapping[str, MemberSignature], config: FederationConfig
) -> dict[str, str]:
    """Which members do not fit an ensemble of most others, and why; {} if all fit."""
    if not members:
        return {}
    reasons, student = {}, Student(config) if config.distill else None
    n_needed = _most_common(member.n_classes for member in members.values())
    sample = _most_common(member.sample for member in members.values())
    if student and student.n_classes != n_needed:
        got = f"it tells {student.n_classes} classes apart, the members "
        reasons[STUDENT] = f"{got}{n_needed}"
    for name, member in members.items():
        if member.n_classes != n_needed:
            got = f"its model tells {member.n_classes} classes apart, most others "
            needed = f"{n_needed}: members of an ensemble need the same"
            reasons[name] = got + needed
        elif not _takes(member, np.empty((1, *sample), np.bool_)):
            got = f"its samples are {list(member.sample)}, most others' {list(sample)}"
            reasons[name] = f"{got}: one array must serve all members of an ensemble"
        elif student and not _takes(member, student.x[:1]):
            needed = f"{list(student.x.shape[1:])} of distill_data"
            got = f"its samples are {list(member.sample)}, not"
            reasons[name] = f"{got} {needed} {config.distill_data}"
    return reasons


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _takes(member: MemberSignature, x: np.ndarray) -> bool:
    try:
        fit_samples(x, member.sample, "")
        return True
    except DataError:
        return False
