"""CIFAR-10 data handler `cifar10_keras`: colour photos and labels from an npz."""

from fedray.data.images import ImageHandler


class Cifar10Keras(ImageHandler):
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

    file_shapes = ((32, 32, 3), (3, 32, 32), (3072,))
    shape = (32, 32, 3)
    is_one_hot = True
