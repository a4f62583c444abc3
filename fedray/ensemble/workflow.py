"""How a run's parties share models: global ones for all or for groups, or an ensemble.

A workflow says which models a run starts from, who shares which, whether parties that
joined fit together, and what is written after the last round.
"""

import contextlib
import dataclasses
import glob
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedray import data, models, policy
from fedray.checkpoint import BEST, LAST, Checkpoint, RunFolder, model_name
from fedray.config import FederationConfig, goal_name, local_solver_problems
from fedray.ensemble.distillation import Student
from fedray.ensemble.members import (
    FILE,
    Ensemble,
    Member,
    MemberSignature,
    fit_samples,
    read_signatures,
    to_class_numbers,
    write_signatures,
)
from fedray.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtra,
    format_count,
)
from fedray.messages import PartyInfo
from fedray.models import Blueprint
from fedray.nested import is_one
from fedray.survey import DataCodes, read_codes, without_normalization
from fedray.weights import Weights

Files = dict[str | None, Path]  # model files by group or member; None: the one to load
Members = tuple[tuple[FederationConfig, Blueprint], ...]
STUDENT = "the student"
LOG = logging.getLogger("fedray")


class BestModel(NamedTuple):
    """The model of a run's best round, by the metric that `keep_best` names."""

    file: Path
    round: int
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.file}: round {self.round}, {self.metric} {self.value:.6g}"


@dataclass(frozen=True)
class InitialModels:
    """The models that a run starts from, read and checked.

    config : the run's; where parties share models, with all that training uses.
    blueprints, weights : by member of an ensemble, or one under None for all.
    members : of an ensemble, what each party trains by, in config order.
    """

    config: FederationConfig
    blueprints: dict[str | None, Blueprint]
    weights: dict[str | None, Weights]
    members: Members = ()


class Workflow(Protocol):
    """What differs between runs whose parties share models and ensembles.

    group_noun : what one of several models of a run is called.
    """

    group_noun: str

    def read(self) -> InitialModels:
        """Read the models that the run starts from.

        Raises
        ------
        FedrayError
            If one cannot be used.
        """

    def groups(self) -> dict[str | None, np.ndarray] | None:
        """Places of each model's parties, where the workflow fixes them; else None."""

    def member(self, place: int) -> FederationConfig:
        """The config that the party at this place trains by."""

    def evaluation(self) -> tuple[FederationConfig, str]:
        """The config and the data handler that `test_data` is read with."""

    def check_joined(
        self, parties: Mapping[str, PartyInfo], folder: Path
    ) -> dict[str, str]:
        """Which of the parties that joined cannot take part, and why."""

    def finish(
        self, folder: RunFolder, blueprint: Blueprint, members: Members
    ) -> tuple[Files, dict[str, Any]]:
        """Write the models of a finished run; their files, and scores where known."""


def workflow_of(config: FederationConfig) -> Workflow:
    """The workflow that a config asks for."""
    if config.has_member_models:
        return EnsembleWorkflow(config)
    return SharedModelWorkflow(config)


class SharedModelWorkflow:
    """All parties, or all of a group, train and share one global model."""

    group_noun = "group"

    def __init__(self, config: FederationConfig):
        self.config = config

    def read(self) -> InitialModels:
        """Read the one model that all parties start from."""
        blueprint, weights = models.read(self.config)
        config = blueprint.settle(self.config)
        if problems := local_solver_problems(config):  # of what a file has been given
            raise ConfigError(problems)
        return InitialModels(config, {None: blueprint}, {None: weights})

    def groups(self) -> dict[str | None, np.ndarray] | None:
        """None: the config's `groups` decides."""
        return None

    def member(self, place: int) -> FederationConfig:
        """The run's config."""
        return self.config

    def evaluation(self) -> tuple[FederationConfig, str]:
        """The run's config and data handler."""
        return self.config, self.config.data_handler

    def check_joined(
        self, parties: Mapping[str, PartyInfo], folder: Path
    ) -> dict[str, str]:
        """Nothing to check: every party has been probed with the shared model."""
        return {}

    def finish(
        self, folder: RunFolder, blueprint: Blueprint, members: Members
    ) -> tuple[Files, dict[str, Any]]:
        """Write each group's global model, and its arrays as .safetensors."""
        files: Files = {}
        for group in sorted(folder.groups(), key=str):
            own = RunFolder(folder.path, folder.keep, group)
            file = folder.path / model_name(LAST, group)
            files[group] = write_model(blueprint, own.last_checkpoint().weights, file)
        return files, {}


def write_best(
    folder: RunFolder, config: FederationConfig, blueprint: Blueprint
) -> dict[str | None, BestModel]:
    """Write the best model of each group beside the last one; older ones go."""
    best: dict[str | None, BestModel] = {}
    for group in sorted(folder.groups(), key=str):
        path = folder.path / model_name(BEST, group)
        score = read_best(RunFolder(folder.path, folder.keep, group), config)
        if score is None:
            for old in folder.path.glob(f"{glob.escape(path.name)}.*"):
                old.unlink()
            continue
        checkpoint, metric, value = score
        file = write_model(blueprint, checkpoint.weights, path)
        best[group] = BestModel(file, checkpoint.round, metric, value)
    return best


def write_model(blueprint: Blueprint, weights: Weights, path: Path) -> Path:
    """Write a model file, and its arrays as .safetensors; the file to load.

    path : without a suffix.
    """
    adapter = models.named(blueprint.model_type)
    file = path.with_name(path.name + adapter.suffix)
    adapter.write(blueprint, weights, file)
    with contextlib.suppress(MissingExtra):  # the model file has the arrays too
        adapter.write(blueprint, weights, path.with_name(f"{path.name}.safetensors"))
    if save := getattr(adapter, "save_adapter", None):  # of peft, if it has any
        save(blueprint, weights, path.with_name("adapter" + path.name[len(LAST) :]))
    if isinstance(adapter, models.CustomAdapter):
        file = adapter.save(blueprint, weights, path) or file
    return file


def read_best(
    folder: RunFolder, config: FederationConfig
) -> tuple[Checkpoint, str, float] | None:
    """The checkpoint that is the best by `keep_best`; the metric, and its value.

    None without the key, or where no round that is kept was measured. One that is
    damaged is passed over, and logged.
    """
    goal = config.keep_best
    if goal is None:
        return None
    rounds = set(folder.saved_rounds())
    reports = [r for r in folder.history() if r.group == folder.group]
    while best := policy.best_report(goal, (r for r in reports if r.round in rounds)):
        try:
            value = policy.value_of(goal, best) or 0.0
            return folder.checkpoint_of(best.round), goal_name(goal), value
        except CheckpointError as error:
            LOG.warning("the best model is passed over: %s", error)
            rounds.discard(best.round)
    return None


class EnsembleWorkflow:
    """Every party trains a model of its own; together they answer as an ensemble."""

    group_noun = "member"

    def __init__(self, config: FederationConfig):
        self.config = config

    def read(self) -> InitialModels:
        """Read every member's model, and the student that they are distilled into."""
        blueprints: dict[str | None, Blueprint] = {}
        initial: dict[str | None, Weights] = {}
        members = []
        for place, party in enumerate(self.config.parties):
            own = self.member(place)
            blueprint, weights = models.read(own)
            blueprints[party.name], initial[party.name] = blueprint, weights
            members.append((blueprint.settle(own), blueprint))
        if self.config.distill:
            Student(self.config)  # its mistakes are raised before anyone trains
        return InitialModels(self.config, blueprints, initial, tuple(members))

    def groups(self) -> dict[str | None, np.ndarray] | None:
        """One party for each model."""
        return {
            party.name: np.array([place])
            for place, party in enumerate(self.config.parties)
        }

    def member(self, place: int) -> FederationConfig:
        """The party's own settings over everyone's."""
        return self.config.member(place)

    def evaluation(self) -> tuple[FederationConfig, str]:
        """The first member's config and data handler."""
        return self.member(0), self.config.handler_of(0)

    def check_joined(
        self, parties: Mapping[str, PartyInfo], folder: Path
    ) -> dict[str, str]:
        """Members that differ from most; notes in the folder what each takes."""
        signatures = {
            name: MemberSignature(info.sample, info.n_classes)
            for name, info in parties.items()
        }
        refused = incompatible_members(signatures, self.config)
        write_signatures(folder, signatures)
        return refused

    def finish(
        self, folder: RunFolder, blueprint: Blueprint, members: Members
    ) -> tuple[Files, dict[str, Any]]:
        """Write the ensemble, and its student if there is to be one."""
        return write_ensemble(folder, self.config, members)


def incompatible_members(
    members: Mapping[str, MemberSignature], config: FederationConfig
) -> dict[str, str]:
    """Which members do not fit an ensemble of most others, and why; {} if all fit."""
    # of data that is no array nothing is known before the member predicts
    members = {name: one for name, one in members.items() if one.n_classes}
    if not members:
        return {}
    reasons, student = {}, Student(config) if config.distill else None
    n_needed = _most_common(member.n_classes for member in members.values())
    sample = _most_common(member.sample for member in members.values())
    if student and student.n_classes != n_needed:
        classes = format_count(student.n_classes, "class", "classes")
        reasons[STUDENT] = f"it tells {classes} apart, the members {n_needed}"
    for name, member in members.items():
        if member.n_classes != n_needed:
            classes = format_count(member.n_classes, "class", "classes")
            got = f"its model tells {classes} apart, most others {n_needed}"
            reasons[name] = f"{got}: members of an ensemble need the same"
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
    codes, (x, y) = combined.members[0].codes, (np.empty(0), np.empty(0))
    if config.test_data:
        x, y = _test_samples(config, codes)
    if config.member_weights == "accuracy":
        _weigh_by_accuracy(combined, x[::2], y[::2])
        x, y = x[1::2], y[1::2]
    summary = _scores("", combined, x, y)
    main_file = folder.path / FILE
    if config.distill:
        student, main_file = Student(config, codes), folder.path / "global_model.pt"
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
    codes = read_codes(folder.path)
    for party, (member_config, blueprint) in zip(config.parties, members, strict=True):
        own = RunFolder(folder.path, folder.keep, party.name)
        weights = own.last_checkpoint().weights
        signature = signatures.get(party.name)
        has_sample = signature is not None and signature.n_classes > 0
        sample = signature.sample if signature and has_sample else None
        run_config = blueprint.settle(member_config)
        ensemble_members.append(
            Member(party.name, run_config, blueprint, weights, sample, codes=codes)
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


def _test_samples(
    config: FederationConfig, codes: DataCodes | None
) -> tuple[np.ndarray, np.ndarray]:
    """Samples of `test_data` and their labels, read by the first party's handler.

    Not standardised: the ensemble does that.
    """
    handler, path = data.named(config.handler_of(0)), config.test_data or ""
    codes, origin = without_normalization(codes), data.Origin(is_test=True)
    samples = data.load(handler, path, config.data_args, origin, codes)
    if not isinstance(samples, data.Samples) or not is_one(samples.y_test):
        got = "test_data that are no arrays of samples and labels"
        raise DataError("of an ensemble", got, "arrays, with a label of each sample")
    return samples.x_test, to_class_numbers(samples.y_test[:])


def _scores(
    prefix: str, combined: Ensemble, x: np.ndarray, y: np.ndarray
) -> dict[str, Any]:
    """Mean negative log-likelihood and accuracy on samples, if there are any."""
    if not len(x):
        return {}
    score = combined.score(combined.predict(x), y)
    scores: dict[str, Any] = {f"{prefix}loss": score.loss}
    scores[f"{prefix}accuracy"] = score.accuracy
    if score.metrics:
        scores[f"{prefix}metrics"] = dict(score.metrics)
    return scores | ({} if prefix else {"evaluated": score.n_samples})
