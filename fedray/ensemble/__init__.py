"""Ensembles: models that stay apart and answer together by their mean probabilities."""

from fedray.ensemble.distillation import Student, missing_files
from fedray.ensemble.loading import load
from fedray.ensemble.members import (
    FILE,
    Ensemble,
    Member,
    MemberSignature,
    fit_samples,
)
from fedray.ensemble.workflow import (
    InitialModels,
    Workflow,
    incompatible_members,
    workflow_of,
)

__all__ = [
    "FILE",
    "Ensemble",
    "InitialModels",
    "Member",
    "MemberSignature",
    "Student",
    "Workflow",
    "fit_samples",
    "incompatible_members",
    "load",
    "missing_files",
    "workflow_of",
]
