"""Writes one npz for each party from one data set: the command `fedray split`."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fedray import durable_files
from fedray.config import FederationConfig, PartitionSpec
from fedray.data.base import load_samples
from fedray.data.images import KEYS, read_arrays
from fedray.data.partition import partition_test, partition_train, to_labels
from fedray.errors import ConfigError, DataError

MAX_LABELS = 1000  # with more than these, whole numbers are targets of a regression


def split(
    source: str, out: str | Path, n_parties: int, partition: PartitionSpec, seed: int
) -> list[str]:
    """Write one npz per party, all or none; lines that describe each of them.

    Parameters
    ----------
    source : str
        An npz with x_train, y_train, x_test, y_test of any shape, or "mnist"; dtypes
        are kept. Test samples are distributed evenly, each to one party.
    out : folder of the files, made if missing

    Raises
    ------
    ConfigError
        If a number or the scheme is not one that a config may have.
    DataError
        If the data cannot be read or partitioned so, or `out` has party files already.
    """
    out = Path(out)
    partition = partition.with_changes(source=source)
    _check(out, FederationConfig(partition=partition, num_parties=n_parties, seed=seed))
    arrays = _read(source)
    trains = partition_train(arrays["y_train"], n_parties, partition, seed)
    tests = partition_test(len(arrays["y_test"]), n_parties, seed)
    try:
        return _warnings(arrays) + _write(arrays, trains, tests, out)
    except OSError as error:
        needed = "a folder with room to write to"
        raise DataError(str(out), str(error.strerror), needed) from None


def _check(out: Path, config: FederationConfig) -> None:
    if problems := config.problems(unread=("model_file",)):
        raise ConfigError(problems)
    existing = sorted(path.name for path in out.glob("data_party*.npz"))
    if existing:
        got = f"{len(existing)} of them, {existing[0]} first"
        needed = "a folder without data_party files: nothing is overwritten"
        raise DataError(str(out), got, needed)


def _read(source: str) -> dict[str, np.ndarray]:
    """Arrays as they are in the file, but checked as a handler's are."""
    arrays = read_arrays(source)
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    pairs = (x_train, y_train), (x_test, y_test)
    load_samples(SimpleNamespace(get_data=lambda: pairs), source)
    return arrays


def _write(
    arrays: dict[str, np.ndarray],
    trains: list[np.ndarray],
    tests: list[np.ndarray],
    out: Path,
) -> list[str]:
    """Write to a temporary folder, and move when all files are complete."""
    labels, lines, names = _labels(arrays), [], []
    durable_files.make_folder(out)
    with tempfile.TemporaryDirectory(prefix=".split-", dir=out) as temporary:
        for i, (train, test) in enumerate(zip(trains, tests, strict=True)):
            party: dict[str, Any] = {
                key: arrays[key][train if key.endswith("train") else test]
                for key in KEYS
            }
            names.append(f"data_party{i}.npz")
            np.savez(Path(temporary, names[-1]), **party)
            lines += [names[-1], *_statistics(i, party, labels)]
        for name in names:
            durable_files.move(Path(temporary, name), out / name)
    return lines


def _labels(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """All labels in order; none if the targets are those of a regression."""
    y_train = arrays["y_train"]
    train, test = to_labels(y_train), to_labels(arrays["y_test"])
    is_one_hot = y_train.ndim == 2 and y_train.shape[1] > 1
    is_regression = y_train.dtype.kind == "f" and not is_one_hot
    if train is None or test is None or is_regression:
        return np.array([], np.int64)
    labels = np.union1d(train, test)
    return labels if len(labels) <= MAX_LABELS else labels[:0]


def _statistics(i: int, party: dict[str, np.ndarray], labels: np.ndarray) -> list[str]:
    train, test = party["x_train"].shape, party["x_test"].shape
    lines = [f"Party_ {i}", f"nb_x_train:  {train} nb_x_test:  {test}"]
    if len(labels):
        y_train = to_labels(party["y_train"])
        for label in labels:
            n_samples = int((y_train == label).sum())
            lines.append(f"* Label  {label}  samples:  {n_samples}")
    return lines


def _warnings(arrays: dict[str, np.ndarray]) -> list[str]:
    if not len(arrays["y_test"]) or not len(_labels(arrays)):
        return []
    train, test = to_labels(arrays["y_train"]), to_labels(arrays["y_test"])
    if train is None or test is None:
        return []
    different = np.setxor1d(train, test).tolist()
    if not different:
        return []
    listed = f"{different[:20]}{' ...' * (len(different) > 20)}"
    return [f"Warning: test set and train set contain different labels: {listed}"]
