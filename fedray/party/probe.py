"""Dry run of joining: reads a party's data, tries the model, measures memory."""

import resource
import sys
from collections.abc import Callable

from fedray.messages import ActorLocation, ProbeResult
from fedray.party.group import PartyGroup
from fedray.party.loading import GroupPlan
from fedray.party.text import count_documents


def probe_party(plan: GroupPlan, here: Callable[[], ActorLocation]) -> ProbeResult:
    """Do all that joining does, and describe the samples: dtype, shape, counts.

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
    joined = group.join()
    samples, targets = group.local_data.train
    return ProbeResult(
        joined.node,
        joined.device,
        int(joined.n_train.sum()),
        joined.n_test,
        _describe(samples),
        _describe(targets),
        _peak_bytes(),
        joined.sample,
        joined.n_classes,
    )


def _describe(array: object) -> str:
    """Dtype and shape of one sample; nothing where samples are no arrays."""
    shape = getattr(array, "shape", None)
    if shape is None:
        return ""
    dtype = str(getattr(array, "dtype", "")).rpartition(".")[2]
    return f"{dtype}{list(shape[1:])}"


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
