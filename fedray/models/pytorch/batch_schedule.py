"""Which samples each party of a stack takes in each of its steps, and at which rate."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedray.config import RateFunction, RunConfig, rate_function
from fedray.models.base import PartySlice


@dataclass(frozen=True)
class BatchSchedule:
    """Which samples each party of a stack takes in each of its steps.

    The parties stand in the order of their sizes, largest first: those that still train
    are the first ones of every array, and those that are done fall off its end.

    positions : (S,) where every part that was handed in stands.
    places : (T, S, B) in x and y; a short batch is filled up with its last sample.
    counts : (T, S) real samples of a batch; 0 once a party is done.
    shares : (T, S) those of a party's last pass over its samples, elsewhere 0.
    """

    positions: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    shares: np.ndarray


def party_rates(
    parts: Sequence[PartySlice],
    config: RunConfig,
    counts: np.ndarray,
    in_order: np.ndarray,
) -> list[RateFunction]:
    """Each party's rates in the order of the stack; empty where they stay.

    counts : (T, S), as `BatchSchedule` has them.
    """
    if config.scheduler is None:
        return []
    rate_at = functools.cache(functools.partial(rate_function, config))
    n_steps = np.count_nonzero(counts, axis=0).tolist()
    return [
        rate_at(parts[i].round, n, parts[i].learning_rate)
        for i, n in zip(in_order.tolist(), n_steps, strict=True)
    ]


def schedule_batches(
    parts: Sequence[PartySlice], config: RunConfig, has_masks: bool
) -> BatchSchedule:
    """Draw every party's order of samples from its own seed, like training alone.

    Parameters
    ----------
    has_masks : bool
        Whether masks are drawn for the samples of a batch. If not, their order inside
        it changes nothing but rounding, and parties of one batch need no order.
    """
    epochs, batch_size = config.epochs, config.batch_size
    drop_last = config.drop_last
    sizes = np.array([len(part.rows) for part in parts])
    by_size = np.argsort(-sizes, kind="stable")
    sizes = sizes[by_size]
    # of one pass
    n_steps = sizes // batch_size if drop_last else -(-sizes // batch_size)
    if config.local_steps is not None:
        drawn = [parts[place] for place in by_size.tolist()]
        own = _schedule_steps(drawn, n_steps, config, has_masks)
        return replace(own, positions=np.argsort(by_size))
    step = np.arange(epochs * n_steps[0])[:, None]
    counts = np.minimum(sizes - step % n_steps * batch_size, batch_size)
    counts[step >= epochs * n_steps] = 0
    n_used = np.minimum(sizes, n_steps * batch_size)
    shares = np.where(step >= (epochs - 1) * n_steps, counts / n_used, 0)
    drawn = [parts[place] for place in by_size.tolist()]
    batches = _draw_batches(drawn, epochs, batch_size, has_masks)
    number, within = np.divmod(step, n_steps)
    number = np.minimum(number, epochs - 1)
    places = batches[np.arange(len(parts)), number, within]
    return BatchSchedule(np.argsort(by_size), places, counts, shares)


def _schedule_steps(
    parts: Sequence[PartySlice], n_pass: np.ndarray, config: RunConfig, has_masks: bool
) -> BatchSchedule:
    """As `schedule_batches`, of `local_steps` of parties whose largest comes first.

    n_pass : (S,) batches of one pass.
    """
    n_steps, size = config.local_steps or 1, config.batch_size
    width = min(size, len(parts[0].rows))
    places = np.empty((n_steps, len(parts), width), np.int64)
    counts = np.empty((n_steps, len(parts)), np.int64)
    for k, (part, n_own) in enumerate(zip(parts, n_pass.tolist(), strict=True)):
        rows, drawn = part.rows, np.random.default_rng(part.seed)
        is_drawn = has_masks or len(rows) > size
        for step in range(n_steps):
            if step % n_own == 0:
                order = rows[drawn.permutation(len(rows))] if is_drawn else rows
            own = order[step % n_own * size :][:size]
            counts[step, k] = len(own)
            places[step, k, : len(own)] = own
            places[step, k, len(own) :] = own[-1]
    shares = counts * (np.arange(n_steps)[:, None] >= n_steps - n_pass)
    return BatchSchedule(np.arange(len(parts)), places, counts, shares / shares.sum(0))


def _draw_batches(
    parts: Sequence[PartySlice], epochs: int, batch_size: int, has_masks: bool
) -> np.ndarray:
    """Places (S, epochs, batches, B) of each party's samples, the largest party first.

    A party's last batch, and batches that it has not, are filled with its last sample.
    """
    longest = len(parts[0].rows)
    width = min(batch_size, longest)
    orders = np.empty((len(parts), epochs, -(-longest // width) * width), np.int64)
    for own, part in zip(orders, parts, strict=True):
        rows = part.rows
        if has_masks or len(rows) > batch_size:
            draw = np.random.default_rng(part.seed)
            for order in own:
                order[: len(rows)] = rows[draw.permutation(len(rows))]
        else:  # seeding takes longer than a small model's step
            own[:, : len(rows)] = rows
        own[:, len(rows) :] = own[:, len(rows) - 1 : len(rows)]
    return orders.reshape(len(parts), epochs, -1, width)
