"""Data handlers: how a party reads its own data, and how one data set is cut up."""

from fedray.config import unknown
from fedray.data.base import Handler, Samples, read_npz, samples_of
from fedray.data.cifar import Cifar10Keras
from fedray.data.custom import make_custom, read_custom
from fedray.data.data_root import inside
from fedray.data.mnist import MnistKeras, MnistPytorch
from fedray.data.newsgroups import Newsgroups
from fedray.data.partition import cut, labels_of, share, share_tests
from fedray.data.text import Document, Documents, words_of
from fedray.data.wikipedia import Wikipedia
from fedray.errors import ConfigError
from fedray.user_code import Source, is_source

__all__ = [
    "HANDLERS",
    "TEXT",
    "Cifar10Keras",
    "Document",
    "Documents",
    "Handler",
    "HandlerSource",
    "MnistKeras",
    "MnistPytorch",
    "Newsgroups",
    "Samples",
    "Wikipedia",
    "cut",
    "inside",
    "labels_of",
    "load",
    "named",
    "problems",
    "read_npz",
    "samples_of",
    "share",
    "share_tests",
    "words_of",
]

TEXT = {"20_newsgroup": Newsgroups, "wikipedia": Wikipedia}  # for model_type: doc2vec
HANDLERS = {
    "cifar10_keras": Cifar10Keras,
    "mnist_keras": MnistKeras,
    "mnist_pytorch": MnistPytorch,
    **TEXT,
}

HandlerSource = str | Source  # a name of HANDLERS, or code that travels to the party


def problems(data_handler: str, model_type: str) -> list[str]:
    """Say what is wrong with a config's data_handler; no code of it is run."""
    try:
        named(data_handler)
    except ConfigError as error:
        return error.problems
    is_text = model_type == "doc2vec"
    if data_handler in HANDLERS and is_text != (data_handler in TEXT):
        able = sorted(TEXT if is_text else set(HANDLERS) - set(TEXT))
        one = f"one of {able} or your own file.py:ClassName"
        return [f"data_handler {data_handler} is not for {model_type}; take {one}"]
    return []


def named(data_handler: str) -> HandlerSource:
    """Find a handler by name or ``file.py:ClassName``, ready to travel to parties.

    Raises
    ------
    ConfigError
        If it does not exist or cannot be used.
    """
    if is_source(data_handler):
        return read_custom(data_handler)
    if data_handler not in HANDLERS:
        raise ConfigError([unknown("data_handler", data_handler, HANDLERS)])
    return data_handler


def load(handler: HandlerSource, path: str) -> Samples | Documents:
    """Make the handler where the data is, and give its samples, checked.

    Raises
    ------
    DataError
        If the samples cannot be used. What a custom class raises is left as it is.
    """
    if isinstance(handler, Source):
        return samples_of(make_custom(handler, path), path)
    return samples_of(HANDLERS[named(handler)](path), path)
