"""Prepare local data for each party: one npz into data_party0.npz and so on."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from fedray.config import FederationConfig, PartitionSpec
from fedray.data.base import samples_of
from fedray.data.images import KEYS, read_pairs
from fedray.data.partition import cut, labels_of, share_tests
from fedray.errors import ConfigError, DataError

MAX_LABELS = 1000  # with more than these, whole numbers are targets of a regression


def split(
    source: str, out: str | Path, n_parties: int, partition: PartitionSpec, seed: int
) -> list[str]:
    """Write one npz per party, all or none, and say what each of them holds.

    Parameters
    ----------
    source : str
        An npz with x_train, y_train, x_test, y_test of any shape, or "mnist"; dtypes
        stay. Test samples are shared out evenly, each to one party.
    out : folder of the files, made if missing

    Raises
    ------
    ConfigError
        If a number or the scheme is not one that a config may have.
    DataError
        If the data cannot be read or cut so, or if `out` holds parties already.
    """
    out = Path(out)
    partition = partition.with_changes(source=source)
    _check(out, FederationConfig(partition=partition, num_parties=n_parties, seed=seed))
    arrays = _read(source)
    trains = cut(arrays["y_train"], n_parties, partition, seed)
    tests = share_tests(len(arrays["y_test"]), n_parties, seed)
    try:
        return _warnings(arrays) + _write(arrays, trains, tests, out)
    except OSError as error:
        needed = "a folder with room to write to"
        raise DataError(str(out), str(error.strerror), needed) from None


def _check(out: Path, asked: FederationConfig) -> None:
    if found := asked.problems(unread=("model_file",)):
        raise ConfigError(found)
    there = sorted(path.name for path in out.glob("data_party*.npz"))
    if there:
        needed = "a folder without data_party files: nothing is overwritten"
        raise DataError(str(out), f"{len(there)} of them, {there[0]} first", needed)


def _read(source: str) -> dict[str, np.ndarray]:
    """The arrays as they are in the file, which `samples_of` would turn native."""
    arrays = read_pairs(source)
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    pairs = (x_train, y_train), (x_test, y_test)
    samples_of(SimpleNamespace(get_data=lambda: pairs), source)
    return arrays


def _write(
    arrays: dict[str, np.ndarray],
    trains: list[np.ndarray],
    tests: list[np.ndarray],
    out: Path,
) -> list[str]:
    """Write aside, and rename when all are whole."""
    labels, lines, names = _labels(arrays), [], []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".split-", dir=out) as aside:
        for i, (train, test) in enumerate(zip(trains, tests, strict=True)):
            place = {"x_train": train, "y_train": train, "x_test": test, "y_test": test}
            part = {key: arrays[key][place[key]] for key in KEYS}
            names.append(f"data_party{i}.npz")
            np.savez(Path(aside, names[-1]), **part)
            lines += [names[-1], *_statistics(i, part, labels)]
        for name in names:
            Path(aside, name).rename(out / name)
    return lines


def _labels(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """All labels in order; none of targets of a regression."""
    y_train = arrays["y_train"]
    sets = [labels_of(y) for y in (y_train, arrays["y_test"])]
    one_hot = y_train.ndim == 2 and y_train.shape[1] > 1
    if any(s is None for s in sets) or (y_train.dtype.kind == "f" and not one_hot):
        return np.array([], np.int64)
    labels = np.union1d(*sets)
    return labels if len(labels) <= MAX_LABELS else labels[:0]


def _statistics(i: int, part: dict[str, np.ndarray], labels: np.ndarray) -> list[str]:
    train, test = part["x_train"].shape, part["x_test"].shape
    lines = [f"Party_ {i}", f"nb_x_train:  {train} nb_x_test:  {test}"]
    if len(labels):
        own = labels_of(part["y_train"])
        for label in labels:
            n_samples = int((own == label).sum())
            lines.append(f"* Label  {label}  samples:  {n_samples}")
    return lines


def _warnings(arrays: dict[str, np.ndarray]) -> list[str]:
    if not len(arrays["y_test"]) or not len(_labels(arrays)):
        return []
    train, test = (labels_of(arrays[key]) for key in ("y_train", "y_test"))
    differ = np.setxor1d(train, test).tolist()
    if not differ:
        return []
    shown = f"{differ[:20]}{' ...' * (len(differ) > 20)}"
    return [f"Warning: test set and train set contain different labels: {shown}"]
