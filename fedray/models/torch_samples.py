"""Samples as models on torch train on them: tensors on the device."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch

from fedray import nested
from fedray.nested import Nested

Batch = tuple[Nested, Nested]  # inputs and targets, nested tensors on the device
N_PROBED = 16  # samples that a model is probed with, the extreme ones
MAX_ID_COLUMNS = 64  # of a table of ids whose columns are all probed


class TorchSamples(Protocol):
    """Samples that a model on torch trains on, in memory or not."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray | slice) -> Self:
        """The samples at these places."""

    def describe(self) -> tuple[str, str]:
        """Dtypes and shapes of one sample and of its target."""

    def first(self) -> Nested:
        """Inputs of the first sample: nested numpy arrays (1, ...)."""

    def batches(self, sizes: list[int]) -> Iterator[Batch]:
        """All samples in their order, in batches of these sizes."""

    def shuffled(
        self, rows: np.ndarray, sizes: list[int], order: np.random.Generator, epoch: int
    ) -> Generator[Batch]:
        """One pass of training over the samples at `rows`, in a random order.

        Parameters
        ----------
        sizes : of the batches; what is beyond their sum is left out.
        order : all that is random in this pass is drawn from it.
        epoch : number of the pass since the federation began, from 0.
        """

    def select(self, batches: Iterable[np.ndarray], seed: int) -> Iterator[Batch]:
        """Batches of the samples at these places, copied.

        seed : of all that is random in reading them.
        """

    def blocks(self) -> Iterator[Batch]:
        """All samples, as many at a time as lie in memory: to check them."""

    def extremes(self, n_most: int | None = None) -> "TensorSamples":
        """Up to `n_most` samples, those with the extreme values first.

        None: as many as a model is probed with.
        """


@dataclass(frozen=True, eq=False)
class TensorSamples:
    """Samples in the device's memory.

    x, y : nested tensors (N, ...).
    """

    x: Nested
    y: Nested

    def __len__(self) -> int:
        return nested.length(self.x)

    def take(self, rows: np.ndarray | slice) -> "TensorSamples":
        """The samples at these places; of a slice, views."""
        return TensorSamples(nested.take(self.x, rows), nested.take(self.y, rows))

    @property
    def are_plain(self) -> bool:
        """Whether samples and targets are one array each."""
        return nested.is_one(self.x) and nested.is_one(self.y)

    def copy(self, n_most: int) -> "TensorSamples":
        """A copy of the first `n_most` samples: a model may write into its inputs."""

        def first(array: torch.Tensor) -> torch.Tensor:
            return array[:n_most].clone()

        return TensorSamples(
            nested.map_arrays(first, self.x), nested.map_arrays(first, self.y)
        )

    def describe(self) -> tuple[str, str]:
        """Dtypes and shapes of one sample and of its target."""
        return nested.describe(self.x), nested.describe(self.y)

    def first(self) -> Nested:
        """Inputs of the first sample: nested numpy arrays (1, ...)."""
        return nested.map_arrays(lambda x: x[:1].cpu().numpy(), self.x)

    def batches(self, sizes: list[int]) -> Iterator[Batch]:
        """All samples in their order, in batches of these sizes; views."""
        start = 0
        for size in sizes:
            rows = slice(start, start := start + size)
            yield nested.take(self.x, rows), nested.take(self.y, rows)

    def shuffled(
        self, rows: np.ndarray, sizes: list[int], order: np.random.Generator, epoch: int
    ) -> Generator[Batch]:
        """One pass of training over the samples at `rows`, in a random order."""
        drawn = rows[order.permutation(len(rows))][: sum(sizes)]
        for batch in torch.from_numpy(drawn).to(self._device).split(sizes):
            yield nested.take(self.x, batch), nested.take(self.y, batch)

    def select(self, batches: Iterable[np.ndarray], seed: int) -> Iterator[Batch]:
        """Batches of the samples at these places, copied; nothing is random."""
        for rows in batches:
            places = torch.from_numpy(rows).to(self._device)
            yield nested.take(self.x, places), nested.take(self.y, places)

    def blocks(self) -> Iterator[Batch]:
        """All samples at once."""
        yield self.x, self.y

    def extremes(self, n_most: int | None = None) -> "TensorSamples":
        """Up to `n_most` samples, those with the extreme values first."""
        n_most = count_probed(self.x) if n_most is None else n_most
        rows = torch.from_numpy(extreme_rows(self.x, self.y, n_most)).to(self._device)
        return TensorSamples(nested.take(self.x, rows), nested.take(self.y, rows))

    @property
    def _device(self) -> torch.device:
        return next(iter(nested.arrays(self.x).values())).device


def extreme_rows(x: Nested, y: Nested, n_most: int) -> np.ndarray:
    """Places of up to `n_most` samples, those with the extreme values first.

    The smallest and largest value of every array, then of each column of samples that
    are rows of few numbers, then samples in their order.
    """
    inputs, targets = nested.arrays(x).values(), nested.arrays(y).values()
    places: list[int] = []
    for values in (*inputs, *targets):
        flat = _to_numpy(values).reshape(len(values), -1)
        if flat.size:
            places += [int(i) // flat.shape[1] for i in (flat.argmin(), flat.argmax())]
    for values in inputs:
        flat = _to_numpy(values).reshape(len(values), -1)
        if values.ndim == 2 and 1 < flat.shape[1] <= n_most:
            columns = np.stack([flat.argmin(0), flat.argmax(0)], 1)
            places += columns.ravel().tolist()
    places += range(min(n_most, nested.length(x)))
    return np.array([*dict.fromkeys(places)][:n_most])


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    """Values in an order that is theirs; numpy has no bfloat16."""
    is_wider = values.dtype == torch.bfloat16
    return (values.float() if is_wider else values).cpu().numpy()


def digest(batch: Batch) -> bytes:
    """A digest of all values of a batch, and of their dtypes and shapes."""
    sha = hashlib.sha256()
    for nest in batch:
        for where, array in nested.arrays(nest).items():
            sha.update(f"{where} {array.dtype} {[*array.shape]}".encode())
            flat = array.detach().cpu().contiguous().reshape(-1)
            sha.update(flat.view(torch.uint8).numpy().data)
    return sha.digest()


def count_probed(x: Nested) -> int:
    """How many samples a model is probed with, in evaluation mode.

    Of a table of ids so many that they hold the extremes of each column, since each may
    have an embedding of its own.
    """
    tables = [
        array.shape[1]
        for array in nested.arrays(x).values()
        if not array.is_floating_point() and array.ndim == 2
    ]
    widths = [width for width in tables if width <= MAX_ID_COLUMNS]
    return max([N_PROBED, *(2 * width + 4 for width in widths)])
