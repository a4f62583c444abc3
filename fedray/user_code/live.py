"""Classes and functions that a Python caller gives as they are, not by a file's name.

A config then has ``in memory/3f2a9c41/Net`` in place of ``file.py:Net``: the digest is
of the code's text. The objects themselves are known in this process alone.
"""

import pickle
from dataclasses import dataclass, field
from typing import Any

from fedray.errors import ConfigError
from fedray.user_code import reading
from fedray.user_code.reading import Source

IN_MEMORY = "in memory"  # in a config, in place of a path
LOST = (
    "was given in memory to fedray.run in Python, and is not in this process: make "
    "that call again there, with resume=True to go on"
)


@dataclass(frozen=True)
class LiveObject(Source):
    """A class or function of this process, pickled by value where it needs to be.

    file : as the config names it, without the object's name.
    text : of the code that it is made of; says whether it has changed.
    """

    pickled: bytes = b""

    @property
    def spec(self) -> str:
        """How a config names it."""
        return f"{self.file}/{self.attribute}"

    def __str__(self) -> str:
        return f"{self.attribute} ({IN_MEMORY})"

    @property
    def n_bytes(self) -> int:
        """Bytes that travel."""
        return len(self.pickled)

    def load(self) -> Any:
        """The object; unpickled, so only from a caller who may run code here."""
        return pickle.loads(self.pickled)


@dataclass(frozen=True)
class HeldObject(LiveObject):
    """A class or function that stays in this process, to load a finished run with."""

    held: Any = field(default=None, compare=False)

    def load(self) -> Any:
        """The object itself."""
        return self.held


_OBJECTS: dict[str, LiveObject] = {}  # of this process, by spec


def is_in_memory(spec: str) -> bool:
    """Whether a setting names something that a Python caller has given as it is."""
    return spec == IN_MEMORY or spec.startswith(f"{IN_MEMORY}/")


def remember(live: LiveObject) -> str:
    """Let this process find the object again; how a config names it."""
    _OBJECTS[live.spec] = live
    return live.spec


def hold(thing: Any, name: str) -> str:
    """Let this process find a class or function that travels nowhere; its setting."""
    return remember(HeldObject(f"{IN_MEMORY}/{id(thing):x}", name, "", held=thing))


def is_lost(spec: str) -> bool:
    """Whether a setting names what another process was given."""
    return spec.startswith(f"{IN_MEMORY}/") and spec not in _OBJECTS


def is_source(spec: str) -> bool:
    """Whether a setting names code of the user's own, and is not a built-in name."""
    return spec.startswith(f"{IN_MEMORY}/") or reading.is_source(spec)


def read(spec: str, what: str) -> Source:
    """The code that a setting names, without running it.

    what : the config key.

    Raises
    ------
    ConfigError
        As `reading.read`; or if this process was not given the object.
    """
    if not spec.startswith(f"{IN_MEMORY}/"):
        return reading.read(spec, what)
    if spec not in _OBJECTS:
        raise ConfigError([f"{what} {spec.rpartition('/')[2]} {LOST}"])
    return _OBJECTS[spec]
