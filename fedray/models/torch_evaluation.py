"""Measuring of models on torch: several parties' samples in one pass of batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from fedray.messages import PartyScores, Scores
from fedray.models.loss_domains import AnswerCounts
from fedray.models.torch_samples import TorchSamples
from fedray.nested import Nested, length

Sums = tuple[np.ndarray, np.ndarray]  # of losses, and of the weights behind them


class BatchScores(NamedTuple):
    """What a model gives for one batch.

    loss : the mean.
    answers : None for targets that are values.
    split : takes the places (R,) at which the batch is cut into parts, from 0, and sums
        the losses of each.
    measure : adds the model's answers to sums for metrics.
    """

    loss: torch.Tensor
    answers: AnswerCounts | None
    split: Callable[[np.ndarray], Sums]
    measure: Callable[[Any], None]


class Batches(NamedTuple):
    """The samples of an evaluation, and whose they are.

    sizes : of the batches, samples; together as many as there are.
    starts : as `ScoredModel.evaluate` has them.
    sums : a `fedray.models.scoring.MetricSums`, where metrics are asked for.
    """

    samples: TorchSamples
    sizes: list[int]
    starts: np.ndarray | None = None
    sums: Any = None

    def lengths(self) -> np.ndarray:
        """(R,) samples of each party."""
        n_samples = len(self.samples)
        return np.array([n_samples]) if self.starts is None else np.diff(self.starts)


def evaluate_batches(
    batches: Batches,
    score: Callable[[Nested, Nested], BatchScores],
    weigh: Callable[[Nested], torch.Tensor | None] = lambda y: None,
) -> Scores:
    """Measure batch by batch, all samples together and each party's.

    Parameters
    ----------
    score : takes inputs and targets of a batch.
    weigh : as `BatchTrainable` has it.
    """
    lengths: list[int] = []
    scores = _evaluate(batches, score, weigh, lengths)
    if batches.starts is not None and _are_changed(lengths, scores.n_samples):
        by_party = _measure_each(batches, batches.starts, score, weigh)
        return scores._replace(by_party=by_party)
    return scores


def _evaluate(
    batches: Batches,
    score: Callable[[Nested, Nested], BatchScores],
    weigh: Callable[[Nested], torch.Tensor | None],
    lengths: list[int],
) -> Scores:
    """Measure batch by batch, and fill in how many samples each batch has."""
    by_party = PartyScores.zeros(batches.lengths())
    row_of = np.repeat(by_party.parties, by_party.n_samples)
    loss, weights, n_right, n_answers, is_counting = 0.0, 0.0, 0, 0, False
    with torch.no_grad():
        for x, y in batches.samples.batches(batches.sizes):
            rows = _next_rows(row_of, sum(lengths), length(x))
            lengths.append(length(x))
            own = weigh(y)
            is_counting |= own is not None
            weight = float(length(x) if own is None else own)
            if not weight:  # no label counts
                continue
            scores = score(x, y)
            batch_loss = float(scores.loss) * weight
            loss, weights = loss + batch_loss, weights + weight
            _add_losses(by_party, rows, scores, (batch_loss, weight))
            right, n = _add_answers(by_party, rows, scores.answers)
            n_right, n_answers = n_right + right, n_answers + n
            if batches.sums is not None:
                scores.measure(batches.sums)
    accuracy = n_right / n_answers if n_answers else None
    in_means = (weights, float(n_answers)) if is_counting else None
    states = {} if batches.sums is None else batches.sums.states()
    mean = loss / (weights or 1.0)
    return Scores(len(row_of), mean, accuracy, in_means, {}, by_party, states)


def _are_changed(lengths: list[int], n_items: int) -> bool:
    """Whether a collate_fn makes more or fewer samples of a batch than its items.

    Then nobody can say whose the samples of a batch are.
    """
    return sum(lengths) != n_items or len({*lengths[:-1]}) > 1


def _measure_each(
    batches: Batches,
    starts: np.ndarray,
    score: Callable[[Nested, Nested], BatchScores],
    weigh: Callable[[Nested], torch.Tensor | None],
) -> PartyScores:
    """Measure each party's samples in batches of its own."""
    table = PartyScores.zeros(batches.lengths())
    for row in np.flatnonzero(table.n_samples).tolist():
        own = batches.samples.take(slice(*starts[row : row + 2]))
        scores = _evaluate(Batches(own, batches.sizes), score, weigh, [])
        if scores.by_party is not None:
            for column, value in zip(table[2:], scores.by_party[2:], strict=True):
                column[row] = value[0]
    return table


def _next_rows(row_of: np.ndarray, n_done: int, n: int) -> np.ndarray:
    """Whose the next samples are; what a collate_fn adds to its items the last's."""
    rows = row_of[n_done : n_done + n]
    return np.append(rows, np.repeat(row_of[-1:], n - len(rows)))


def _add_losses(
    by_party: PartyScores,
    rows: np.ndarray,
    scores: BatchScores,
    whole: tuple[float, float],
) -> None:
    """Add a batch's losses to the rows of its parties."""
    first, last = rows[0], rows[-1]
    if first == last:
        sums, weights = whole
        by_party.loss[first] += sums
        by_party.loss_weight[first] += weights
        return
    cuts = np.flatnonzero(np.diff(rows, prepend=-1))
    losses, each = scores.split(cuts)
    by_party.loss[rows[cuts]] += losses
    by_party.loss_weight[rows[cuts]] += each


def _add_answers(
    by_party: PartyScores, rows: np.ndarray, answers: AnswerCounts | None
) -> tuple[int, int]:
    """Add a batch's answers to the rows of its parties; right ones, and all of them."""
    if answers is None:
        return 0, 0
    right, n = (one.cpu().numpy() for one in answers)
    cuts = np.flatnonzero(np.diff(rows, prepend=-1))
    by_party.right[rows[cuts]] += np.add.reduceat(right, cuts)
    by_party.answers[rows[cuts]] += np.add.reduceat(n, cuts)
    return int(right.sum()), int(n.sum())


def sum_each(
    losses: torch.Tensor, weights: torch.Tensor | None, n_samples: int, cuts: np.ndarray
) -> Sums:
    """Cut a batch into parts, by losses of single samples.

    losses : (B * k,) or (B, ...), those of a sample in a row.
    weights : of these, where labels count; None: each sample counts 1.
    """
    each = losses.double().reshape(n_samples, -1)
    if weights is None:
        sums, counts = each.mean(1), torch.ones(n_samples)
    else:
        sums, counts = each.sum(1), weights.double().reshape(n_samples, -1).sum(1)
    split = (np.add.reduceat(one.cpu().numpy(), cuts) for one in (sums, counts))
    return next(split), next(split)


def sum_parts(
    mean: Callable[[slice], torch.Tensor],
    weigh: Callable[[slice], torch.Tensor | None],
    n_samples: int,
    cuts: np.ndarray,
) -> Sums:
    """Cut a batch into parts, by a loss that only means of several samples have.

    mean, weigh : of the samples of a part.
    """
    sums, weights = np.zeros((2, len(cuts)))
    ends = [*cuts[1:].tolist(), n_samples]
    for i, (start, stop) in enumerate(zip(cuts.tolist(), ends, strict=True)):
        own = weigh(slice(start, stop))
        weights[i] = float(stop - start if own is None else own)
        if weights[i]:
            sums[i] = float(mean(slice(start, stop))) * weights[i]
    return sums, weights
