"""Accumulators: the ways in which fusion rules combine updates added one at a time."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from fedray.errors import TooFewUpdates
from fedray.messages import Update
from fedray.weights import RunningMean, Weights


class Mean:
    """Weighted mean of the updates' weights, in the memory of one model.

    weight_by : the count of an update that weights it.
    rule : name of the fusion rule, for the error where there is no update.
    """

    def __init__(self, weight_by: Literal["n_samples", "n_parties"], rule: str):
        self.weight_by, self.rule = weight_by, rule
        self._mean = RunningMean()
        self._n_samples = self._n_parties = 0

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Move the mean towards this update; `scale` multiplies its weight."""
        self._mean.add(update.weights, getattr(update, self.weight_by) * scale)
        self._n_samples += update.n_samples
        self._n_parties += update.n_parties

    def result(self) -> Update:
        """The mean, which stands for all samples and parties behind it."""
        if not self._n_parties:
            raise TooFewUpdates(self.rule, 0, 1)
        return Update(self._mean.mean, self._n_samples, self._n_parties)


class Sum:
    """Sum of the updates' arrays, tensor by tensor, in the memory of one model."""

    def __init__(self, rule: str):
        self.rule = rule
        self._total: Weights = {}
        self._n_samples = self._n_parties = 0

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Add an update's arrays, `scale` times."""
        is_first = not self._total
        for name, array in update.weights.items():
            term = array if scale == 1.0 else np.asarray(array * scale, array.dtype)
            if is_first:
                self._total[name] = term.copy() if term is array else term
            else:
                self._total[name] += term
        self._n_samples += update.n_samples
        self._n_parties += update.n_parties

    def result(self) -> Update:
        """The sums, and of how many samples and parties they are."""
        if not self._n_parties:
            raise TooFewUpdates(self.rule, 0, 1)
        return Update(self._total, self._n_samples, self._n_parties)


class AllUpdates:
    """Keeps every update, for rules that must see all of them at once.

    Their arrays are neither copied nor changed: views of shared memory stay views.

    fuse : makes one update of all, in the order in which they were added.
    """

    def __init__(self, fuse: Callable[[list[Update]], Update]):
        self._fuse = fuse
        self._updates: list[Update] = []

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Keep one more; a rule that must see everyone knows no weights."""
        if scale != 1.0:
            raise ValueError("a rule that needs all updates at once cannot scale one")
        self._updates.append(update)

    def result(self) -> Update:
        """What `fuse` makes of them; raises what it raises."""
        return self._fuse(self._updates)


class SingleUpdate:
    """The first update as it is, for rules of which only one is expected."""

    def __init__(self, rule: str):
        self.rule = rule
        self._first: Update | None = None

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Keep the first; of one update alone the weight does not matter."""
        if self._first is None:
            self._first = update

    def result(self) -> Update:
        """The first update."""
        if self._first is None:
            raise TooFewUpdates(self.rule, 0, 1)
        return self._first
