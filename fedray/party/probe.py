"""The dry run of joining, which `fedray check` makes."""

import resource
import sys
from collections.abc import Callable, Iterator

from fedray.messages import ActorLocation, ProbeResult
from fedray.models import Model, PrivateModel
from fedray.party.failures import sanitize_errors
from fedray.party.group import PartyGroup
from fedray.party.loading import GroupPlan
from fedray.party.text import count_documents
from fedray.privacy.sample_budget import Budget
from fedray.weights import Weights

SLOW = (
    "dp_sgd takes its samples one at a time, which takes about as many times as long "
    "as a batch has samples: {}"
)


def probe_party(
    plan: GroupPlan,
    here: Callable[[], ActorLocation],
    payload: Weights | None = None,
) -> ProbeResult:
    """Do all that joining does, and describe the samples: dtype, shape, counts.

    payload : the weights that a run would start from.

    Raises
    ------
    PartyError
        As `PartyGroup.join` does.
    """
    if not plan.blueprint.schema:  # it depends on the words of all parties
        n_documents, at = count_documents(plan), here()
        of_one = "document"
        return ProbeResult(at.node, "cpu", n_documents, 0, of_one, "", _peak_bytes())
    group = PartyGroup(plan, here)
    with sanitize_errors(plan, "joining", group.location.node):
        samples, targets = group.local_data.train.describe()
    peak_bytes = _peak_bytes()  # before the step, whose memory depends on batch_size
    joined = group.join(payload)
    return ProbeResult(
        joined.node,
        joined.device,
        int(joined.n_train.sum()),
        joined.n_test,
        samples,
        targets,
        peak_bytes,
        joined.sample,
        joined.n_classes,
        joined.moved,
        "" if payload is None else group.repeat_training(payload),
        group.compare_passes(),
        tuple(_private_notes(joined.budget, group.local_data.model)),
    )


def _private_notes(budget: Budget | None, model: Model) -> Iterator[str]:
    """What must be known of training with dp_sgd."""
    if budget is not None:
        yield str(budget)
    if isinstance(model, PrivateModel) and model.slow_because:
        yield SLOW.format(model.slow_because)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
