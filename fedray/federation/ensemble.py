"""An ensemble's members: read before a run, put together after its last round."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

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
) -> tuple[dict[str | None, Path], dict[str, Any]]:
    """Write the ensemble of a finished run, and its student if there is to be one.

    With `member_weights: accuracy` every second sample of `test_data` weighs, and the
    others tell how good the ensemble and the student are: no score is of what was
    weighed by.

    Returns
    -------
    Model files by member, under None the one to load; and what `ensemble.json` says.
    """
    made = _ensemble(folder, config, members)
    x, y = _tests(config) if config.test_data else (np.empty(0), np.empty(0))
    if config.member_weights == "accuracy":
        _weigh(made, x[::2], y[::2])
        x, y = x[1::2], y[1::2]
    told = _scored("", made, x, y)
    whole = folder.path / ensemble.FILE
    if config.distill:
        student, whole = Student(config), folder.path / "global_model.pt"
        told["distill_loss"] = student.learn(made.predict(student.x))
        one = student.member()
        told["student"] = one.write(folder.path, whole.name)
        told |= _scored("student_", Ensemble([one]), x, y)
    made.save(folder.path, **told)
    files = {member.name: folder.path / member.file for member in made.members}
    told["members"] = [[m.name, m.config.model_type, m.weight] for m in made.members]
    return {None: whole, **files}, told


def _ensemble(
    folder: RunFolder, config: FederationConfig, members: Members
) -> Ensemble:
    forms, found = forms_of(folder.path), []
    for party, (own, blueprint) in zip(config.parties, members, strict=True):
        kept = RunFolder(folder.path, folder.keep, party.name).newest()[0]
        form, name = forms.get(party.name), party.name
        found.append(Member(name, own, blueprint, kept.weights, form and form.sample))
    return Ensemble(found)


def _weigh(made: Ensemble, x: np.ndarray, y: np.ndarray) -> None:
    """Let members weigh as they do on these samples; equal if all are always wrong."""
    said = made.each(x).values()
    right = [float((answer.argmax(1) == y).mean()) for answer in said]
    if sum(right) > 0:
        made.members = [
            dataclasses.replace(member, weight=weight)
            for member, weight in zip(made.members, right, strict=True)
        ]


def _tests(config: FederationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Samples of `test_data` and their labels, as the first party's handler reads."""
    samples = data.load(data.named(config.handler_of(0)), config.test_data)
    y = samples.y_test
    one_hot = y.ndim == 2 and y.shape[1] > 1
    return samples.x_test, y.argmax(1) if one_hot else y.reshape(len(y)).astype(int)


def _scored(who: str, made: Ensemble, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Mean negative log-likelihood and accuracy on samples, if there are any."""
    if not len(x):
        return {}
    said = made.predict(x)
    right = np.maximum(said[np.arange(len(y)), y], 1e-12)
    loss, accuracy = -np.log(right).mean(), (said.argmax(1) == y).mean()
    scores = {f"{who}loss": float(loss), f"{who}accuracy": float(accuracy)}
    return scores | ({} if who else {"evaluated": len(y)})
