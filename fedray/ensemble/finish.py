"""Writes a finished run's ensemble: members, their weights, the distilled student."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fedray import data
from fedray.checkpoint import RunFolder
from fedray.config import FederationConfig
from fedray.ensemble.distillation import Student
from fedray.ensemble.members import FILE, Ensemble, Member, read_signatures
from fedray.models import Blueprint

Members = tuple[tuple[FederationConfig, Blueprint], ...]
MIN_PROBABILITY = 1e-12  # of the logarithm in the loss


def write_ensemble(
    folder: RunFolder, config: FederationConfig, members: Members
) -> tuple[dict[str | None, Path], dict[str, Any]]:
    """Write the ensemble of a finished run, and its student if there is to be one.

    With `member_weights: accuracy` every second sample of `test_data` decides how much
    a member weighs, and the others score the ensemble and the student: no score is of
    samples that decided weights.

    Returns
    -------
    Model files by member, under None the one to load; and what `ensemble.json` says.
    """
    combined = _read_ensemble(folder, config, members)
    x, y = _test_samples(config) if config.test_data else (np.empty(0), np.empty(0))
    if config.member_weights == "accuracy":
        _weigh_by_accuracy(combined, x[::2], y[::2])
        x, y = x[1::2], y[1::2]
    summary = _scores("", combined, x, y)
    main_file = folder.path / FILE
    if config.distill:
        student, main_file = Student(config), folder.path / "global_model.pt"
        summary["distill_loss"] = student.learn(combined.predict(student.x))
        distilled = student.member()
        summary["student"] = distilled.write(folder.path, main_file.name)
        summary |= _scores("student_", Ensemble([distilled]), x, y)
    combined.save(folder.path, **summary)
    files: dict[str | None, Path] = {None: main_file}
    files |= {member.name: folder.path / member.file for member in combined.members}
    summary["members"] = [
        [m.name, m.config.model_type, m.weight] for m in combined.members
    ]
    return files, summary


def _read_ensemble(
    folder: RunFolder, config: FederationConfig, members: Members
) -> Ensemble:
    signatures, ensemble_members = read_signatures(folder.path), []
    for party, (member_config, blueprint) in zip(config.parties, members, strict=True):
        own = RunFolder(folder.path, folder.keep, party.name)
        weights = own.last_checkpoint().weights
        signature = signatures.get(party.name)
        sample = signature.sample if signature else None
        run_config = blueprint.settle(member_config)
        ensemble_members.append(
            Member(party.name, run_config, blueprint, weights, sample)
        )
    return Ensemble(ensemble_members)


def _weigh_by_accuracy(combined: Ensemble, x: np.ndarray, y: np.ndarray) -> None:
    """Weigh members by their accuracy on these samples; equal if all are 0."""
    answers = combined.each(x).values()
    accuracies = [float((answer.argmax(1) == y).mean()) for answer in answers]
    if sum(accuracies) > 0:
        combined.members = [
            dataclasses.replace(member, weight=accuracy)
            for member, accuracy in zip(combined.members, accuracies, strict=True)
        ]


def _test_samples(config: FederationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Samples of `test_data` and their labels, read by the first party's handler."""
    samples = data.load(data.named(config.handler_of(0)), config.test_data or "")
    y = samples.y_test
    is_one_hot = y.ndim == 2 and y.shape[1] > 1
    labels = y.argmax(1) if is_one_hot else y.reshape(len(y)).astype(int)
    return samples.x_test, labels


def _scores(
    prefix: str, combined: Ensemble, x: np.ndarray, y: np.ndarray
) -> dict[str, Any]:
    """Mean negative log-likelihood and accuracy on samples, if there are any."""
    if not len(x):
        return {}
    predicted = combined.predict(x)
    of_label = np.maximum(predicted[np.arange(len(y)), y], MIN_PROBABILITY)
    loss, accuracy = -np.log(of_label).mean(), (predicted.argmax(1) == y).mean()
    scores = {f"{prefix}loss": float(loss), f"{prefix}accuracy": float(accuracy)}
    return scores | ({} if prefix else {"evaluated": len(y)})
