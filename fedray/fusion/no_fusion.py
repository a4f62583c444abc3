"""No fusion: each party goes on from its own model, and the models stay apart."""

from collections.abc import Iterator

from fedray.errors import TooFewUpdates
from fedray.fusion.base import Fusion
from fedray.messages import Update


class Alone(Fusion):
    """A round of one party: what it trained is what it goes on from."""

    associative = False  # there is nothing to combine with

    def combine(self, updates: Iterator[Update]) -> Update:
        """The party's own update, which is all that comes."""
        for update in updates:
            return update
        raise TooFewUpdates("ensemble", 0, 1)
