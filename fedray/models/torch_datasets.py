"""Samples outside memory for models on torch: datasets, and arrays that stay in files.

Batches are read by torch's DataLoader. What is drawn at random, in its worker processes
too, comes from the training's seed, so that a pass read again is the same.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, zip_longest
from typing import Any, Protocol

import numpy as np
import torch

from fedray import datasets, nested
from fedray.config import RunConfig
from fedray.datasets import DatasetPart
from fedray.errors import DataError
from fedray.models.base import batch_sizes
from fedray.models.torch_batches import (
    PlaceBatches,
    PlacedBatches,
    StreamBatches,
    check_finite,
    draw,
    has_own_collate,
    is_random,
    load_batches,
)
from fedray.models.torch_samples import (
    Batch,
    TensorSamples,
    TorchSamples,
    count_probed,
    digest,
)
from fedray.models.torch_state import random_scope
from fedray.nested import Arrays, Nested

Prepare = Callable[[Nested, Nested], Batch]
N_COMPARED = 8  # first batches of a dataset with places, which are read twice


class PreparingModel(Protocol):
    """What samples need of the model that trains on them."""

    config: RunConfig
    takes_batch_statistics: bool

    def prepare(self, x: Nested, y: Nested) -> Batch:
        """All inputs and targets as tensors on the device."""

    def prepare_batch(self, x: Nested, y: Nested) -> Batch:
        """Those of one batch of many."""


def ready(part: Arrays | DatasetPart, model: PreparingModel) -> TorchSamples:
    """A part of a party's data as a model trains on it."""
    if isinstance(part, DatasetPart):
        joins_single = model.takes_batch_statistics
        return DatasetSamples(part, model.prepare_batch, model.config, joins_single)
    if nested.is_mapped(part.x) or nested.is_mapped(part.y):
        return MappedSamples(part, model.prepare_batch)
    return TensorSamples(*model.prepare(part.x, part.y))


class Extremes:
    """Samples with the extreme values of all that was looked at, block by block."""

    def __init__(self) -> None:
        self.samples: TensorSamples | None = None

    def add(self, x: Nested, y: Nested) -> None:
        """Look at a block; only a few of its samples are kept."""
        new = TensorSamples(x, y)
        if self.samples is not None:
            new = concatenate([self.samples, new]) or self.samples
        self.samples = new.extremes()

    def with_others(self, others: TensorSamples, n_most: int) -> TensorSamples:
        """Up to `n_most` samples: those with the extreme values, then others."""
        both = self.samples and concatenate([self.samples, others])
        return (both or others).take(slice(n_most))


def concatenate(parts: Sequence[TensorSamples]) -> TensorSamples | None:
    """Samples of several parts in a row; None where their shapes differ."""
    first = parts[0]

    def join(name: str, where: str) -> torch.Tensor:
        return torch.cat([nested.arrays(getattr(p, name))[where] for p in parts])

    try:
        return TensorSamples(
            nested.map_named(partial(join, "x"), first.x),
            nested.map_named(partial(join, "y"), first.y),
        )
    except (RuntimeError, KeyError):
        return None


class MappedSamples:
    """Arrays that stay in their files: a batch is read when it is trained on.

    Order and values are those of the same arrays in memory, bit for bit.
    """

    def __init__(self, part: Arrays, prepare: Prepare):
        self.part, self.prepare = part, prepare
        self._extremes = Extremes()

    def __len__(self) -> int:
        return self.part.n_samples

    def take(self, rows: np.ndarray | slice) -> "MappedSamples":
        """The samples at these places, unread."""
        places = np.arange(len(self))[rows]
        return MappedSamples(self.part.take(places), self.prepare)

    def describe(self) -> tuple[str, str]:
        """Dtypes and shapes of one sample and of its target."""
        return self._read(slice(1)).describe()

    def first(self) -> Nested:
        """Inputs of the first sample: nested numpy arrays (1, ...)."""
        return self._read(slice(1)).first()

    def batches(self, sizes: list[int]) -> Iterator[Batch]:
        """All samples in their order, in batches of these sizes."""
        start = 0
        for size in sizes:
            batch = self._read(slice(start, start := start + size))
            yield batch.x, batch.y

    def shuffled(
        self, rows: np.ndarray, sizes: list[int], order: np.random.Generator, epoch: int
    ) -> Generator[Batch]:
        """One pass of training over the samples at `rows`, in a random order."""
        drawn = rows[order.permutation(len(rows))]
        start = 0
        for size in sizes:
            batch = self._read(drawn[start : start + size])
            start += size
            yield batch.x, batch.y

    def select(self, batches: Iterable[np.ndarray], seed: int) -> Iterator[Batch]:
        """Batches of the samples at these places; nothing is random."""
        for rows in batches:
            batch = self._read(rows)
            yield batch.x, batch.y

    def blocks(self) -> Iterator[Batch]:
        """All samples, some megabytes at a time."""
        arrays = [*nested.arrays(self.part.x).values()]
        n_bytes = sum(array.nbytes for array in arrays) // max(1, len(self))
        size = max(1, nested.BLOCK_BYTES // max(1, n_bytes))
        extremes = Extremes()
        for x, y in self.batches(batch_sizes(len(self), size)):
            extremes.add(x, y)
            yield x, y
        self._extremes = extremes

    def extremes(self, n_most: int | None = None) -> TensorSamples:
        """Samples with the extreme values, once all were looked at; then the first."""
        n_most = count_probed(self._read(slice(1)).x) if n_most is None else n_most
        return self._extremes.with_others(self._read(slice(n_most)), n_most)

    def _read(self, rows: np.ndarray | slice) -> TensorSamples:
        x, y = nested.take(self.part.x, rows), nested.take(self.part.y, rows)
        return TensorSamples(*self.prepare(x, y))


class DatasetSamples:
    """A dataset's samples, read by torch's DataLoader when they are needed."""

    def __init__(
        self,
        part: DatasetPart,
        prepare: Prepare,
        config: RunConfig,
        joins_single: bool,
    ):
        self.part, self.prepare, self.config = part, prepare, config
        self.joins_single = joins_single
        self._extremes = Extremes()
        self._window: tuple[int, int] = (0, part.n_samples)  # of a stream's samples

    def __len__(self) -> int:
        start, stop = self._window
        return stop - start if self.part.is_stream else self.part.n_samples

    def take(self, rows: np.ndarray | slice) -> "DatasetSamples":
        """The samples at these places, unread; of a stream, those in a row."""
        if not self.part.is_stream:
            own = self._places()[rows]
            return self._with(self.part.at(own))
        places = np.arange(*self._window)[rows]
        part = self._with(self.part)
        start = int(places[0]) if len(places) else 0
        part._window = start, start + len(places)
        return part

    def describe(self) -> tuple[str, str]:
        """Dtypes and shapes of one sample and of its target.

        What a collate_fn of the user's own pads to has no shape of its own.
        """
        described = self._first(1).describe()
        if not has_own_collate(self.part.loader):
            return described
        x, y = (nested.without_sizes(text) for text in described)
        return x, y

    def first(self) -> Nested:
        """Inputs of the first sample: nested numpy arrays (1, ...)."""
        return self._first(1).first()

    def batches(self, sizes: list[int]) -> Iterator[Batch]:
        """All samples in their order, in batches of these sizes or the loader's own."""
        own = self.part.settings.get("batch_size", len(self))
        size = min([own, *sizes[:1]])
        with random_scope(self.config.seed):
            if self.part.is_stream:
                yield from self._stream(size, False, self.config.seed)
            else:
                sizes = batch_sizes(len(self), size, joins_single=self.joins_single)
                batches = PlaceBatches(self._places(), sizes)
                yield from self._read(batches, self.config.seed)

    def shuffled(
        self, rows: np.ndarray, sizes: list[int], order: np.random.Generator, epoch: int
    ) -> Generator[Batch]:
        """One pass of training, in the order of the loader's sampler or a random one.

        set_epoch of the dataset and of its sampler is called with `epoch`.
        """
        loader: Any = self.part.loader
        sampler: Any = getattr(loader, "sampler", None)
        for part in (self.part.dataset, sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        # of its own, so that the order is that of the same samples in memory
        seed = int(order.spawn(1)[0].integers(2**62))
        if self.part.is_stream:
            drops_last = self.config.drop_last
            yield from self._stream(self.config.batch_size, drops_last, seed)
            return
        own = loader is not None and self.part.rows is None
        if own and datasets.has_own_batches(loader):
            yield from self._read(draw(loader, loader.batch_sampler, seed), seed)
            return
        if own and datasets.has_own_order(loader):
            places = np.array(draw(loader, loader.sampler, seed))
        else:
            own_rows = self._places()[rows]
            is_shuffled = loader is None or is_random(loader.sampler)
            places = own_rows[order.permutation(len(rows))] if is_shuffled else own_rows
        yield from self._read(PlaceBatches(places, sizes), seed)

    def select(self, batches: Iterable[np.ndarray], seed: int) -> Iterator[Batch]:
        """Batches of the samples at these places, of a dataset that has places.

        seed : of worker processes; in this one all draw from the random state it has.
        """
        own = self._places()
        yield from self._read((own[rows].tolist() for rows in batches), seed)

    def blocks(self) -> Iterator[Batch]:
        """All samples, a batch at a time; raises DataError where one is no number."""
        extremes, n_read = Extremes(), 0
        for x, y in self.batches([self.config.batch_size]):
            check_finite(x, y, self._name)
            extremes.add(x, y)
            n_read += nested.length(x)
            yield x, y
        self._extremes = extremes
        if not n_read:
            needed = "at least one: a stream has to give its samples at every pass"
            raise DataError(self._name, "a pass without a sample", needed)

    def extremes(self, n_most: int | None = None) -> TensorSamples:
        """Samples with the extreme values, once all were looked at; then the first."""
        if n_most is None:
            n_most = count_probed(self._first(1).x)
        return self._extremes.with_others(self._first(n_most), n_most)

    def compare_passes(
        self, sizes: list[int], seed: int, epoch: int | None
    ) -> int | None:
        """Read a pass twice; the batch, from 1, at which the second one differs.

        None: both are alike. Of a dataset with places only the first batches are read.

        Parameters
        ----------
        sizes : of the batches.
        seed : of all that is random in the pass.
        epoch : number of a pass of training; None: an evaluation's.
        """
        n_most = None if self.part.is_stream else N_COMPARED
        digests = []
        for _ in range(2):
            rows = np.broadcast_to(np.int64(0), len(self))
            if not self.part.is_stream:
                rows = np.arange(len(self))
            batches = self.batches(sizes)
            if epoch is not None:
                order = np.random.default_rng(seed)
                batches = self.shuffled(rows, sizes, order, epoch)
            with random_scope(seed):
                digests.append([*map(digest, islice(batches, n_most))])
        pairs = enumerate(zip_longest(*digests), 1)
        return next((place for place, (a, b) in pairs if a != b), None)

    @property
    def _name(self) -> str:
        return f"of {type(self.part.dataset).__name__}"

    def _places(self) -> np.ndarray:
        """Places of all samples in the dataset, in the order of an evaluation."""
        loader = self.part.loader
        if self.part.rows is not None:
            return self.part.rows
        if loader is None or not datasets.has_own_order(loader):
            return np.arange(self.part.n_samples)
        if datasets.has_own_batches(loader):
            batches = draw(loader, loader.batch_sampler, self.config.seed)
            return np.array([place for batch in batches for place in batch])
        return np.array(draw(loader, loader.sampler, self.config.seed))

    def _first(self, n_most: int) -> TensorSamples:
        """The first samples, read in this process."""
        with random_scope(self.config.seed):
            if not self.part.is_stream:
                places = self._places()[:n_most]
                sizes = [len(places)]
                batches = self._read(PlaceBatches(places, sizes), 0, has_workers=False)
                return TensorSamples(*next(batches))
            batches = self._stream(n_most, False, 0, has_workers=False)
            first = next(batches, None)
        if first is None:
            raise DataError(self._name, "a stream without a sample", "at least one")
        return TensorSamples(*first).take(slice(n_most))

    def _with(self, part: DatasetPart) -> "DatasetSamples":
        return DatasetSamples(part, self.prepare, self.config, self.joins_single)

    def _stream(
        self, size: int, drops_last: bool, seed: int, has_workers: bool = True
    ) -> Iterator[Batch]:
        """Batches of one pass over a stream, up to as many samples as it declares."""
        source = StreamBatches(self.part, size, drops_last, self.joins_single)
        place, (start, stop) = 0, self._window
        for x, y in load_batches(source, None, seed, has_workers):
            rows = slice(max(0, start - place), max(0, stop - place))
            place += nested.length(x)
            batch = Arrays(nested.take(x, rows), nested.take(y, rows))
            if batch.n_samples:
                yield self.prepare(batch.x, batch.y)
            if place >= stop:
                return

    def _read(
        self, batches: Iterable[list[int]], seed: int, has_workers: bool = True
    ) -> Iterator[Batch]:
        source = PlacedBatches(self.part)
        for x, y in load_batches(source, batches, seed, has_workers):
            yield self.prepare(x, y)
