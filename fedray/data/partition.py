"""Partitions one data set into parties: iid, Dirichlet label skew, or label shards.

Or by the values of a column. Parties are of one size, or sizes are drawn from a
Dirichlet distribution too (`size_alpha`). Pure functions: the same seed gives the same
parts on every machine.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fedray.config import PartitionSpec, describe_unknown
from fedray.data.base import Handler, LazySamples, Samples
from fedray.data.text import Documents
from fedray.errors import ConfigError, DataError, format_count
from fedray.nested import is_one

TRAIN, TEST, SIZES = 0, 1, 2  # streams of random numbers of one seed
MAX_LABEL = 1 << 53  # the last whole number that a float64 tells from its neighbours
ALPHA_RANGE = (1e-6, 1e12)  # beyond it a mix is one label, or the data set's
WHOLE_NUMBER = re.compile(r"-?\d{1,30}")  # longer ones are no numbers but names
BLOCK = 1 << 20  # parties × labels drawn at a time

Data = TypeVar(
    "Data", Samples, LazySamples, Documents, Samples | LazySamples | Documents
)


def partition_samples(
    samples: Data,
    parties: range,
    n_parties: int,
    partition: PartitionSpec,
    seed: int,
) -> tuple[Data, list[np.ndarray], list[int]]:
    """Select the samples of some parties; same data and seed select the same.

    Parameters
    ----------
    parties : places of the parties in the config, in a row.
    n_parties : number of all parties.

    Returns
    -------
    The samples that any of these parties has, each once; the indices of every party's
    training samples in them; and the number of each party's test samples, which come
    one party after another.

    Raises
    ------
    DataError
        As `partition_train`.
    """
    selected = slice(parties.start, parties.stop)
    trains, tests = (
        part[selected] for part in partition_rows(samples, n_parties, partition, seed)
    )
    used, indices = np.unique(np.concatenate(trains), return_inverse=True)
    ends = np.cumsum([len(train) for train in trains])
    own = samples.take(used, np.concatenate(tests))
    return own, np.split(indices, ends[:-1]), [len(test) for test in tests]


def partition_rows(
    samples: Data, n_parties: int, partition: PartitionSpec, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Indices of each party's training samples, and of its test samples.

    Raises
    ------
    DataError
        As `partition_train`; of a column, if a party has no training sample.
    """
    if partition.by is None:
        trains = partition_train(labels_of(samples), n_parties, partition, seed)
        return trains, partition_test(samples.n_test, n_parties, seed)
    if not isinstance(samples, Samples) or samples.column is None:
        raise TypeError("samples without the column that parties go by")
    train, test = samples.column
    trains, tests = (partition_by(part, partition.values) for part in (train, test))
    empty = [n for n, own in zip(partition.names, trains, strict=True) if not len(own)]
    if empty:
        got = f"no training sample of party {empty[0]!r} ({partition.by})"
        raise DataError(partition.source, got, "at least one, or partition.values")
    return trains, tests


def add_column(samples: Data, handler: Handler, source: str, name: str) -> Data:
    """Samples with the values of a column, by which `partition_rows` cuts them.

    Raises
    ------
    DataError
        If the handler has none, or not one for each sample.
    """
    get_column = getattr(handler, "get_column", None)
    if get_column is None or not isinstance(samples, Samples):
        needed = "a handler with get_column(name), such as csv, parquet or npz"
        raise DataError(source, f"a data_handler without a column {name!r}", needed)
    train, test = (np.asarray(part) for part in get_column(name))
    lengths = (samples.train.n_samples, samples.n_test)
    if (train.shape, test.shape) != ((lengths[0],), (lengths[1],)):
        got = f"get_column({name!r}) of {train.shape} and {test.shape} values"
        raise DataError(source, got, f"one for each of {lengths} samples")
    return replace(samples, column=(train, test))


def labels_of(samples: Samples | LazySamples | Documents) -> np.ndarray:
    """Targets of the training samples; NaN for each where they are no single array."""
    if is_one(samples.y_train):
        return samples.y_train[:]
    return np.full(samples.train.n_samples, np.nan)


def partition_train(
    y_train: np.ndarray, n_parties: int, partition: PartitionSpec, seed: int
) -> list[np.ndarray]:
    """Indices of each party's training samples, in config order; no party is empty.

    Parameters
    ----------
    y_train : (N,), (N, 1) or one-hot (N, C)
    partition : PartitionSpec
        iid, dirichlet (`alpha`) or shards (`shards_per_party`). Parties are disjoint
        unless `replace`. Without `samples_per_party` all samples are distributed. With
        `size_alpha` that is a mean, and what each party gets is drawn.

    Raises
    ------
    DataError
        If there are too few samples, or no labels for a scheme that needs them.
    """
    sizes = _sizes(len(y_train), n_parties, partition, seed)
    rng = np.random.default_rng([seed, TRAIN])
    if partition.scheme == "iid":
        return _iid(len(y_train), sizes, partition.replace, rng)
    if partition.scheme not in LABEL_SCHEMES:
        names = ["iid", *LABEL_SCHEMES]
        raise ConfigError(
            [describe_unknown("partition scheme", partition.scheme, names)]
        )
    labels = to_labels(y_train)
    if labels is None:
        needed = f"one label per sample for {partition.scheme}, or scheme: iid"
        raise DataError(partition.source, "targets that are not labels", needed)
    return LABEL_SCHEMES[partition.scheme](labels, sizes, partition, rng)


def partition_by(column: np.ndarray, values: Sequence[str]) -> list[np.ndarray]:
    """Indices of each value's samples, in order; rows of other values are left out.

    column : (N,) of texts or numbers, which are compared as texts.
    """
    kinds, codes = np.unique(column, return_inverse=True)
    places = {value: place for place, value in enumerate(values)}
    party = np.array([places.get(str(kind), len(values)) for kind in kinds], np.int64)
    order = np.argsort(party[codes], kind="stable")
    counts = np.bincount(party[codes], minlength=len(values) + 1)
    return np.split(order, np.cumsum(counts))[: len(values)]


def sort_values(values: Iterable[str]) -> list[str]:
    """Values of a column, whole numbers in their order, others as texts."""
    values = sorted(values)
    is_whole = all(WHOLE_NUMBER.fullmatch(value) for value in values)
    return sorted(values, key=int) if is_whole else values


def partition_test(n_test: int, n_parties: int, seed: int) -> list[np.ndarray]:
    """Indices of each party's test samples: every sample at one party, evenly many.

    Where there are more parties than test samples, some parties get none.
    """
    rng = np.random.default_rng([seed, TEST])
    return np.array_split(rng.permutation(n_test), n_parties)


def to_labels(y: np.ndarray) -> np.ndarray | None:
    """One int64 label per sample, (N,); None if `y` holds something else.

    Labels are whole numbers of any dtype, (N,) or (N, 1), or one-hot rows (N, C).
    """
    if y.ndim == 2 and y.shape[1] > 1:
        is_one = y == 1
        if not (is_one | (y == 0)).all() or not (is_one.sum(axis=1) == 1).all():
            return None
        return is_one.argmax(axis=1)
    if y.ndim != 1 and y.shape[1:] != (1,):
        return None
    y = y.reshape(-1)
    if len(y) and not (y.min() >= -MAX_LABEL and y.max() <= MAX_LABEL):
        return None
    if y.dtype.kind == "f" and not np.array_equal(y, np.rint(y)):
        return None
    return y.astype(np.int64)


def _sizes(n: int, n_parties: int, partition: PartitionSpec, seed: int) -> np.ndarray:
    """Number of samples of each party, checked against the `n` of the data set."""
    size = partition.samples_per_party
    if size is None:
        sizes = n // n_parties + (np.arange(n_parties) < n % n_parties)
        if partition.replace:
            sizes = np.maximum(sizes, 1)
    else:
        sizes = np.full(n_parties, size)
    n_needed = max(int(sizes.sum()), n_parties)
    if n == 0 or (n_needed > n and not partition.replace):
        parties = format_count(n_parties, "party", "parties")
        needed = f"at least {n_needed} for {parties}"
        if n:
            needed += ", or fewer per party, fewer parties, or replace: true"
        raise DataError(partition.source, format_count(n, "training sample"), needed)
    if partition.size_alpha is None:
        return sizes
    rng = np.random.default_rng([seed, SIZES])
    return _draw_sizes(int(sizes.sum()), n_parties, partition, rng)


def _draw_sizes(
    n_all: int, n_parties: int, partition: PartitionSpec, rng: np.random.Generator
) -> np.ndarray:
    """Unequal numbers of samples that sum to `n_all`; every party has one at least.

    Each has one (with shards, one per shard) and its share of the rest. The shares are
    from ``Dir(size_alpha)`` over the parties, rounded by largest remainders.
    """
    least = partition.shards_per_party if partition.scheme == "shards" else 1
    n_rest = n_all - least * n_parties
    if n_rest < 0:
        got = f"{n_all} for {format_count(n_parties, 'party', 'parties')}"
        needed = f"at least shards_per_party ({least}) samples per party"
        raise DataError(partition.source, got, needed)
    alpha = np.clip(partition.size_alpha or 0, *ALPHA_RANGE)
    shares = n_rest * rng.dirichlet(np.full(n_parties, alpha))
    sizes = np.floor(shares).astype(np.int64)
    n_short = n_rest - int(sizes.sum())
    sizes[np.argsort(sizes - shares, kind="stable")[:n_short]] += 1
    return sizes + least


def _iid(
    n: int, sizes: np.ndarray, replace: bool, rng: np.random.Generator
) -> list[np.ndarray]:
    n_all = int(sizes.sum())
    drawn = rng.integers(n, size=n_all) if replace else rng.permutation(n)[:n_all]
    return np.split(drawn, np.cumsum(sizes)[:-1])


def _dirichlet(
    labels: np.ndarray,
    sizes: np.ndarray,
    partition: PartitionSpec,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Draw each party's mix of labels from a Dirichlet distribution, then its samples.

    ``q ~ Dir(α·K·p)`` over K labels with shares p in the data set: if all labels are
    equally frequent, every label has concentration α. (Hsu's α is this α·K.) Where a
    label is used up, samples are drawn from the rest of the mix; where the mix is used
    up, from the labels that are left.

    Source: Hsu et al. 2019, arXiv:1909.06335, section 3.
    """
    _, kinds, n_samples = np.unique(labels, return_inverse=True, return_counts=True)
    order = _sort_by_label(kinds, rng)
    first = np.cumsum(n_samples) - n_samples  # of each label, within order
    alpha = np.clip(partition.alpha, *ALPHA_RANGE)
    concentration = alpha * len(n_samples) * n_samples / len(labels)
    n_left = None if partition.replace else n_samples
    drawn = np.concatenate(list(_draw_kinds(sizes, concentration, n_left, rng)))
    if partition.replace:
        offsets = rng.integers(n_samples[drawn])
    else:
        offsets = _occurrence_numbers(drawn)
    return np.split(order[first[drawn] + offsets], np.cumsum(sizes)[:-1])


def _draw_kinds(
    sizes: np.ndarray,
    concentration: np.ndarray,
    n_left: np.ndarray | None,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Draw a label 0..K-1 for every sample of every party; at most `n_left` of each."""
    n_kinds = len(concentration)
    n_blocks = 1 + len(sizes) * n_kinds // BLOCK
    for block in np.array_split(sizes, min(n_blocks, len(sizes))):
        mixes = rng.dirichlet(concentration, len(block))  # (parties, K)
        counts = rng.multinomial(block, mixes)  # (parties, K)
        if n_left is not None:
            for i, mix in enumerate(mixes):
                counts[i] = _limit_counts(counts[i], mix, n_left, rng)
                n_left = n_left - counts[i]
        yield np.repeat(np.arange(counts.size), counts.reshape(-1)) % n_kinds


def _limit_counts(
    counts: np.ndarray, mix: np.ndarray, n_left: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Lower counts to what is left; draw the rest again from labels not yet empty."""
    limited = np.minimum(counts, n_left)
    n_over = int(counts.sum() - limited.sum())
    while n_over:  # every pass but the last empties a label
        rest = np.where(limited < n_left, mix, 0.0)
        if not rest.any():
            rest = (n_left - limited).astype(float)
        drawn = rng.multinomial(n_over, rest / rest.sum())
        drawn = np.minimum(drawn, n_left - limited)
        limited += drawn
        n_over -= int(drawn.sum())
    return limited


def _shards(
    labels: np.ndarray,
    sizes: np.ndarray,
    partition: PartitionSpec,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Sort by label, cut into shards, assign every party `shards_per_party` of them.

    With `replace` a shard may be assigned more than once.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    if partition.size_alpha is not None:
        return _uneven_shards(labels, sizes, partition, rng)
    shape = len(sizes), partition.shards_per_party
    shards = _cut_shards(labels, sizes, partition, rng)
    if partition.replace:
        assigned = rng.integers(len(shards), size=shape)
    else:
        assigned = rng.permutation(len(shards)).reshape(shape)
    return [np.concatenate([shards[i] for i in row]) for row in assigned]


def _cut_shards(
    labels: np.ndarray,
    sizes: np.ndarray,
    partition: PartitionSpec,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Indices of samples of equal or neighbouring labels, one array for each shard.

    With `samples_per_party` they are cut from a subset with evenly many samples of each
    label: the head of the sorted data would lack the last labels.
    """
    n_each = partition.shards_per_party
    size = int(sizes.min()) // n_each
    if size == 0:
        needed = f"at least shards_per_party ({n_each}) samples per party"
        raise DataError(partition.source, f"{sizes.min()} per party", needed)
    order = _sort_by_label(labels, rng)
    n_shards = len(sizes) * n_each
    if partition.samples_per_party is None and not partition.replace:
        return np.array_split(order, n_shards)
    if partition.replace:
        n_shards = max(1, min(n_shards, len(labels) // size))
    subset = _even_subset(labels[order], n_shards * size)
    # resize repeats the data set where it is less than one shard
    return list(np.resize(order[subset], (n_shards, size)))


def _even_subset(labels: np.ndarray, n: int) -> np.ndarray:
    """Ascending places of `n` labels, evenly many of each."""
    by_occurrence = np.argsort(_occurrence_numbers(labels), kind="stable")
    return np.sort(by_occurrence[:n])


def _uneven_shards(
    labels: np.ndarray,
    sizes: np.ndarray,
    partition: PartitionSpec,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Sort by label, cut into shards as long as their parties need them.

    Shards of all parties are cut in random order. With `replace` each begins anywhere.
    """
    n_each, n_all = partition.shards_per_party, int(sizes.sum())
    lengths = sizes[:, None] // n_each + (np.arange(n_each) < sizes[:, None] % n_each)
    lengths, order = lengths.reshape(-1), _sort_by_label(labels, rng)
    if partition.replace:
        starts = rng.integers(len(order), size=len(lengths))
        places = [s + np.arange(n) for s, n in zip(starts, lengths, strict=True)]
        shards = [order[place % len(order)] for place in places]
    else:
        order = order[_even_subset(labels[order], n_all)]
        turns = rng.permutation(len(lengths))
        cut = np.split(order, np.cumsum(lengths[turns])[:-1])
        shards = [cut[turn] for turn in np.argsort(turns)]
    rows = range(0, len(shards), n_each)
    return [np.concatenate(shards[i : i + n_each]) for i in rows]


def _sort_by_label(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices sorted by label; those of one label in random order."""
    order = rng.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _occurrence_numbers(kinds: np.ndarray) -> np.ndarray:
    """How many equal values stand before each: [7 7 5 7] gives [0 1 0 2]."""
    _, counts = np.unique(kinds, return_counts=True)
    numbers = np.empty(len(kinds), np.int64)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    numbers[np.argsort(kinds, kind="stable")] = np.arange(len(kinds)) - starts
    return numbers


LABEL_SCHEMES = {"dirichlet": _dirichlet, "shards": _shards}
