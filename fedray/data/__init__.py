"""Data handlers: how a party reads its own data, and how one data set is cut up."""

from fedray.config import unknown
from fedray.data.base import Handler, Samples, read_npz, samples_of
from fedray.data.custom import HandlerSource, is_custom, make_custom, read_custom
from fedray.data.mnist import MnistPytorch
from fedray.data.partition import cut, labels_of, share, share_tests
from fedray.errors import ConfigError

__all__ = [
    "HANDLERS",
    "Handler",
    "HandlerSource",
    "MnistPytorch",
    "Samples",
    "cut",
    "labels_of",
    "load",
    "named",
    "problems",
    "read_npz",
    "samples_of",
    "share",
    "share_tests",
]

HANDLERS = {"mnist_pytorch": MnistPytorch}


def problems(data_handler: str) -> list[str]:
    """Say what is wrong with a config's data_handler; no code of it is run."""
    if is_custom(data_handler):
        return read_custom(data_handler)[1]
    if data_handler not in HANDLERS:
        return [unknown("data_handler", data_handler, HANDLERS)]
    return []


def named(data_handler: str) -> HandlerSource:
    """Find a handler by name or ``file.py:ClassName``, ready to travel to parties.

    Raises
    ------
    ConfigError
        If it does not exist or cannot be used.
    """
    code, found = None, []
    if is_custom(data_handler):
        code, found = read_custom(data_handler)
    else:
        found = problems(data_handler)
    if found:
        raise ConfigError(found)
    return HandlerSource(data_handler, code)


def load(source: HandlerSource, path: str) -> Samples:
    """Make the handler where the data is, and give its samples, checked.

    Raises
    ------
    DataError
        If the samples cannot be used. What a custom class raises is left as it is.
    """
    if source.code is not None:
        return samples_of(make_custom(source, path), path)
    if source.name not in HANDLERS:
        raise ConfigError([unknown("data_handler", source.name, HANDLERS)])
    return samples_of(HANDLERS[source.name](path), path)
