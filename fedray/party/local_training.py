"""Local training over several rounds: parties keep their own weights between fusions.

Used by adaptive fusion and best_model, which decide from reports whether weights move.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from fedray import fusion
from fedray.fusion import FusionRule
from fedray.messages import Drift, Rejection, Report, Update
from fedray.party.loading import LocalData
from fedray.party.updates import TrainedStacks, UpdateBuilder
from fedray.weights import Schema, Weights, mean_of_stack, quantize, row, sketch

TOO_FAR = Rejection("other", "drift is too far for a float")


class LocalState:
    """Weights of some of an actor's parties since the last fusion; lost with the actor.

    since : the first round after the last fusion.
    round : the last round that these parties have trained.
    """

    report: Report  # of that round

    def __init__(self, since: int, parties: np.ndarray):
        self.since, self.parties, self.round = since, parties, since - 1
        self.weights: Weights = {}  # (parties, *shape)
        self.slices: list[slice] = []  # trained, and combined, together

    def matches(self, since: int, parties: np.ndarray) -> bool:
        """Is this the state of the same parties since the same fusion?"""
        return self.since == since and np.array_equal(self.parties, parties)

    def overlaps(self, parties: np.ndarray) -> bool:
        """Is one of `parties` among these?"""
        return bool(np.isin(parties, self.parties).any())

    def start(self, i: int) -> Weights | None:
        """Weights that the i-th party trains from; None: those of the last fusion."""
        return row(self.weights, i) if self.weights else None

    def update_of(self, party: int) -> Update:
        """One party's update, of views."""
        i = int(np.searchsorted(self.parties, party))
        return Update(row(self.weights, i), int(self.report.n_samples[i]))

    def store(self, report: Report, stacks: TrainedStacks) -> None:
        """Copy newly trained weights over those that they were trained from."""
        self.slices = []
        for which, stack in stacks:
            self.slices.append(which)
            copy_rows(self.weights, which, stack, len(self.parties))
        self.report, self.round = report, report.round

    def stacks(self) -> Iterator[tuple[slice, Weights]]:
        """The weights in the stacks in which they were trained; views."""
        for which in self.slices:
            yield which, {name: array[which] for name, array in self.weights.items()}


def copy_rows(weights: Weights, which: slice, stack: Weights, n_parties: int) -> None:
    """Copy newly trained weights over those that they were trained from.

    weights : (n_parties, *shape), empty before the first.
    """
    for name, array in stack.items():
        if which.start == 0 and name not in weights:
            weights[name] = np.empty((n_parties, *array.shape[1:]), array.dtype)
        weights[name][which] = array


def decision_report(
    local: LocalState, weights: Weights, data: LocalData, builder: UpdateBuilder
) -> Report:
    """The report with what the aggregator decides by: drift, or own scores.

    weights : those of the last fusion.
    """
    plan, config = builder.plan, builder.config
    refused = find_rejections(local, builder.sent_schema)
    if config.aggregation == "adaptive":
        names = plan.blueprint.shared_parameters
        drift = measure_drift(local, weights, names, builder.rule, config.seed)
        return replace(local.report, refused=refused, drifted=drift)
    scores = score_locally(local, data, local.parties - plan.parties.start)
    return replace(local.report, refused=refused, scores=scores)


def measure_drift(
    local: LocalState,
    base: Weights,
    names: Collection[str],
    rule: FusionRule,
    seed: int,
) -> Drift:
    """Distance and direction of all finite parties from the last fusion's weights.

    Parameters
    ----------
    base : the weights of the last fusion.
    names : the tensors that count.
    """
    report = local.report
    share, squares = 0.0, 0.0
    total: np.ndarray = np.zeros(1, np.float32)
    for which, stack in local.stacks():
        is_finite = np.isfinite(report.drift[which])
        if not is_finite.any():
            continue
        rows = slice(None) if is_finite.all() else is_finite
        shares = rule.shares(report.n_samples[which][is_finite])
        mean = mean_of_stack({name: stack[name][rows] for name in names}, shares)
        share += float(shares.sum())
        squares += float(shares @ report.drift[which][is_finite] ** 2)
        total = total + np.float32(shares.sum()) * sketch(mean, base, names, seed)
    return Drift(share, squares, *quantize(total))


def find_rejections(local: LocalState, needed: Schema) -> dict[int, Rejection]:
    """Places of parties whose weights are not finite, and which tensor is not."""
    rejections = {}
    for i in np.flatnonzero(~np.isfinite(local.report.drift)).tolist():
        update = Update(row(local.weights, i), 1)
        rejection = fusion.rejection_reason(update, needed)
        rejections[int(local.parties[i])] = rejection or TOO_FAR
    return rejections


def score_locally(
    local: LocalState, local_data: LocalData, own: np.ndarray
) -> np.ndarray:
    """Evaluate each party's weights on its own test samples.

    Parameters
    ----------
    own : (K,) places of these parties within the actor's.

    Returns
    -------
    (K, 3): test samples, loss, accuracy; NaN for none.
    """
    scores = np.full((len(own), 3), np.nan)
    for i in range(len(own)):
        measured = local_data.score(row(local.weights, i), parties=own[i : i + 1])
        if party := measured.by_party:
            means = party.mean_losses()[0], party.accuracies()[0]
            scores[i] = measured.n_samples, *means
    return scores


def sketch_updates(
    stacks: TrainedStacks, base: Weights, names: Collection[str], seed: int
) -> np.ndarray:
    """Sketch each party's difference from `base`: (parties, 2048)."""
    return np.array(
        [
            sketch(row(stack, i), base, names, seed)
            for which, stack in stacks
            for i in range(which.stop - which.start)
        ]
    )
