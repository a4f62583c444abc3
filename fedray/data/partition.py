"""Cut one data set into parties. Pure: the same seed gives the same parts anywhere."""

from collections.abc import Iterator, Sequence

import numpy as np

from fedray.config import PartitionSpec, unknown
from fedray.data.base import Samples
from fedray.errors import ConfigError, DataError

TRAIN, TEST = 0, 1  # train and test parts are drawn apart, from one seed
MAX_LABEL = 1 << 53  # the last whole number that a float64 tells from its neighbours
ALPHAS = (1e-6, 1e12)  # beyond these a mix is one label, or the data set's
BLOCK = 1 << 20  # parties times labels held at a time


def share(
    samples: Samples,
    parties: range,
    n_parties: int,
    partition: PartitionSpec,
    seed: int,
) -> tuple[Samples, list[np.ndarray]]:
    """Some parties' part; whoever holds the data and the seed finds the same one.

    Returns
    -------
    The samples that any of these parties has, each once, and every party's places in
    their training samples. Test samples come one party after another.
    """
    within = slice(parties.start, parties.stop)
    cuts = cut(samples.y_train, n_parties, partition, seed)[within]
    tests = share_tests(samples.n_test, n_parties, seed)[within]
    used, places = np.unique(np.concatenate(cuts), return_inverse=True)
    ends = np.cumsum([len(part) for part in cuts])
    return samples.take(used, np.concatenate(tests)), np.split(places, ends[:-1])


def cut(
    y_train: np.ndarray, n_parties: int, partition: PartitionSpec, seed: int
) -> list[np.ndarray]:
    """Places of each party's training samples, in config order; no party is empty.

    Parameters
    ----------
    partition : PartitionSpec
        iid, dirichlet (`alpha`) or shards (`shards_per_party`). Parties are disjoint
        unless `replace`. Without `samples_per_party` all samples are shared out.

    Raises
    ------
    DataError
        If there are too few samples, or no labels for a scheme that needs them.
    """
    sizes = _sizes(len(y_train), n_parties, partition)
    rng = np.random.default_rng([seed, TRAIN])
    if partition.scheme == "iid":
        return _iid(len(y_train), sizes, partition.replace, rng)
    if partition.scheme not in LABELLED:
        names = ["iid", *LABELLED]
        raise ConfigError([unknown("partition scheme", partition.scheme, names)])
    labels = labels_of(y_train)
    if labels is None:
        needed = f"one label per sample for {partition.scheme}, or scheme: iid"
        raise DataError(partition.source, "targets that are not labels", needed)
    return LABELLED[partition.scheme](labels, sizes, partition, rng)


def share_tests(n_test: int, n_parties: int, seed: int) -> list[np.ndarray]:
    """Places of each party's test samples: every one at one party, evenly many.

    Where there are more parties than test samples, some parties get none.
    """
    rng = np.random.default_rng([seed, TEST])
    return np.array_split(rng.permutation(n_test), n_parties)


def labels_of(y: np.ndarray) -> np.ndarray | None:
    """One int64 label per sample; None if `y` holds something else.

    Labels are whole numbers of any dtype, (N,) or (N, 1), or one-hot rows (N, C).
    """
    if y.ndim == 2 and y.shape[1] > 1:
        hot = y == 1
        if not (hot | (y == 0)).all() or not (hot.sum(axis=1) == 1).all():
            return None
        return hot.argmax(axis=1)
    if y.ndim != 1 and y.shape[1:] != (1,):
        return None
    y = y.reshape(-1)
    if len(y) and not (y.min() >= -MAX_LABEL and y.max() <= MAX_LABEL):
        return None
    if y.dtype.kind == "f" and not np.array_equal(y, np.rint(y)):
        return None
    return y.astype(np.int64)


def _sizes(n: int, n_parties: int, partition: PartitionSpec) -> np.ndarray:
    """Samples of each party, checked against the `n` that there are."""
    size = partition.samples_per_party
    if size is None:
        sizes = n // n_parties + (np.arange(n_parties) < n % n_parties)
        if partition.replace:
            sizes = np.maximum(sizes, 1)
    else:
        sizes = np.full(n_parties, size)
    asked = max(int(sizes.sum()), n_parties)
    if n == 0 or (asked > n and not partition.replace):
        needed = f"at least {asked} for {n_parties} parties"
        if n:
            needed += ", or fewer per party, fewer parties, or replace: true"
        raise DataError(partition.source, f"{n} training samples", needed)
    return sizes


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
    """Every party draws its own mix of labels, and its samples after that mix.

    ``q ~ Dir(α·K·p)`` over K labels with shares p in the data set: with labels evenly
    many, every label has concentration α. (Hsu's α is this α·K.) A label that has run
    out gives way to the rest of the mix, and a mix that has run out to what is left.

    Source: Hsu et al. 2019, arXiv:1909.06335, section 3.
    """
    _, kinds, n_there = np.unique(labels, return_inverse=True, return_counts=True)
    order = _by_label(kinds, rng)
    first = np.cumsum(n_there) - n_there  # of each label, within order
    mixing = np.clip(partition.alpha, *ALPHAS) * len(n_there) * n_there / len(labels)
    n_left = None if partition.replace else n_there
    which = np.concatenate(list(_draw_kinds(sizes, mixing, n_left, rng)))
    within = rng.integers(n_there[which]) if partition.replace else _turns(which)
    return np.split(order[first[which] + within], np.cumsum(sizes)[:-1])


def _draw_kinds(
    sizes: np.ndarray,
    mixing: np.ndarray,
    n_left: np.ndarray | None,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """A label, as 0..K-1, for every sample of every party; at most `n_left` of each."""
    n_kinds = len(mixing)
    n_blocks = 1 + len(sizes) * n_kinds // BLOCK
    for block in np.array_split(sizes, min(n_blocks, len(sizes))):
        mixes = rng.dirichlet(mixing, len(block))  # (parties, K)
        counts = rng.multinomial(block, mixes)  # (parties, K)
        if n_left is not None:
            for i, mix in enumerate(mixes):
                counts[i] = _fit(counts[i], mix, n_left, rng)
                n_left = n_left - counts[i]
        yield np.repeat(np.arange(counts.size), counts.reshape(-1)) % n_kinds


def _fit(
    counts: np.ndarray, mix: np.ndarray, n_left: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Lower counts to what is left; draw the rest again from labels not yet empty."""
    fitted = np.minimum(counts, n_left)
    n_over = int(counts.sum() - fitted.sum())
    while n_over:  # every turn but the last empties a label
        rest = np.where(fitted < n_left, mix, 0.0)
        if not rest.any():
            rest = (n_left - fitted).astype(float)
        drawn = rng.multinomial(n_over, rest / rest.sum())
        drawn = np.minimum(drawn, n_left - fitted)
        fitted += drawn
        n_over -= int(drawn.sum())
    return fitted


def _shards(
    labels: np.ndarray,
    sizes: np.ndarray,
    partition: PartitionSpec,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Sort by label, cut into runs, give every party `shards_per_party` of them.

    With `replace` a run may be dealt more than once.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    shape = len(sizes), partition.shards_per_party
    runs = _runs(labels, sizes, partition, rng)
    if partition.replace:
        dealt = rng.integers(len(runs), size=shape)
    else:
        dealt = rng.permutation(len(runs)).reshape(shape)
    return [np.concatenate([runs[i] for i in row]) for row in dealt]


def _runs(
    labels: np.ndarray,
    sizes: np.ndarray,
    partition: PartitionSpec,
    rng: np.random.Generator,
) -> Sequence[np.ndarray]:
    """Runs of equal or neighbouring labels.

    With `samples_per_party` they are cut from a subset with evenly many samples of each
    label: the head of the sorted data would lack the last labels.
    """
    n_each = partition.shards_per_party
    size = int(sizes.min()) // n_each
    if size == 0:
        needed = f"at least shards_per_party ({n_each}) samples per party"
        raise DataError(partition.source, f"{sizes.min()} per party", needed)
    order = _by_label(labels, rng)
    n_runs = len(sizes) * n_each
    if partition.samples_per_party is None and not partition.replace:
        return np.array_split(order, n_runs)
    if partition.replace:
        n_runs = max(1, min(n_runs, len(labels) // size))
    evenly = np.argsort(_turns(labels[order]), kind="stable")[: n_runs * size]
    # resize repeats the data set where it is less than one run
    return np.resize(order[np.sort(evenly)], (n_runs, size))


def _by_label(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places sorted by label; those of one label in random order."""
    order = rng.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _turns(kinds: np.ndarray) -> np.ndarray:
    """How many of its own kind stand before each: [7 7 5 7] gives [0 1 0 2]."""
    _, counts = np.unique(kinds, return_counts=True)
    turns = np.empty(len(kinds), np.int64)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    turns[np.argsort(kinds, kind="stable")] = np.arange(len(kinds)) - starts
    return turns


LABELLED = {"dirichlet": _dirichlet, "shards": _shards}
