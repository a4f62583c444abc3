"""MNIST data handlers `mnist_pytorch` and `mnist_keras`: labelled digits of an npz."""

from fedray.data.images import ImageHandler

DIGIT_SHAPES = ((28, 28), (1, 28, 28), (28, 28, 1), (784,))


class MnistPytorch(ImageHandler):
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

    file_shapes = DIGIT_SHAPES
    shape = (1, 28, 28)


class MnistKeras(ImageHandler):
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

    file_shapes = DIGIT_SHAPES
    shape = (28, 28, 1)
    is_one_hot = True
