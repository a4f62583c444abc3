"""Trial of a group's training before round 1: one step for each kind of batch."""

import contextlib
import math
from collections.abc import Collection

import numpy as np

from fedray.config import length_problems
from fedray.errors import TrialFailed, format_count
from fedray.models import (
    BatchModel,
    CustomModel,
    FreezableModel,
    Model,
    RereadSamples,
)
from fedray.party.loading import GroupPlan, LocalData, party_slices
from fedray.weights import Weights, non_finite


def try_training(
    plan: GroupPlan,
    local_data: LocalData,
    weights: Weights,
    n_most: int | None = None,
    must_be_finite: bool = True,
) -> tuple[str, ...]:
    """Train the largest and the smallest last batch, and evaluate.

    Once for all parties of the group, however many they are. Returns the names of
    frozen tensors that training moved.

    Parameters
    ----------
    weights : that round 1 starts from.
    n_most : samples that a batch may have here, where time and memory are bounded.
    must_be_finite : whether the run cannot do without this party's update.

    Raises
    ------
    TrialFailed
        If a step fails, or a party has too few samples for one.
    """
    model = local_data.model
    if not isinstance(model, BatchModel):
        return ()
    source = f"party {plan.name}" if plan.trains else plan.name
    moved: tuple[str, ...] = ()
    if plan.trains:
        _require_precision(source, model)
        sizes = _trial_sizes(plan, local_data, model, n_most)
        losses = model.try_training(source, weights, local_data.train, sizes)
        if must_be_finite:
            _require_finite(losses, model.weights(), source)
        moved = _find_moved(model, weights, plan.blueprint.frozen)
    if len(local_data.test):
        model.try_evaluation(source, local_data.test)
    return moved


def repeat_training(plan: GroupPlan, local_data: LocalData, weights: Weights) -> str:
    """Train a class of the user's own twice, as in round 1, and undo it.

    Returns which tensors then differ, in words; empty where none does, and for models
    that fedray trains itself.
    """
    model = local_data.model
    if not isinstance(model, CustomModel) or not plan.trains:
        return ""
    first = np.array([plan.parties.start])
    (part,) = party_slices(plan, local_data, 1, first)
    with undo_trial(model, weights):
        return model.compare_trainings(weights, part, local_data.train)


def compare_passes(plan: GroupPlan, local_data: LocalData) -> str:
    """Read one pass of samples outside memory twice, as in round 1.

    Returns which samples are then others, in words; empty where none are.
    """
    model, differences = local_data.model, []
    if not isinstance(model, BatchModel):
        return ""
    first = np.array([plan.parties.start])
    (part,) = party_slices(plan, local_data, 1, first)
    passes = {
        "training samples": (local_data.train, part.seed, 0),
        "test samples": (local_data.test, plan.config.seed, None),
    }
    for name, (samples, seed, epoch) in passes.items():
        if epoch is not None and not plan.trains:
            continue
        if isinstance(samples, RereadSamples) and len(samples):
            sizes = model.batch_sizes(len(samples))
            place = samples.compare_passes(sizes, seed, epoch)
            if place is not None:
                differences.append(f"{name} from batch {place} on")
    return " and ".join(differences)


def _find_moved(
    model: Model, weights: Weights, frozen: Collection[str]
) -> tuple[str, ...]:
    """Those of frozen tensors that are not what they were before training."""
    if not frozen or not isinstance(model, FreezableModel):
        return ()
    changes, now = set(model.fixed.find_changes()), model.weights()
    for name in now.keys() & weights.keys() & set(frozen):
        if not np.array_equal(now[name], weights[name]):
            changes.add(name)
    return tuple(name for name in frozen if name in changes)


def undo_trial(
    model: Model, weights: Weights
) -> contextlib.AbstractContextManager[None]:
    """Afterwards the model holds `weights`, and all else is as before."""
    if isinstance(model, BatchModel):
        return model.undo(weights)
    return contextlib.nullcontext()


def _trial_sizes(
    plan: GroupPlan, local_data: LocalData, model: BatchModel, n_most: int | None
) -> list[int]:
    """Sizes of the largest and of the smallest last batch of all parties."""
    lengths, first = np.unique(np.diff(local_data.starts), return_index=True)
    passes = [model.batch_sizes(n) for n in lengths.tolist()]
    for n_samples, place in zip(lengths.tolist(), first.tolist(), strict=True):
        party = plan.config.party_name(plan.parties[place])
        _require_length(party, model, n_samples)
    smallest = plan.config.party_name(plan.parties[int(first[0])])
    _require_batches(smallest, int(lengths[0]), passes[0], model)
    kinds = [max(map(max, passes)), min(sizes[-1] for sizes in passes)]
    return [*dict.fromkeys(min(size, n_most or size) for size in kinds)]


def _require_precision(source: str, model: BatchModel) -> None:
    """Refuse float16 on a CPU."""
    if model.config.mixed_precision == "float16" and model.device == "cpu":
        raise TrialFailed(
            source,
            "training",
            "with mixed_precision: float16 on a CPU",
            "set mixed_precision: bfloat16 or none, or give this party a GPU",
        )


def _require_length(party: str, model: BatchModel, n_samples: int) -> None:
    """Refuse a scheduler that does not fit the steps that a party takes in the run."""
    if model.config.scheduler is None:
        return
    for problem in length_problems(model.config, model.count_steps(n_samples)):
        what = f"training on {format_count(n_samples, 'sample')}"
        remedy = "change it, rounds or epochs, or set scheduler_every: round"
        raise TrialFailed(f"party {party}", what, f"since {problem}", remedy)


def _require_batches(
    party: str, n_samples: int, sizes: list[int], model: BatchModel
) -> None:
    """Refuse a party whose samples do not make one batch."""
    batch_size = model.config.batch_size
    source, what = f"party {party}", f"training on {format_count(n_samples, 'sample')}"
    if not sizes:
        reason = (
            f"since drop_last leaves out what is less than batch_size: {batch_size}"
        )
        remedy = "lower batch_size, give more samples, or set drop_last: false"
        raise TrialFailed(source, what, reason, remedy)
    if n_samples == 1 and batch_size > 1 and model.takes_batch_statistics:
        reason = "since the model takes statistics of a batch (batch norm)"
        remedy = "give it two samples or more, or leave this party out"
        raise TrialFailed(source, what, reason, remedy)


def _require_finite(losses: list[float], stepped: Weights, source: str) -> None:
    """Refuse losses, and weights after the last step, that are not finite."""
    for loss in losses:
        if not math.isfinite(loss):
            raise TrialFailed(
                source,
                "a first training step",
                f"with a loss of {loss}",
                "look for a division by zero, a logarithm of 0 or a standard deviation "
                "of one sample in the model, and for samples that are not scaled",
            )
    if name := non_finite(stepped):
        raise TrialFailed(
            source,
            "a first training step",
            f"with NaN or infinity in tensor {name!r} after it",
            "lower learning_rate, or look at optimizer_args (in floats of 16 bits, "
            "Adam's eps has to be 1e-4 or more)",
        )
