"""Models that stay apart and answer together: made by a run, loaded as one object."""

from fedray.ensemble.compatibility import disagreeing
from fedray.ensemble.distillation import Student
from fedray.ensemble.loading import FILE, load
from fedray.ensemble.members import (
    Ensemble,
    Form,
    Member,
    fitted,
    forms_of,
    keep_forms,
)

__all__ = [
    "FILE",
    "Ensemble",
    "Form",
    "Member",
    "Student",
    "disagreeing",
    "fitted",
    "forms_of",
    "keep_forms",
    "load",
]
