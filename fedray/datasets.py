"""Datasets that a handler returns instead of arrays: of torch, of Hugging Face, alike.

They are wrapped here without being read, and without an import of their library:
whoever made one has imported it.
"""

import sys
from collections.abc import Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedray.errors import DataError

DATALOADER_OWN = ("batch_size", "drop_last")  # settings that a DataLoader may bring


@dataclass(frozen=True, eq=False)
class DatasetPart:
    """Samples that are read when they are needed, never all at once.

    dataset : with places, as torch's Dataset has (``dataset[3]``), or a stream, as
        torch's IterableDataset.
    n_samples : of one pass.
    loader : the DataLoader that it came in, whose collate_fn, num_workers, sampler and
        batch size count; None: it came alone.
    rows : places of the samples that count; None: all.
    """

    dataset: Any
    n_samples: int
    loader: Any = None
    rows: np.ndarray | None = None

    @property
    def is_stream(self) -> bool:
        """Whether samples only come one after another."""
        return is_stream(self.dataset) or self.is_batched

    @property
    def is_batched(self) -> bool:
        """Whether its items are batches: of a DataLoader whose batch_size is None."""
        return self.loader is not None and self.loader.batch_sampler is None

    @property
    def settings(self) -> dict[str, Any]:
        """Config keys as the DataLoader has them: batch_size, drop_last."""
        if getattr(self.loader, "batch_size", None) is None:
            return {}
        return {key: getattr(self.loader, key) for key in DATALOADER_OWN}

    def take(self, rows: np.ndarray) -> "DatasetPart":
        """The samples at these places, unread.

        Raises
        ------
        DataError
            If they only come in a stream, or as a sampler draws them.
        """
        if self.is_stream or has_own_order(self.loader):
            kind = type(self.dataset if self.is_stream else self.loader).__name__
            got = f"a {kind} whose samples come in an order of its own"
            needed = "a dataset with places (len() and [i]) to cut parties from"
            raise DataError("of a partition", got, needed)
        return self.at(rows if self.rows is None else self.rows[rows])

    def at(self, rows: np.ndarray) -> "DatasetPart":
        """The samples at these places of the dataset itself."""
        return replace(self, n_samples=len(rows), rows=rows)


def is_dataset(value: Any) -> bool:
    """Whether a value is a dataset or a DataLoader, no array and no container."""
    if is_library_dataset(value):
        return True
    if isinstance(value, list | tuple | dict | str | bytes) or hasattr(value, "shape"):
        return False
    return _has_places(value) and not hasattr(value, "__array__") and not _is_map(value)


def is_library_dataset(value: Any) -> bool:
    """Whether it is a dataset or DataLoader of torch, or a dataset of Hugging Face."""
    return _is_hugging_face(value) or any(
        _is_of("torch.utils.data", name, value) for name in ("Dataset", "DataLoader")
    )


def is_hugging_face_dict(value: Any) -> bool:
    """Whether it is Hugging Face's dict of datasets by the name of their split."""
    return _is_of("datasets", "DatasetDict", value) or _is_of(
        "datasets", "IterableDatasetDict", value
    )


def is_stream(dataset: Any) -> bool:
    """Whether a dataset's samples only come one after another."""
    if _is_of("torch.utils.data", "IterableDataset", dataset):
        return True
    return _is_of("datasets", "IterableDataset", dataset) or not _has_places(dataset)


def wrap(value: Any, n_samples: int | None = None) -> DatasetPart:
    """Wrap a dataset or a DataLoader.

    n_samples : of one pass over a stream; None: as many as it says by len().

    Raises
    ------
    TypeError
        If the number of a stream's samples is not known.
    """
    loader = value if _is_of("torch.utils.data", "DataLoader", value) else None
    dataset = value if loader is None else loader.dataset
    if _is_hugging_face(dataset) and _format_of(dataset) is None:
        dataset = dataset.with_format("torch")
    return DatasetPart(dataset, _count_samples(dataset, loader, n_samples), loader)


def _count_samples(dataset: Any, loader: Any, n_declared: int | None) -> int:
    """Samples of one pass: of a stream those that are declared, else by len()."""
    if loader is not None and loader.batch_sampler is None:  # items are batches
        if n_declared is None:
            raise TypeError("batches of an unknown number of samples")
        return n_declared
    if is_stream(dataset):
        return len(dataset) if n_declared is None else n_declared
    if has_own_batches(loader):
        return sum(map(len, loader.batch_sampler))
    return len(dataset) if loader is None else count(loader.sampler)


def has_own_batches(loader: Any) -> bool:
    """Whether a DataLoader has a batch sampler of the user's own."""
    sampler = getattr(loader, "batch_sampler", None)
    return (
        sampler is not None and type(sampler).__module__ != "torch.utils.data.sampler"
    )


def has_own_order(loader: Any) -> bool:
    """Whether a DataLoader draws its samples otherwise than in order or shuffled."""
    if loader is None or loader.batch_sampler is None:
        return loader is not None
    if has_own_batches(loader):
        return True
    sampler = loader.sampler
    if type(sampler).__name__ == "RandomSampler":
        return sampler.replacement or sampler.num_samples != len(loader.dataset)
    return type(sampler).__name__ != "SequentialSampler"


def count(items: Any) -> int:
    """Number of items: what len() says, or as many as come."""
    if isinstance(items, Sized):
        return len(items)
    return sum(1 for _ in items)


def labels_of(dataset: Any, n_samples: int) -> np.ndarray:
    """Labels that a dataset has beside its samples; NaN where it has none.

    As torchvision's `targets`, scikit-learn's `labels`, Hugging Face's column `label`.
    """
    names = ("targets", "labels", "label")
    columns = getattr(dataset, "column_names", None) or ()
    for name in names:
        labels = dataset[name] if name in columns else getattr(dataset, name, None)
        try:
            array = np.asarray(labels)
        except Exception:  # of whatever an attribute of this name may be
            continue
        if array.ndim and len(array) == n_samples and array.dtype.kind in "iufb":
            return array
    return np.full(n_samples, np.nan)


def describe_kind(part: DatasetPart) -> str:
    """Names of the class of a dataset, its columns, and how many samples it has."""
    kind = type(part.dataset)
    columns = getattr(part.dataset, "column_names", None)
    names = sorted(map(str, columns)) if isinstance(columns, list) else ""
    return f"{kind.__module__}.{kind.__qualname__} {names} {part.n_samples}"


def _has_places(value: Any) -> bool:
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _is_map(value: Any) -> bool:
    return hasattr(value, "keys")


def _format_of(dataset: Any) -> Any:
    """The type of Hugging Face's format; None: Python's own objects."""
    if hasattr(dataset, "format"):
        return dataset.format["type"]
    return getattr(getattr(dataset, "_formatting", None), "format_type", None)


def _is_hugging_face(value: Any) -> bool:
    return any(_is_of("datasets", n, value) for n in ("Dataset", "IterableDataset"))


def _is_of(module: str, name: str, value: Any) -> bool:
    """Whether a value is of a class of a module that is imported already."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)
