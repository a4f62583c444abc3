"""Handwritten digits as a PyTorch CNN wants them: the handler `mnist_pytorch`."""

from pathlib import Path

import numpy as np

from fedray.data.base import Pair, read_npz
from fedray.errors import DataError

KEYS = ("x_train", "y_train", "x_test", "y_test")
SHIPPED = Path(__file__).with_name("mnist_5000.npz")
N_LABELS = 10
IMAGES = ((28, 28), (1, 28, 28), (28, 28, 1), (784,))  # shapes of one digit


def read_pairs(source: str) -> dict[str, np.ndarray]:
    """Read the four arrays of an npz, as they are; "mnist" is the shipped file."""
    return read_npz(SHIPPED if source == "mnist" else source, KEYS)


class MnistPytorch:
    """Images as float32 N×1×28×28 within 0 and 1, labels as int64 N.

    Parameters
    ----------
    path : str
        An npz with x_train, y_train, x_test, y_test, or "mnist" for the shipped one.
        Images within 0..255 are divided by 255; a file whose highest pixel is at
        most 1 is taken as scaled already.

    Raises
    ------
    DataError
        If the file cannot be read, or does not hold digits.
    """

    def __init__(self, path: str):
        arrays = read_pairs(path)
        images = {key: _images(arrays[key], key, path) for key in ("x_train", "x_test")}
        highest = max(_highest(x, path) for x in images.values())
        if highest > 1:  # asked once: a file is scaled as a whole or not at all
            images = {key: x / np.float32(255) for key, x in images.items()}
        self._train = images["x_train"], _labels(arrays["y_train"], "y_train", path)
        self._test = images["x_test"], _labels(arrays["y_test"], "y_test", path)

    def get_data(self) -> tuple[Pair, Pair]:
        """Give ``(x_train, y_train), (x_test, y_test)``."""
        return self._train, self._test

    def get_train_counts(self) -> int:
        """Training samples in the file."""
        return len(self._train[0])


def _images(x: np.ndarray, key: str, path: str) -> np.ndarray:
    if x.shape[:1] != (0,) and x.shape[1:] not in IMAGES:
        needed = " or ".join("×".join(map(str, ("N", *shape))) for shape in IMAGES)
        raise DataError(path, f"{key} of shape {list(x.shape)}", needed)
    with np.errstate(over="ignore"):  # what becomes infinite is refused next
        return x.astype(np.float32).reshape(len(x), 1, 28, 28)


def _highest(x: np.ndarray, path: str) -> float:
    if not len(x):
        return 0.0
    if not (x.min() >= 0 and x.max() <= 255):  # NaN fails both
        needed = "pixels within 0..1 or within 0..255"
        raise DataError(path, "pixels below 0, above 255 or not finite", needed)
    return float(x.max())


def _labels(y: np.ndarray, key: str, path: str) -> np.ndarray:
    needed = f"whole numbers within 0..{N_LABELS - 1}, one per image"
    if y.ndim != 1 and y.shape[1:] != (1,):
        raise DataError(path, f"{key} of shape {list(y.shape)}", needed)
    y = y.reshape(-1)
    if y.dtype.kind == "f" and not np.array_equal(y, np.rint(y)):  # NaN differs too
        raise DataError(path, f"{key} with values between whole numbers", needed)
    if len(y) and not (y.min() >= 0 and y.max() < N_LABELS):
        raise DataError(path, f"{key} within {y.min():g}..{y.max():g}", needed)
    return y.astype(np.int64)
