"""How a party reads its data. It runs where the data is, and nowhere else."""

from importlib.resources import files

import numpy as np

SHIPPED = files("fedray.data") / "mnist_5000.npz"


class Digits:
    """Images as float32 N×1×28×28 from 0 to 1, labels as int64 N."""

    def __init__(self, path):
        # path: `data` of a party in config.yaml, or the partition's `source`
        self.path = SHIPPED if path == "mnist" else path

    def get_data(self):
        """Give (x_train, y_train), (x_test, y_test)."""
        with np.load(self.path) as arrays:
            train = prepare(arrays["x_train"]), arrays["y_train"].astype(np.int64)
            test = prepare(arrays["x_test"]), arrays["y_test"].astype(np.int64)
        return train, test

    def get_train_counts(self):
        """Number of training samples."""
        return len(self.get_data()[0][0])


def prepare(images):
    """Scale pixels of 0..255 to 0..1 and add the channel that convolutions expect."""
    return images.reshape(len(images), 1, 28, 28).astype(np.float32) / 255
