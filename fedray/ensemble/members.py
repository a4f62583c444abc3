"""Trained models ready to predict: one, or an ensemble's weighted mean."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedray import durable_files, models, user_code
from fedray.checkpoint import write_file
from fedray.config import RunConfig
from fedray.datasets import DatasetPart
from fedray.errors import DataError
from fedray.models import Blueprint, CustomPlan, Prediction, ScoredModel
from fedray.nested import (
    Anything,
    Arrays,
    MappedArray,
    Nested,
    is_one,
    map_arrays,
)
from fedray.survey import DataCodes, write_codes
from fedray.user_code import Source
from fedray.weights import Weights

FILE = "ensemble.json"
MIDDLE = 0.5  # probabilities of yes above it count as yes
MIN_PROBABILITY = 1e-12  # of the logarithm in an ensemble's loss
SIGNATURES = "members.json"


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, with all that it needs to predict.

    config : it was trained with; its loss says what its outputs are.
    sample : shape of one sample that it takes; None: samples are not reshaped.
    codes : what its training data were read by, where parties were surveyed.
    """

    name: str
    config: RunConfig
    blueprint: Blueprint
    weights: Weights
    sample: tuple[int, ...] | None = None
    weight: float = 1.0  # in the mean, beside the others'
    codes: DataCodes | None = None

    @property
    def file(self) -> str:
        """Name of its model file in a folder."""
        suffix = models.named(self.config.model_type).suffix
        return f"global_model-{self.name}{suffix}"

    def fit(self, x: Nested) -> tuple[Nested, str]:
        """Samples as the model takes them, and what errors call them."""
        source = f"for member {self.name}"
        if self.codes:
            x = self.codes.apply(x, source)
        if self.sample is not None and is_one(x):
            x = fit_samples(_in_memory(x), self.sample, self.name)
        is_any = models.named(self.config.model_type).takes == "anything"
        return (x if is_any else map_arrays(_in_memory, x)), source

    def write(self, folder: Path, name: str = "") -> dict[str, Any]:
        """Write the model, and its code where it is made by code; its line in FILE."""
        adapter, plan = models.named(self.config.model_type), self.blueprint.plan
        name, code, key = name or self.file, None, "architecture"
        if isinstance(plan, CustomPlan):
            plan, key = plan.source, "model_type"
        adapter.write(self.blueprint, self.weights, folder / name)
        if isinstance(plan, Source) and plan.imports:
            own = folder / f"{Path(name).stem}-code"  # members' files must not mix
            code = os.path.relpath(user_code.write(plan, own), folder)
        elif isinstance(plan, Source):
            code = f"{Path(name).stem}.py:{plan.attribute}"
            file = folder / code.partition(":")[0]
            durable_files.write_text(file, plan.text)
        return {
            "name": self.name,
            "model_type": self.config.model_type,
            "model_file": name,
            "architecture": None,
            **({key: code} if code else {}),
            "loss": self.config.loss,
            "loss_args": self.config.loss_args,
            "seed": self.config.seed,
            "sample": None if self.sample is None else list(self.sample),
            "weight": self.weight,
        }


class Evaluation(NamedTuple):
    """Scores of predictions for samples whose targets are known.

    accuracy : None where it means nothing (regression).
    metrics : values of the run's `metrics`, by name; None of those that are not defined
        for the samples.
    """

    loss: float | None
    accuracy: float | None
    n_samples: int
    metrics: Mapping[str, Any] = MappingProxyType({})


class Ensemble:
    """A trained model, or several that predict together by their weighted mean."""

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)
        self.models: list[ScoredModel] = []
        for member in self.members:
            adapter = models.named(member.config.model_type)
            model = adapter.make(member.blueprint, member.config, "cpu")
            if not isinstance(model, ScoredModel):
                got = f"member {member.name} of model_type {adapter.model_type}"
                raise DataError("of an ensemble", got, "models that give predictions")
            model.load(member.weights)
            if member.config.metrics:
                model.metrics = models.plan_metrics(member.config, member.blueprint)
            self.models.append(model)

    @property
    def predicts(self) -> Prediction:
        """What `predict` gives: "classes", "yes" or "values"."""
        return self.models[0].predicts

    @property
    def module(self) -> Any:
        """The trained model as its framework has it: an nn.Module, a Keras model.

        Raises
        ------
        DataError
            If these are several.
        """
        if len(self.models) > 1:
            got = f"an ensemble of {len(self.models)} models"
            raise DataError("of an ensemble", got, "one model; see its `models`")
        return self.models[0].framework_model()

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, by number; empty where classes have no names."""
        codes = self.members[0].codes
        return codes.labels if codes else ()

    def predict(self, x: Nested) -> np.ndarray:
        """What the model says of samples, in the terms of its targets.

        Parameters
        ----------
        x : (N, ...) samples as a data handler gives them, or a tuple or dict of such
            arrays; standardised here where the run standardised them. In an ensemble
            every member gets them in its own layout (`fedray.ensemble.fit_samples`).

        Returns
        -------
        float64. Of classes probabilities (N, C), or (N, ..., C) for positions, in rows
        that sum to 1 within the rounding of the members' floats; of yes-or-no outputs
        the probabilities of yes; of any other loss the values.

        Raises
        ------
        DataError
            Naming the member that cannot take these samples.
        """
        shares = np.array([member.weight for member in self.members])
        shares = shares / shares.sum()
        answers = self.each(x)
        shapes = {answer.shape[1:] for answer in answers.values()}
        if len(shapes) > 1:
            got = f"members whose predictions are {sorted(map(list, shapes))}"
            raise DataError("of an ensemble", got, "as many classes of each")
        if len(answers) == 1:
            return next(iter(answers.values()))
        mean = np.zeros_like(next(iter(answers.values())))
        for share, answer in zip(shares, answers.values(), strict=True):
            mean = mean + share * answer
        return mean

    def each(self, x: Nested) -> dict[str, np.ndarray]:
        """Each member's own predictions, by its name."""
        return {
            member.name: model.predict(*member.fit(x))
            for member, model in zip(self.members, self.models, strict=True)
        }

    def classes(self, x: Nested) -> np.ndarray:
        """The most probable class of each sample, (N,) int64; of yes or no 1 or 0.

        For several outputs of yes or no, or for positions, (N, ...).

        Raises
        ------
        DataError
            If the model predicts values.
        """
        return self.to_classes(self.predict(x))

    def to_classes(self, predicted: np.ndarray) -> np.ndarray:
        """The class numbers of what `predict` gave."""
        if self.predicts == "values":
            got = f"a model of {self.members[0].config.loss or 'values'}"
            raise DataError("of the model", got, "one of classes; take its values")
        if self.predicts == "classes":
            numbers = getattr(self.models[0], "class_numbers", None)
            places = predicted.argmax(-1)
            return places if numbers is None else numbers[places]
        return (predicted > MIDDLE).astype(np.int64)

    def labels(self, x: Nested) -> list[str]:
        """Names of the most probable classes, or their numbers where there are none."""
        return self.to_labels(self.classes(x))

    def to_labels(self, classes: np.ndarray) -> list[str]:
        """Names of class numbers (N,)."""
        codes = self.members[0].codes or DataCodes()
        return codes.decode_labels(classes.reshape(-1).tolist())

    def evaluate(self, x: Nested, y: Any = None) -> Evaluation:
        """Mean loss and accuracy on samples whose targets are known.

        x : as `predict` takes them.
        y : (N, ...) targets as training takes them, or names of classes; None where
            the model was trained without, as an autoencoder is.

        The loss is the one that the model was trained with; of an ensemble the mean of
        -log(probability of the true class).

        Raises
        ------
        DataError
            If they do not fit.
        """
        return self.evaluate_part(Arrays(x, self._encode(y)))

    def evaluate_part(self, part: Arrays | DatasetPart | Anything) -> Evaluation:
        """Mean loss and accuracy on a part of the data that a handler gave."""
        if len(self.members) > 1:
            return self._evaluate_together(part)
        model, source = self.models[0], f"for member {self.members[0].name}"
        if isinstance(part, Arrays):
            samples, _ = self.members[0].fit(part.x)
            part = Arrays(samples, part.y)
        ready = model.ready(part)
        if not len(ready):
            raise DataError(source, "no samples", "at least one")
        model.probe(source, ready)
        scores = model.evaluate(ready)
        loss, accuracy = scores.means
        return self._with_metrics(loss, accuracy, len(ready), scores.states)

    def _with_metrics(
        self,
        loss: float | None,
        accuracy: float | None,
        n_samples: int,
        states: Mapping[str, np.ndarray],
    ) -> Evaluation:
        """Scores with values of the config's metrics; accuracy where it is one."""
        if not states:
            return Evaluation(loss, accuracy, n_samples)
        metrics = self.members[0].config.metrics
        names = [n for n in metrics if n != "accuracy" or accuracy is None]
        if len(self.members) > 1:  # functions are of one model's outputs
            names = [name for name in names if not user_code.is_source(name)]
        values, _ = models.compute_metrics(names, states)
        accuracy = values.pop("accuracy", accuracy)
        return Evaluation(loss, accuracy, n_samples, values)

    def _evaluate_together(self, part: Arrays | DatasetPart | Anything) -> Evaluation:
        """Loss and accuracy of all members' mean; of a dataset batch by batch."""
        batches: Any = [part]
        if not isinstance(part, Arrays):
            ready: Any = self.models[0].ready(part)
            if not hasattr(ready, "blocks"):
                got = "data of another form than arrays"
                raise DataError("of an ensemble", got, "arrays, or a dataset")
            batches = ready.blocks()
        predicted, labels = [], []
        for x, y in batches:
            predicted.append(self.predict(map_arrays(_to_numpy, x)))
            labels.append(to_class_numbers(_to_numpy(y)))
        return self.score(np.concatenate(predicted), np.concatenate(labels))

    def score(self, predicted: np.ndarray, labels: np.ndarray) -> Evaluation:
        """Scores of all members' probabilities (N, C) for labels (N,).

        Metrics are the built-in ones of the first member's config.
        """
        scores, member = score_classes(predicted, labels), self.members[0]
        if not member.config.metrics:
            return scores
        from fedray.models.scoring.arrays import class_answers

        sums = models.plan_metrics(member.config, member.blueprint).sums()
        chosen, n_classes = predicted.argmax(1), predicted.shape[1]
        sums.add(class_answers(chosen, labels, predicted, n_classes))
        return self._with_metrics(*scores[:3], sums.states())

    def _encode(self, y: Any) -> Any:
        """Class numbers of targets that are names; others as they are."""
        codes = self.members[0].codes
        array = np.asarray(y) if isinstance(y, list | np.ndarray) else None
        if array is None or array.dtype.kind not in "UO" or not codes:
            return y
        return codes.encode_labels(array.tolist(), "of the targets")

    def save(self, folder: str | Path, **summary: Any) -> Path:
        """Write every member and `ensemble.json`; `fedray.load(folder)` reads it.

        summary : plain data that `ensemble.json` holds beside the members.
        """
        folder = Path(folder).expanduser()
        durable_files.make_folder(folder)
        members = [member.write(folder) for member in self.members]
        text = json.dumps({"members": members, **summary}, indent=2)
        if codes := self.members[0].codes:
            write_codes(folder, codes)
        durable_files.write_text(folder / FILE, text + "\n")
        return folder / FILE


def score_classes(predicted: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Mean negative log-likelihood and accuracy of probabilities (N, C)."""
    of_label = np.maximum(predicted[np.arange(len(labels)), labels], MIN_PROBABILITY)
    right = predicted.argmax(1) == labels
    return Evaluation(float(-np.log(of_label).mean()), float(right.mean()), len(labels))


def to_class_numbers(y: np.ndarray) -> np.ndarray:
    """Class numbers (N,) of targets (N,), (N, 1) or one-hot (N, C)."""
    is_one_hot = y.ndim == 2 and y.shape[1] > 1
    return y.argmax(1) if is_one_hot else y.reshape(len(y)).astype(int)


def _to_numpy(array: Any) -> Any:
    """An array in memory, of a tensor on any device as well."""
    return _in_memory(array.cpu() if hasattr(array, "cpu") else array)


def _in_memory(array: Any) -> np.ndarray:
    return array[:] if isinstance(array, MappedArray) else np.asarray(array)


class MemberSignature(NamedTuple):
    """Shape of one sample that a member takes, and its number of classes."""

    sample: tuple[int, ...]
    n_classes: int


def fit_samples(x: np.ndarray, sample: tuple[int, ...] | None, who: str) -> np.ndarray:
    """Samples reshaped to a member's layout.

    Channels may come first or last, and one channel may be left out; of one channel
    the numbers may also come in a row. Nothing else has one meaning only.

    Parameters
    ----------
    x : (N, ...) samples.
    sample : shape of one as the member takes it; None: `x` as it is.

    Raises
    ------
    DataError
        Naming the member, if its samples are of another form.
    """
    shape = x.shape[1:]
    if sample is None or shape == sample:
        return x
    got = tuple(n for n in shape if n != 1)  # without a single channel
    needed = tuple(n for n in sample if n != 1)
    is_row = len(shape) == 1 or len(sample) == 1
    is_plane = max(len(needed), len(got)) <= 2
    has_size = math.prod(shape) == math.prod(sample)
    if got == needed or (is_row and is_plane and has_size):
        return x.reshape(len(x), *sample)
    if x.ndim == 4 and (shape[1], shape[2], shape[0]) == sample:
        return np.moveaxis(x, 1, 3)
    if x.ndim == 4 and (shape[2], shape[0], shape[1]) == sample:
        return np.moveaxis(x, 3, 1)
    raise DataError(f"for member {who}", f"samples {list(shape)}", f"{list(sample)}")


def write_signatures(folder: Path, members: Mapping[str, MemberSignature]) -> None:
    """Write members' signatures to the run's folder; earlier ones of others stay."""
    signatures = {**read_signatures(folder), **members}
    plain = {
        name: [list(signature.sample), signature.n_classes]
        for name, signature in signatures.items()
    }
    write_file(folder, SIGNATURES, json.dumps(plain) + "\n")


def read_signatures(folder: Path) -> dict[str, MemberSignature]:
    """Members' signatures as the run wrote them; empty if it did not get so far."""
    try:
        entries = json.loads((folder / SIGNATURES).read_text("utf-8"))
        return {
            name: MemberSignature(tuple(shape), n_classes)
            for name, (shape, n_classes) in entries.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # cut by a crash: joining again notes the same
