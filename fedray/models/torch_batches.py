"""Batches of a dataset as torch's DataLoader reads them, in whichever process.

What is drawn at random, in worker processes too, comes from the seed of a pass. A
worker process ends with the party's own.
"""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    default_collate,
    get_worker_info,
)

from fedray import datasets, nested, user_code
from fedray.datasets import DatasetPart
from fedray.errors import DataError
from fedray.models.torch_state import random_scope
from fedray.nested import Nested

TARGET_NAMES = ("labels", "label")  # of a dict of inputs: its targets
LOADER_OPTIONS = ("num_workers", "prefetch_factor", "timeout")
ON_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of Linux's prctl
ITEMS = "items (x, y), a dict of inputs that may hold 'labels', or x alone"
SIGNED = {
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}
END = object()  # of an iterator


def load_batches(
    source: "PlacedBatches | StreamBatches",
    batches: "Iterable[list[int]] | None",
    seed: int,
    has_workers: bool = True,
) -> Iterator[tuple[Nested, Nested]]:
    """Inputs and targets of one pass's batches; its worker processes end with it.

    Parameters
    ----------
    batches : places of the samples of each; None: of a stream.
    seed : of everything random in worker processes.
    has_workers : whether the DataLoader's own number of them counts.

    Raises
    ------
    DataError
        If the dataset fails, or gives what is no batch of numbers.
    """
    loader, name = source.part.loader, f"of {type(source.part.dataset).__name__}"
    options: dict[str, Any] = {}
    n_workers: int = getattr(loader, "num_workers", 0)
    if has_workers and n_workers:
        options = {key: getattr(loader, key) for key in LOADER_OPTIONS}
        options["multiprocessing_context"] = loader.multiprocessing_context
    iterator = iter(
        DataLoader(
            source,
            batch_size=None,
            sampler=batches,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(seed),
            worker_init_fn=partial(_begin_worker, os.getpid(), loader),
            **options,
        )
    )
    try:
        while (raw := _next(iterator, name)) is not END:
            yield split_item(raw, name)
    finally:
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


def _next(iterator: Iterator[Any], name: str) -> Any:
    try:
        raw = next(iterator, END)
    except (MemoryError, DataError):
        raise
    except Exception as error:  # a dataset is code of the user's
        raise _explain(error, name) from error
    if isinstance(raw, _Failure):
        cause = WorkerError(raw.traceback)
        raise DataError(name, raw.got, raw.needed) from cause
    return raw


class WorkerError(Exception):
    """An error in a worker process of a DataLoader, with its traceback."""


class PlaceBatches:
    """Places in a dataset, cut into batches; what is beyond the sizes is left out."""

    def __init__(self, places: np.ndarray, sizes: list[int]):
        self.places, self.sizes = places, sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for size in self.sizes:
            yield self.places[start : start + size].tolist()
            start += size


class PlacedBatches(Dataset):
    """A dataset of batches: takes the places of a batch, in whichever process."""

    def __init__(self, part: DatasetPart):
        self.part, self.collate = part, collate_of(part.loader)
        self.dataset = part.dataset

    def __getitem__(self, places: list[int]) -> Any:
        with _caught() as failures:
            items = _fetch(self.dataset, places)
            failures.stage = COLLATING
            return self.collate(items)
        return failures.failure


class StreamBatches(IterableDataset):
    """A stream of batches, made in the process that reads the samples."""

    def __init__(
        self, part: DatasetPart, size: int, drops_last: bool, joins_single: bool
    ):
        self.part, self.size, self.drops_last = part, size, drops_last
        self.n_held = 2 if joins_single else 1
        self.dataset, self.collate = part.dataset, collate_of(part.loader)

    def __iter__(self) -> Iterator[Any]:
        with _caught() as failures:
            for items in self._groups():
                failures.stage = COLLATING
                yield self.collate(items)
                failures.stage = READING
            return
        yield failures.failure

    def _groups(self) -> Iterator[Any]:
        """Items of one batch each; the last may hold one more, so that none has one."""
        if self.part.is_batched:
            yield from self._own_batches()
            return
        items: list[Any] = []
        for item in self.dataset:
            items.append(item)
            if len(items) == self.size + self.n_held:
                yield items[: self.size]
                items = items[self.size :]
        if self.drops_last:
            items = items[: self.size] if len(items) >= self.size else []
        if self.n_held == 1 and len(items) > self.size:
            yield items[: self.size]
            items = items[self.size :]
        if items:
            yield items

    def _own_batches(self) -> Iterator[Any]:
        """Items that are batches already, as a DataLoader of batch_size None takes."""
        if datasets.is_stream(self.dataset):
            yield from self.dataset
            return
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for place in islice(self.part.loader.sampler, first, None, step):
            yield self.dataset[place]


class _Failure(NamedTuple):
    """What a worker process says of an error; the traceback stays on this node."""

    got: str
    needed: str
    traceback: str


READING = "reading"
COLLATING = "collating"
IN_LOGS = "the whole error is in errors.log of party_dir on its node"


class _Caught:
    stage = READING
    failure: _Failure | None = None


@contextlib.contextmanager
def _caught() -> Iterator[_Caught]:
    """Keep an error of the user's dataset; in the party's own process it passes on."""
    caught = _Caught()
    try:
        yield caught
    except MemoryError:
        raise
    except Exception as error:  # a dataset is code of the user's
        error.__dict__["_fedray_stage"] = caught.stage
        if get_worker_info() is None:
            raise
        problem = _explain(error, "")
        text = "".join(traceback.format_exception(error))
        caught.failure = _Failure(problem.got, problem.needed, text)


def _explain(error: Exception, source: str) -> DataError:
    """What is wrong with a dataset, without a value of a sample."""
    if vars(error).get("_fedray_stage") == COLLATING:
        got = f"samples that make no batch: {user_code.describe(error)}"
        needed = "samples of one shape: pad them in a DataLoader's collate_fn"
        return DataError(source, got, f"{needed}; {IN_LOGS}")
    got = f"a dataset that raises {user_code.describe(error, is_reading=True)}"
    return DataError(source, got, f"samples; {IN_LOGS}")


def collate_of(loader: Any) -> Callable[[Any], Any]:
    """How items become a batch."""
    return getattr(loader, "collate_fn", None) or default_collate


def has_own_collate(loader: Any) -> bool:
    """Whether a DataLoader makes batches in a way of its own."""
    return loader is not None and collate_of(loader) is not default_collate


def _fetch(dataset: Any, places: list[int]) -> Any:
    many = getattr(dataset, "__getitems__", None)
    return many(places) if many else [dataset[place] for place in places]


def _as_it_is(batch: Any) -> Any:
    return batch


def is_random(sampler: Any) -> bool:
    """Whether a sampler is torch's own that shuffles."""
    return type(sampler) is torch.utils.data.RandomSampler


def draw(loader: Any, sampler: Iterable[Any], seed: int) -> list[Any]:
    """All that a sampler of the user's gives in one pass, from a seed alone."""
    for holder in (loader, sampler, getattr(sampler, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    with random_scope(seed):
        return list(sampler)


def _begin_worker(parent: int, loader: Any, worker_id: int) -> None:
    """What a worker process does first: it ends when the party's process does.

    The DataLoader has seeded Python, numpy and torch from the pass's seed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ON_PARENTS_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    own = getattr(loader, "worker_init_fn", None)
    if own is not None:
        info: Any = get_worker_info()
        info.__dict__["dataset"] = info.dataset.dataset  # the user's own, as it expects
        own(worker_id)


def split_item(raw: Any, source: str) -> tuple[Nested, Nested]:
    """Inputs and targets of a batch, as the collate_fn gave it.

    Raises
    ------
    DataError
        If it has another form than `ITEMS`, or holds what is no number.
    """
    if isinstance(raw, Mapping):
        x = {key: value for key, value in raw.items() if key not in TARGET_NAMES}
        y = next((raw[name] for name in TARGET_NAMES if name in raw), None)
        if not x:
            raise DataError(source, "items without inputs", ITEMS)
    elif isinstance(raw, list | tuple) and len(raw) <= 2:
        x, y = (*raw, None)[:2] if len(raw) else (None, None)
    elif isinstance(raw, list | tuple):
        needed = f"{ITEMS}; of several inputs ((x1, x2), y)"
        raise DataError(source, f"items of {len(raw)} parts", needed)
    else:
        x, y = raw, None
    if x is None:
        raise DataError(source, "items of nothing", ITEMS)
    return _to_tensors(x, "x", source), _to_tensors(y, "y", source)


def _to_tensors(value: Any, name: str, source: str) -> Nested:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {
            key: _to_tensors(part, f"{name}[{key!r}]", source)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], str | bytes):
            needed = "numbers: tokens of a tokenizer, or leave that column out"
            raise DataError(source, f"{name} that holds text", needed)
        return tuple(
            _to_tensors(part, f"{name}[{i}]", source) for i, part in enumerate(value)
        )
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        got = f"{name} of type {type(value).__name__}"
        raise DataError(source, got, "numbers, as tensors or arrays") from None
    if tensor.is_complex() or tensor.is_sparse or not tensor.ndim:
        got = f"{name} that is complex, sparse or a single number"
        raise DataError(source, got, "dense real numbers, samples along the first axis")
    return tensor.to(SIGNED.get(tensor.dtype, tensor.dtype))


def check_finite(x: Nested, y: Nested, source: str) -> None:
    """Raise DataError where a number of a batch is NaN or infinite."""
    for name, part in (("x", x), ("y", y)):
        for where, tensor in nested.arrays(part).items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                needed = "finite numbers, within what the model's dtype holds"
                raise DataError(source, f"NaN or infinity in {name}{where}", needed)
