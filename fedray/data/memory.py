"""Data that a Python caller gives as it is, not by a path: for simulations.

In a config it stands as ``in memory/NAME``. The caller's process hands it to the actors
that need it through Ray's object store; it is never written into a file.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray import nested
from fedray.errors import ConfigError, DataError
from fedray.user_code import IN_MEMORY, LOST

PARTITION = ".data set"  # a source that was given; no party has a dot first
Fetch = Callable[[], Any]  # gives (train, test), each of what a handler may return


@dataclass
class InMemory:
    """Data handler of parties whose data was given as it is.

    parts : by name, how to get train and test data; an actor's own only, there.
    """

    parts: dict[str, Fetch]

    def only(self, path: str) -> "InMemory":
        """The same handler with the data of one path: what travels to an actor."""
        name = name_of(path)
        return InMemory({name: self.parts[name]} if name in self.parts else {})

    def open(self, path: str) -> "OpenMemory":
        """A handler of the data of one path.

        Raises
        ------
        DataError
            If it was not given.
        """
        if name_of(path) not in self.parts:
            raise DataError(path, "no data of this name", "data given in this call")
        return OpenMemory(self.parts[name_of(path)]())


@dataclass(frozen=True)
class AsGiven:
    """Data of any form, for a model class that takes it as it is."""

    value: Any


@dataclass(frozen=True)
class WithColumn:
    """Train and test data, with the values of the column that parties go by."""

    data: Any
    train: np.ndarray
    test: np.ndarray


@dataclass
class OpenMemory:
    """The handler of one party's data, where it is used."""

    data: Any

    def get_data(self) -> Any:
        """Return train and test data; no samples where there are none to test."""
        if isinstance(self.data, AsGiven):
            return self.data.value
        is_by_column = isinstance(self.data, WithColumn)
        train, test = self.data.data if is_by_column else self.data
        if test is None and isinstance(train, tuple):
            test = tuple(nested.take(part, slice(0)) for part in train)
        return train, test

    def get_column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of the column that a partition's parties go by."""
        if not isinstance(self.data, WithColumn):
            raise DataError(PARTITION, f"no column {name!r}", "a DataFrame with it")
        return self.data.train, self.data.test


def path_of(name: str) -> str:
    """How a config names the data that was given under a name."""
    return f"{IN_MEMORY}/{name}"


def name_of(path: str) -> str:
    """The name under which the data of a path was given."""
    return path.removeprefix(f"{IN_MEMORY}/")


_GIVEN: ContextVar[InMemory | None] = ContextVar("data given in memory", default=None)


@contextlib.contextmanager
def in_memory(handler: InMemory) -> Iterator[InMemory]:
    """Let configs that are read meanwhile name the data of this handler."""
    token = _GIVEN.set(handler)
    try:
        yield handler
    finally:
        _GIVEN.reset(token)


def data_of_call() -> InMemory:
    """The data that the call under way was given.

    Raises
    ------
    ConfigError
        If it was given none: the config is of such a call, the data was not kept.
    """
    handler = _GIVEN.get()
    if handler is None or not handler.parts:
        raise ConfigError([f"data of this config {LOST}"])
    return handler
