"""An ensemble's members: read before a run, put together after its last round."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from fedray import data, ensemble, models
from fedray.checkpoint import RunFolder
from fedray.config import FederationConfig
from fedray.ensemble import Ensemble, Member, Student, forms_of
from fedray.models import Blueprint
from fedray.weights import Weights

LOG = logging.getLogger("fedray")
Members = tuple[tuple[FederationConfig, Blueprint], ...]


def missing(config: FederationConfig) -> list[str]:
    """What a distillation needs and is not there."""
    found = []
    for key in ("distill", "distill_data"):
        given = getattr(config, key) or ""
        before, dot_py, _ = given.rpartition(".py:")
        file = f"{before}.py" if dot_py else given
        if file and not Path(file).is_file():
            found.append(f"{key} {file} does not exist")
    return found


def read_models(
    config: FederationConfig,
) -> tuple[FederationConfig, Blueprint, Weights | dict[str, Weights], Members]:
    """The settled config, the model that all start from, its weights; and members.

    Of an ensemble the weights are every member's by name, the model is the first's.
    """
    if config.fusion_algorithm == "ensemble":
        members, starts = read_members(config)
        return config, members[0][1], starts, members
    blueprint, weights = models.named(config.model_type).read(config)
    return blueprint.settle(config), blueprint, weights, ()


def read_members(config: FederationConfig) -> tuple[Members, dict[str, Weights]]:
    """Every party's own settled config and blueprint, and its initial weights.

    Raises
    ------
    FedrayError
        If a member's model, or the student it is distilled into, cannot be used.
    """
    members, starts = [], {}
    for place, party in enumerate(config.parties):
        own = config.member(place)
        blueprint, starts[party.name] = models.named(own.model_type).read(own)
        members.append((blueprint.settle(own), blueprint))
    if config.distill:
        Student(config)  # what is wrong with it is told before anyone trains
    return tuple(members), starts


def put_together(
    folder: RunFolder, config: FederationConfig, members: Members
) -> tuple[dict[str | None, Path], tuple[float, float] | None]:
    """Write the ensemble of a finished run, and its student if there is to be one.

    Returns
    -------
    Model files by member, under None the one to load; and the ensemble's loss and
    accuracy on `test_data`, if that is given.
    """
    made = _ensemble(folder, config, members)
    told, score = {}, None
    if config.test_data:
        x, y = _tests(config)
        score = _score(made.predict(x), y)
        told = {"loss": score[0], "accuracy": score[1]}
    whole = folder.path / ensemble.FILE
    if config.distill:
        student, whole = Student(config), folder.path / "global_model.pt"
        told["distill_loss"] = student.learn(made.predict(student.x), whole)
        if config.test_data:
            said = student.model.probabilities(
                ensemble.fitted(x, student.x.shape[1:], "distill")
            )
            told["student_loss"], told["student_accuracy"] = _score(said, y)
        told["student"] = whole.name
    made.save(folder.path, **told)
    files = {member.name: folder.path / member.file for member in made.members}
    return {None: whole, **files}, score


def _ensemble(
    folder: RunFolder, config: FederationConfig, members: Members
) -> Ensemble:
    forms = forms_of(folder.path)
    last = {report.group: report for report in folder.history()}
    found = []
    for party, (own, blueprint) in zip(config.parties, members, strict=True):
        kept = RunFolder(folder.path, folder.keep, party.name).newest()[0]
        form, name = forms.get(party.name), party.name
        found.append(Member(name, own, blueprint, kept.weights, form and form.sample))
    if config.member_weights == "accuracy":
        scores = [last[member.name].accuracy or 0.0 for member in found]
        if sum(scores) > 0:
            found = [
                dataclasses.replace(member, weight=score)
                for member, score in zip(found, scores, strict=True)
            ]
    return Ensemble(found)


def _tests(config: FederationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Samples of `test_data` and their labels, as the first party's handler reads."""
    samples = data.load(data.named(config.handler_of(0)), config.test_data)
    y = samples.y_test
    one_hot = y.ndim == 2 and y.shape[1] > 1
    return samples.x_test, y.argmax(1) if one_hot else y.reshape(len(y)).astype(int)


def _score(told: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean negative log-likelihood and accuracy of probabilities (N, C)."""
    right = np.maximum(told[np.arange(len(y)), y], 1e-12)
    return float(-np.log(right).mean()), float((told.argmax(1) == y).mean())
