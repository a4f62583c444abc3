"""Ensemble of models: the weighted mean of its members' probabilities."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedray import durable_files, models, user_code
from fedray.checkpoint import write_file
from fedray.config import RunConfig
from fedray.errors import DataError
from fedray.models import Blueprint, ScoredModel
from fedray.nested import Arrays
from fedray.user_code import Source
from fedray.weights import Weights

FILE = "ensemble.json"
SIGNATURES = "members.json"


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, with all that it needs to predict.

    config : it was trained with; its loss says what its outputs are.
    sample : shape of one sample that it takes; None: samples are not reshaped.
    """

    name: str
    config: RunConfig
    blueprint: Blueprint
    weights: Weights
    sample: tuple[int, ...] | None = None
    weight: float = 1.0  # in the mean, beside the others'

    @property
    def file(self) -> str:
        """Name of its model file in a folder."""
        suffix = models.named(self.config.model_type).suffix
        return f"global_model-{self.name}{suffix}"

    def write(self, folder: Path, name: str = "") -> dict[str, Any]:
        """Write the model, and its code where it is made by code; its line in FILE."""
        adapter, plan = models.named(self.config.model_type), self.blueprint.plan
        name, code = name or self.file, None
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
            "architecture": code,
            "loss": self.config.loss,
            "loss_args": self.config.loss_args,
            "seed": self.config.seed,
            "sample": None if self.sample is None else list(self.sample),
            "weight": self.weight,
        }


class Ensemble:
    """Predicts with the weighted mean of its members' probabilities."""

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)
        self.models = []
        for member in self.members:
            adapter = models.named(member.config.model_type)
            model = adapter.make(member.blueprint, member.config, "cpu")
            if not isinstance(model, ScoredModel):
                got = f"member {member.name} of model_type {adapter.model_type}"
                raise DataError("of an ensemble", got, "models that give probabilities")
            model.load(member.weights)
            self.models.append(model)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of each class.

        Parameters
        ----------
        x : (N, ...) samples, scaled as the data handlers scale them; every member gets
            them in its own layout (`fedray.ensemble.fit_samples`).

        Returns
        -------
        (N, C) float64; rows sum to 1 within the rounding of the members' floats.

        Raises
        ------
        DataError
            Naming the member that cannot take these samples.
        """
        x = np.asarray(x)
        shares = np.array([member.weight for member in self.members])
        shares = shares / shares.sum()
        answers = self.each(x)
        n_classes = {answer.shape[1] for answer in answers.values()}
        if len(n_classes) > 1:
            got = f"members of {sorted(n_classes)} classes"
            raise DataError("of an ensemble", got, "as many classes of each")
        mean = np.zeros_like(next(iter(answers.values())))
        for share, answer in zip(shares, answers.values(), strict=True):
            mean = mean + share * answer
        return mean

    def each(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Each member's own probabilities (N, C), by its name."""
        probabilities = {}
        for member, model in zip(self.members, self.models, strict=True):
            samples = fit_samples(np.asarray(x), member.sample, member.name)
            labels = np.zeros(len(samples), np.int64)  # of no meaning, for the probe
            if member.config.model_type == "pytorch":
                ready = model.ready(Arrays(samples, labels))
                model.probe(f"for member {member.name}", ready)
            probabilities[member.name] = model.probabilities(samples)
        return probabilities

    def classes(self, x: np.ndarray) -> np.ndarray:
        """The most probable class of each sample, (N,) int64."""
        return self.predict(x).argmax(1)

    def save(self, folder: str | Path, **summary: Any) -> Path:
        """Write every member and `ensemble.json`; `fedray.load(folder)` reads it.

        summary : plain data that `ensemble.json` holds beside the members.
        """
        folder = Path(folder).expanduser()
        durable_files.make_folder(folder)
        members = [member.write(folder) for member in self.members]
        text = json.dumps({"members": members, **summary}, indent=2)
        durable_files.write_text(folder / FILE, text + "\n")
        return folder / FILE


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
