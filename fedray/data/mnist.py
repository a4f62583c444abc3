"""Handwritten digits: the handlers `mnist_pytorch` and `mnist_keras`."""

from fedray.data.base import Pair
from fedray.data.images import Images

DIGITS = ((28, 28), (1, 28, 28), (28, 28, 1), (784,))  # shapes of one digit


class MnistPytorch:
    """Images as float32 N×1×28×28 within 0 and 1, labels as int64 N.

    Parameters
    ----------
    path : str
        An npz with x_train, y_train, x_test, y_test, or "mnist" for the shipped one.
        Images within 0..255 are divided by 255; a file whose highest pixel is at
        most 1 is taken as scaled already. Labels may be one-hot rows.

    Raises
    ------
    DataError
        If the file cannot be read, or does not hold digits.
    """

    def __init__(self, path: str):
        self._pairs = Images(path, DIGITS, (1, 28, 28)).pairs()

    def get_data(self) -> tuple[Pair, Pair]:
        """Give ``(x_train, y_train), (x_test, y_test)``."""
        return self._pairs

    def get_train_counts(self) -> int:
        """Training samples in the file."""
        return len(self._pairs[0][0])


class MnistKeras:
    """Images as float32 N×28×28×1 within 0 and 1, labels as one-hot float32 N×10.

    Parameters
    ----------
    path : str
        As of `MnistPytorch`: one file serves both.

    Raises
    ------
    DataError
        If the file cannot be read, or does not hold digits.
    """

    def __init__(self, path: str):
        self._pairs = Images(path, DIGITS, (28, 28, 1)).one_hot()

    def get_data(self) -> tuple[Pair, Pair]:
        """Give ``(x_train, y_train), (x_test, y_test)``."""
        return self._pairs

    def get_train_counts(self) -> int:
        """Training samples in the file."""
        return len(self._pairs[0][0])
