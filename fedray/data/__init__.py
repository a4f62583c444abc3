"""Data handlers by name, and the partition of one data set into parties."""

from collections.abc import Callable

from fedray.config import DOCUMENT_MODELS, describe_unknown
from fedray.data.base import Handler, Samples, load_samples, read_npz, resolve_in_root
from fedray.data.custom import make_custom, read_custom
from fedray.data.images import Cifar10Keras, MnistKeras, MnistPytorch
from fedray.data.newsgroups import Newsgroups
from fedray.data.partition import (
    partition_by,
    partition_samples,
    partition_test,
    partition_train,
    to_labels,
)
from fedray.data.text import Document, Documents, tokenize
from fedray.data.wikipedia import Wikipedia
from fedray.errors import ConfigError
from fedray.user_code import Source, is_source

__all__ = [
    "HANDLERS",
    "TEXT_HANDLERS",
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
    "load",
    "load_samples",
    "named",
    "partition_by",
    "partition_samples",
    "partition_test",
    "partition_train",
    "problems",
    "read_npz",
    "resolve_in_root",
    "to_labels",
    "tokenize",
]

# for model_type: doc2vec
TEXT_HANDLERS: dict[str, Callable[[str], Handler]] = {
    "20_newsgroup": Newsgroups,
    "wikipedia": Wikipedia,
}
HANDLERS: dict[str, Callable[[str], Handler]] = {
    "cifar10_keras": Cifar10Keras,
    "mnist_keras": MnistKeras,
    "mnist_pytorch": MnistPytorch,
    **TEXT_HANDLERS,
}

HandlerSource = str | Source  # a name of HANDLERS, or code that travels to the party


def problems(data_handler: str, model_type: str) -> list[str]:
    """What is wrong with a config's data_handler; no code of it is run."""
    try:
        named(data_handler)
    except ConfigError as error:
        return error.problems
    is_text = model_type in DOCUMENT_MODELS
    if data_handler in HANDLERS and is_text != (data_handler in TEXT_HANDLERS):
        others = set(HANDLERS) - set(TEXT_HANDLERS)
        fitting = sorted(TEXT_HANDLERS if is_text else others)
        advice = f"take one of {fitting} or your own file.py:ClassName"
        return [f"data_handler {data_handler} is not for {model_type}; {advice}"]
    return []


def named(data_handler: str) -> HandlerSource:
    """Find a handler by name or ``file.py:ClassName``; what parties are sent of it.

    Raises
    ------
    ConfigError
        If it does not exist or cannot be used.
    """
    if is_source(data_handler):
        return read_custom(data_handler)
    _find(data_handler)
    return data_handler


def load(handler: HandlerSource, path: str) -> Samples | Documents:
    """Make the handler and load its samples, checked; run where the data is.

    Raises
    ------
    DataError
        If the samples cannot be used. What a custom class raises is not caught.
    """
    if isinstance(handler, Source):
        return load_samples(make_custom(handler, path), path)
    return load_samples(_find(handler)(path), path)


def _find(name: str) -> Callable[[str], Handler]:
    if name not in HANDLERS:
        raise ConfigError([describe_unknown("data_handler", name, HANDLERS)])
    return HANDLERS[name]
