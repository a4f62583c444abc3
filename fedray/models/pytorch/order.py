"""Which samples every party of a stack takes at each of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedray.models.base import Part


@dataclass(frozen=True)
class Plan:
    """Which samples each party of a stack takes in each of its steps.

    The parties stand in the order of their sizes, largest first: those that still train
    are the first ones of every array, and those that are done fall off its end.

    slots : (S,) where every part that was handed in stands.
    places : (T, S, B) in x and y; a short batch is filled up with its last sample.
    counts : (T, S) real samples of a batch; 0 once a party is done.
    shares : (T, S) those of a party's last pass over its samples, elsewhere 0.
    """

    slots: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    shares: np.ndarray


def planned(parts: Sequence[Part], epochs: int, batch_size: int, masked: bool) -> Plan:
    """Draw every party's order of samples from its own seed, like training alone.

    Parameters
    ----------
    masked : bool
        Whether masks are drawn for the samples of a batch. If not, their order inside
        it changes nothing but rounding, and parties of one batch need no order.
    """
    sizes = np.array([len(part.rows) for part in parts])
    standing = np.argsort(-sizes, kind="stable")
    sizes = sizes[standing]
    passes = np.maximum(1, -(-sizes // batch_size))  # steps of one pass
    step = np.arange(epochs * passes[0])[:, None]
    counts = np.minimum(sizes - step % passes * batch_size, batch_size)
    counts[step >= epochs * passes] = 0
    shares = np.where(step >= (epochs - 1) * passes, counts / sizes, 0)
    width = min(batch_size, int(sizes[0]))
    drawn = np.empty((len(parts), epochs, int(passes[0]) * width), np.int64)
    for own, part in zip(drawn, standing.tolist(), strict=True):
        rows, seed = parts[part].rows, parts[part].seed
        if masked or len(rows) > batch_size:
            _draw(own, rows, seed)
        else:  # seeding takes longer than a small model's step
            own[:, : len(rows)] = rows
        own[:, len(rows) :] = own[:, len(rows) - 1 : len(rows)]
    batches = drawn.reshape(len(parts), epochs, -1, width)
    number, within = np.divmod(step, passes)
    own = np.arange(len(parts))
    places = batches[own, np.minimum(number, epochs - 1), within]
    return Plan(np.argsort(standing), places, counts, shares)


def _draw(orders: np.ndarray, rows: np.ndarray, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for order in orders:
        order[: len(rows)] = rows[draw.permutation(len(rows))]
