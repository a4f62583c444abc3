"""Predictions and scores of a trained model for data that a handler reads."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fedray import data, durable_files, models, nested
from fedray.config import FederationConfig
from fedray.datasets import DatasetPart
from fedray.ensemble.members import Ensemble, Member
from fedray.errors import ConfigError, DataError, ModelFileError
from fedray.nested import Anything, Arrays, Nested
from fedray.survey import without_normalization

SHIPPED = "mnist"  # the data set that comes with fedray
MAX_COLUMNS = 10_000  # of a .csv of predictions


@dataclass(frozen=True)
class DataSource:
    """Where samples are, and how they are read.

    handler, options : a data handler and its data_args; None: those of the run that
        the model is from.
    part : "train", "test" or "all" samples, of data that has them apart; None: the test
        samples, or all where there are none.
    """

    path: str
    handler: str | None = None
    options: dict[str, Any] | None = None
    part: str | None = None


@runtime_checkable
class ExportableModel(Protocol):
    """A live model that torch can write as ONNX."""

    def export_onnx(self, x: Nested, path: Path) -> None:
        """Write it; samples (N, ...) show what it takes."""


class PartScore(NamedTuple):
    """Scores on one part of the data; accuracy None where it means nothing.

    metrics : as `Evaluation` has them.
    """

    loss: float | None
    accuracy: float | None
    n_samples: int
    part: str
    metrics: Mapping[str, Any] = MappingProxyType({})


class Part(NamedTuple):
    """Samples of one part of the data: train, test or all."""

    samples: Arrays | DatasetPart | Anything
    name: str

    def inputs(self, model: Ensemble) -> Iterator[Any]:
        """Inputs without targets, as many at a time as lie in memory.

        Of data of another form all that there is.
        """
        if isinstance(self.samples, Arrays):
            yield self.samples.x
        elif isinstance(self.samples, Anything):
            parts = self.samples.data
            yield parts[0] if isinstance(parts, tuple) and len(parts) == 2 else parts
        else:
            ready: Any = model.models[0].ready(self.samples)
            for x, _ in ready.blocks():
                yield nested.map_arrays(lambda tensor: tensor.cpu().numpy(), x)


def evaluate_data(model: Ensemble, source: DataSource) -> PartScore:
    """Mean loss and accuracy of a model on data with targets.

    Raises
    ------
    DataError
        If the data cannot be read, have no targets, or do not fit the model.
    """
    part = _read(model, source, has_targets=True)
    loss, accuracy, n_samples, metrics = model.evaluate_part(part.samples)
    return PartScore(loss, accuracy, n_samples, part.name, metrics)


def write_predictions(
    model: Ensemble, source: DataSource, path: Path
) -> tuple[int, str]:
    """Write predictions in the order of the samples; how many, and of which part.

    path : .csv or .npz. Of classes both have the label (its name where classes have
        names) and each class's probability; of yes-or-no outputs 1 or 0 and the
        probability of yes; else the values. An npz has them as arrays `predictions`
        (N, ...) and `labels` (N, ...).

    Raises
    ------
    DataError
        If the data cannot be read, or do not fit the model or the kind of file.
    """
    if path.suffix not in (".csv", ".npz"):
        raise DataError(
            str(path), f"a {path.suffix or 'nameless'} file", ".csv or .npz"
        )
    part = _read(model, source, has_targets=False)
    predicted = np.concatenate([model.predict(x) for x in part.inputs(model)])
    if path.suffix == ".csv":
        durable_files.write_text(path, _to_csv(model, predicted, path))
        return len(predicted), part.name
    arrays = {"predictions": predicted}
    if model.predicts != "values":
        classes = model.to_classes(predicted)
        has_names = model.label_names and classes.ndim == 1
        arrays["labels"] = np.array(model.to_labels(classes)) if has_names else classes
    with durable_files.replace_file(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return len(predicted), part.name


def export_onnx(
    model: Ensemble,
    path: Path,
    source: DataSource | None = None,
    shape: Sequence[int] | None = None,
) -> None:
    """Write a model as ONNX, for batches of any size.

    source : data whose samples show what the model takes; else `shape` of one sample of
        32-bit floats; else the run's own data, if they can be read here.

    Raises
    ------
    ModelFileError
        If torch cannot export the model, or nothing shows what it takes.
    """
    if len(model.members) > 1:
        raise ModelFileError(str(path), "an ensemble is several models: export one")
    (member,), (live,) = model.members, model.models
    source = source or (None if shape else _data_of_run(member))
    if source is not None:
        part = _read(model, source, has_targets=False)
        x, _ = member.fit(next(part.inputs(model)))
    elif shape is not None:
        x = np.zeros((1, *shape), np.float32)
    else:
        reason = "what one sample is has to be shown: give --data PATH or --shape N,N"
        raise ModelFileError(str(path), reason)
    if not isinstance(live, ExportableModel):
        reason = f"model_type {member.config.model_type} has no ONNX form"
        raise ModelFileError(str(path), reason)
    live.export_onnx(nested.take(x, slice(2)), path)


def _data_of_run(member: Member) -> DataSource | None:
    """Data that the model's run was given, where they lie here."""
    config = member.config
    paths = [config.test_data, *(party.data for party in config.parties)]
    paths += [config.partition.source] if config.partition else []
    here = (path for path in paths if path and (path == SHIPPED or Path(path).exists()))
    path = next(here, None)
    return DataSource(path) if path else None


def _read(model: Ensemble, source: DataSource, has_targets: bool) -> Part:
    """Read samples as the run's parties did, not standardised: the model does that."""
    member = model.members[0]
    config = member.config
    handler, options = _handler_of(config, source)
    is_keras = config.model_type == "keras"
    is_test = source.part in (None, "test")
    if not is_test:
        options = data.without_share(handler, options)
    origin = data.Origin(
        is_test=is_test, may_lack_targets=not has_targets, channels_last=is_keras
    )
    codes = models.codes_for(member.blueprint, without_normalization(member.codes))
    is_any = models.named(config.model_type).takes == "anything"
    load = data.load_as_given if is_any else data.load
    loaded = load(data.named(handler), source.path, options, origin, codes)
    if isinstance(loaded, data.Documents):
        raise DataError(source.path, "documents", "samples of arrays")
    part = _choose_part(loaded, source)
    samples = part.samples
    is_alone = len(model.members) == 1  # which may have been trained without targets
    lacks_targets = isinstance(samples, Arrays) and samples.y is None
    if has_targets and lacks_targets and not is_alone:
        raise DataError(source.path, "no targets", "targets to compare with")
    return part


def _handler_of(
    config: FederationConfig, source: DataSource
) -> tuple[str, Mapping[str, Any]]:
    """The data handler of some samples and its options: the run's, or others."""
    is_of_run = "data_handler" in config.model_fields_set
    own = config.handler_of(0)
    handler = source.handler or (own if is_of_run else None)
    if handler is None:
        needed = "--data-handler: a model file does not say how data is read"
        raise DataError(source.path, "no data handler", needed)
    options = source.options
    if options is None and handler == own and is_of_run:
        options = config.data_args_of(0)
    options = options or {}
    if problems := data.problems(handler, config.model_type, options):
        raise ConfigError(problems)
    return handler, options


def _choose_part(
    loaded: data.Samples | data.LazySamples | data.AnyData, source: DataSource
) -> Part:
    has_tests = loaded.n_test > 0
    if source.part is None and has_tests and _is_whole(loaded):
        return Part(loaded.test, "all")
    name = source.part or ("test" if has_tests else "all")
    if name == "test" and not has_tests:
        raise DataError(source.path, "no test samples", "--part train, or all")
    if name == "train" or (name == "all" and not has_tests):
        return Part(loaded.train, name)
    if name == "test":
        return Part(loaded.test, name)
    if not isinstance(loaded, data.Samples):
        got = "training and test samples that are no arrays"
        raise DataError(source.path, got, "--part train or test")
    both = zip(loaded.train, loaded.test, strict=True)
    return Part(Arrays(*(_join(one, other) for one, other in both)), name)


def _join(one: Nested, other: Nested) -> Nested:
    """Nested arrays of the samples of both."""
    first, second = nested.arrays(one), nested.arrays(other)
    return nested.map_named(lambda at: np.concatenate([first[at], second[at]]), one)


def _to_csv(model: Ensemble, predicted: np.ndarray, path: Path) -> str:
    """A line for each sample: its number, its label, its numbers."""
    rows = predicted.reshape(len(predicted), -1)
    if predicted.ndim > 2 or rows.shape[1] > MAX_COLUMNS:
        got = f"predictions of shape {list(predicted.shape[1:])} for each sample"
        raise DataError(str(path), got, ".npz: a table has one row a sample")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", *_columns(model, rows.shape[1])])
    for number, (cells, row) in enumerate(
        zip(_labels(model, rows), rows.tolist(), strict=True)
    ):
        writer.writerow([number, *cells, *row])
    return text.getvalue()


def _columns(model: Ensemble, n_numbers: int) -> list[str]:
    """Names of a table's columns after the sample's number."""
    names = model.label_names or [str(i) for i in range(n_numbers)]
    if model.predicts == "classes":
        return ["label", *(f"probability of {name}" for name in names)]
    numbers = [""] if n_numbers == 1 else [f" {i}" for i in range(n_numbers)]
    if model.predicts == "yes":
        labels = [f"label{number}" for number in numbers]
        return [*labels, *(f"probability{number}" for number in numbers)]
    return [f"value{number}" for number in numbers]


def _labels(model: Ensemble, rows: np.ndarray) -> Iterator[list[Any]]:
    """Cells before the numbers of each row: its label, or each output's yes or no."""
    if model.predicts == "values":
        yield from ([] for _ in rows)
    elif model.predicts == "yes":
        yield from model.to_classes(rows).tolist()
    else:
        yield from ([label] for label in model.to_labels(model.to_classes(rows)))


def _is_whole(loaded: data.Samples | data.LazySamples | data.AnyData) -> bool:
    """Whether all samples, which are one part, were given as both parts."""
    if not isinstance(loaded, data.Samples):
        return False
    train, test = map(_leaves, (loaded.train, loaded.test))
    return train.keys() == test.keys() and all(
        test[at] is array or np.array_equal(test[at], array)
        for at, array in train.items()
    )


def _leaves(part: Arrays) -> dict[tuple[str, str], np.ndarray]:
    nests = zip("xy", part, strict=True)
    return {
        (name, at): array
        for name, nest in nests
        if nest is not None
        for at, array in nested.arrays(nest).items()
    }
