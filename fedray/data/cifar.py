"""Small colour photos: the handler `cifar10_keras`."""

from fedray.data.base import Pair
from fedray.data.images import Images

PHOTOS = ((32, 32, 3), (3, 32, 32))  # shapes of one photo
RAW = (3072,)  # a row of CIFAR-10's own files: three planes of 32 × 32


class Cifar10Keras:
    """Photos as float32 N×32×32×3 within 0 and 1, labels as one-hot float32 N×10.

    Parameters
    ----------
    path : str
        An npz with x_train, y_train, x_test, y_test. Photos N×32×32×3, N×3×32×32, or
        rows N×3072 of planes as in CIFAR-10's own files; within 0..255 they are
        divided by 255, a file whose highest pixel is at most 1 is taken as scaled
        already. Labels are whole numbers N or N×1, or one-hot rows N×10.

    Raises
    ------
    DataError
        If the file cannot be read, or does not hold such photos.
    """

    def __init__(self, path: str):
        self._pairs = Images(path, (*PHOTOS, RAW), (32, 32, 3)).one_hot()

    def get_data(self) -> tuple[Pair, Pair]:
        """Give ``(x_train, y_train), (x_test, y_test)``."""
        return self._pairs

    def get_train_counts(self) -> int:
        """Training samples in the file."""
        return len(self._pairs[0][0])
