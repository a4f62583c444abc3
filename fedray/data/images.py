"""Image data handlers `mnist_pytorch`, `mnist_keras`, `cifar10_keras`: npz to arrays.

Images are checked, scaled to [0, 1] and reshaped; labels are whole numbers or one-hot.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedray.data.base import read_npz
from fedray.data.partition import to_labels
from fedray.errors import DataError

Pair = tuple[np.ndarray, np.ndarray]
KEYS = ("x_train", "y_train", "x_test", "y_test")
SHIPPED = Path(__file__).with_name("mnist_5000.npz")
N_LABELS = 10
N_COLOURS = 3
DIGIT_SHAPES = ((28, 28), (1, 28, 28), (28, 28, 1), (784,))

Shape = tuple[int, ...]


def read_arrays(source: str) -> dict[str, np.ndarray]:
    """Read the four arrays of an npz unchanged; "mnist" is the shipped file."""
    return read_npz(SHIPPED if source == "mnist" else source, KEYS)


class ImageHandler:
    """Data handler for images with labels 0..9; each kind of image is a subclass.

    file_shapes : shapes of one image that files may have, all of as many numbers.
    shape : of one image as the model gets it; where its last axis is colours, planes of
        a file are moved there.
    is_one_hot : whether labels become rows (N, 10) float32 instead of (N,) int64.

    Parameters
    ----------
    path : an npz with x_train, y_train, x_test, y_test, or "mnist" for the shipped one.
        Pixels within 0..255 are divided by 255; a file whose highest pixel is at most 1
        is taken as scaled already. Labels are whole numbers N or N×1, or one-hot rows.

    Raises
    ------
    DataError
        If the file cannot be read, or does not hold such images.
    """

    file_shapes: ClassVar[Sequence[Shape]]
    shape: ClassVar[Shape]
    is_one_hot: ClassVar[bool] = False

    def __init__(self, path: str):
        arrays = read_arrays(path)
        x = [
            _check_images(arrays[key], key, path, self.file_shapes)
            for key in ("x_train", "x_test")
        ]
        # looked at together: a file is scaled as a whole or not at all
        if max(_max_pixel(part, path) for part in x) > 1:
            x = [part / np.float32(255) for part in x]
        y = [_check_labels(arrays[key], key, path) for key in ("y_train", "y_test")]
        if self.is_one_hot:
            y = [np.eye(N_LABELS, dtype=np.float32)[labels] for labels in y]
        x = [_rearrange(part, self.shape) for part in x]
        self._pairs = (x[0], y[0]), (x[1], y[1])

    def get_data(self) -> tuple[Pair, Pair]:
        """Return ``(x_train, y_train), (x_test, y_test)``."""
        return self._pairs

    def get_train_counts(self) -> int:
        """Number of training samples in the file."""
        return len(self._pairs[0][0])


class MnistPytorch(ImageHandler):
    """Digits as float32 N×1×28×28 within 0 and 1, labels as int64 N."""

    file_shapes = DIGIT_SHAPES
    shape = (1, 28, 28)


class MnistKeras(ImageHandler):
    """Digits as float32 N×28×28×1 within 0 and 1, labels as one-hot float32 N×10.

    One file serves this and `MnistPytorch`.
    """

    file_shapes = DIGIT_SHAPES
    shape = (28, 28, 1)
    is_one_hot = True


class Cifar10Keras(ImageHandler):
    """Photos as float32 N×32×32×3 within 0 and 1, labels as one-hot float32 N×10.

    In the file they are N×32×32×3, N×3×32×32, or rows N×3072 of planes as in CIFAR-10's
    own files.
    """

    file_shapes = ((32, 32, 3), (3, 32, 32), (3072,))
    shape = (32, 32, 3)
    is_one_hot = True


def _check_images(
    x: np.ndarray, key: str, path: str, shapes: Sequence[Shape]
) -> np.ndarray:
    if x.shape[:1] != (0,) and x.shape[1:] not in shapes:
        needed = " or ".join("×".join(map(str, ("N", *shape))) for shape in shapes)
        raise DataError(path, f"{key} of shape {list(x.shape)}", needed)
    with np.errstate(over="ignore"):  # `_max_pixel` refuses what becomes infinite
        return x.astype(np.float32)


def _rearrange(x: np.ndarray, shape: Shape) -> np.ndarray:
    """Images (N, *shape); colours in planes, or in rows of planes, are moved last."""
    planes = shape[-1:] + shape[:-1]
    if shape[-1] == N_COLOURS and x.shape[1:] != shape:
        x = x.reshape(len(x), *planes).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(len(x), *shape)


def _max_pixel(x: np.ndarray, path: str) -> float:
    """The highest pixel, after a check that all are within 0 and 255."""
    if not len(x):
        return 0.0
    if not (x.min() >= 0 and x.max() <= 255):  # NaN fails both
        needed = "pixels within 0..1 or within 0..255"
        raise DataError(path, "pixels below 0, above 255 or not finite", needed)
    return float(x.max())


def _check_labels(y: np.ndarray, key: str, path: str) -> np.ndarray:
    """Labels (N,) int64 of a file's (N,), (N, 1) or one-hot (N, 10)."""
    needed = (
        f"whole numbers within 0..{N_LABELS - 1}, one per image, or rows of "
        f"{N_LABELS} with a single 1"
    )
    if y.ndim == 2 and y.shape[1] == N_LABELS:
        labels = to_labels(y)
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
