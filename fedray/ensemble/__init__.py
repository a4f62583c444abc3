"""Trained models and ensembles: loading, predictions, scores, ONNX."""

from fedray.ensemble.distillation import Student, missing_files
from fedray.ensemble.loading import load
from fedray.ensemble.members import (
    FILE,
    Ensemble,
    Member,
    MemberSignature,
    fit_samples,
)
from fedray.ensemble.prediction import (
    DataSource,
    evaluate_data,
    export_onnx,
    write_predictions,
)
from fedray.ensemble.workflow import (
    BestModel,
    InitialModels,
    Workflow,
    incompatible_members,
    workflow_of,
    write_best,
)

__all__ = [
    "FILE",
    "BestModel",
    "DataSource",
    "Ensemble",
    "InitialModels",
    "Member",
    "MemberSignature",
    "Student",
    "Workflow",
    "evaluate_data",
    "export_onnx",
    "fit_samples",
    "incompatible_members",
    "load",
    "missing_files",
    "workflow_of",
    "write_best",
    "write_predictions",
]
