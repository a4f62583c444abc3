"""Labelled images in an npz, in whatever usual form they were saved."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedray.data.base import Pair, read_npz
from fedray.data.partition import labels_of
from fedray.errors import DataError

KEYS = ("x_train", "y_train", "x_test", "y_test")
SHIPPED = Path(__file__).with_name("mnist_5000.npz")
N_LABELS = 10
N_COLOURS = 3

Shape = tuple[int, ...]


def read_pairs(source: str) -> dict[str, np.ndarray]:
    """Read the four arrays of an npz, as they are; "mnist" is the shipped file."""
    return read_npz(SHIPPED if source == "mnist" else source, KEYS)


class Images:
    """Images scaled to 0..1 and labels 0..9 of an npz, each checked.

    x : float32 images of `x_train` and `x_test`, each (N, *shape).
    y : int64 labels (N,) of `y_train` and `y_test`.

    Parameters
    ----------
    path : an npz with x_train, y_train, x_test, y_test, or "mnist" for the shipped one.
    shapes : of one image, as files may have it; all have as many numbers.
    shape : what every image becomes; where its last axis is colours, those that a
        file has in planes are brought there.

    Raises
    ------
    DataError
        If the file cannot be read, or does not hold such images.
    """

    def __init__(self, path: str, shapes: Sequence[Shape], shape: Shape):
        arrays = read_pairs(path)
        x = [_images(arrays[key], key, path, shapes) for key in ("x_train", "x_test")]
        highest = max(_highest(part, path) for part in x)
        if highest > 1:  # asked once: a file is scaled as a whole or not at all
            x = [part / np.float32(255) for part in x]
        self.x = [_arranged(part, shape) for part in x]
        self.y = [_labels(arrays[key], key, path) for key in ("y_train", "y_test")]

    def pairs(self) -> tuple[Pair, Pair]:
        """Images with a label each, (N,) int64."""
        return (self.x[0], self.y[0]), (self.x[1], self.y[1])

    def one_hot(self) -> tuple[Pair, Pair]:
        """Images with a row of ten each, (N, 10) float32, 1 at the label's place."""
        rows = [np.eye(N_LABELS, dtype=np.float32)[labels] for labels in self.y]
        return (self.x[0], rows[0]), (self.x[1], rows[1])


def _images(x: np.ndarray, key: str, path: str, shapes: Sequence[Shape]) -> np.ndarray:
    if x.shape[:1] != (0,) and x.shape[1:] not in shapes:
        needed = " or ".join("×".join(map(str, ("N", *shape))) for shape in shapes)
        raise DataError(path, f"{key} of shape {list(x.shape)}", needed)
    with np.errstate(over="ignore"):  # what becomes infinite is refused next
        return x.astype(np.float32)


def _arranged(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Give images their shape; colours in planes, or in rows of planes, come last."""
    planes = shape[-1:] + shape[:-1]
    if shape[-1] == N_COLOURS and x.shape[1:] != shape:
        x = x.reshape(len(x), *planes).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(len(x), *shape)


def _highest(x: np.ndarray, path: str) -> float:
    if not len(x):
        return 0.0
    if not (x.min() >= 0 and x.max() <= 255):  # NaN fails both
        needed = "pixels within 0..1 or within 0..255"
        raise DataError(path, "pixels below 0, above 255 or not finite", needed)
    return float(x.max())


def _labels(y: np.ndarray, key: str, path: str) -> np.ndarray:
    needed = (
        f"whole numbers within 0..{N_LABELS - 1}, one per image, or rows of "
        f"{N_LABELS} with a single 1"
    )
    if y.ndim == 2 and y.shape[1] == N_LABELS:
        labels = labels_of(y)
        if labels is None:
            raise DataError(path, f"{key} with rows that are not one-hot", needed)
        return labels
    if y.ndim != 1 and y.shape[1:] != (1,):
        raise DataError(path, f"{key} of shape {list(y.shape)}", needed)
    y = y.reshape(-1)
    if y.dtype.kind == "f" and not np.array_equal(y, np.rint(y)):  # NaN differs too
        raise DataError(path, f"{key} with values between whole numbers", needed)
    if len(y) and not (y.min() >= 0 and y.max() < N_LABELS):
        raise DataError(path, f"{key} within {y.min():g}..{y.max():g}", needed)
    return y.astype(np.int64)
