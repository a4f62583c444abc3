"""Lines in the log of a party's actor: what its reports say, nothing of the samples."""

import logging
from typing import Any

import numpy as np

from fedray.errors import format_count
from fedray.messages import Report
from fedray.party.loading import LocalData

LOG = logging.getLogger("fedray")


def log_joining(actor: Any, n_parties: int, local_data: LocalData) -> None:
    """A line when its parties have joined; `actor` is what it calls itself."""
    n_samples = format_count(local_data.n_train.sum(), "sample") + ", "
    if actor.config.hides_parties or actor.config.secure_aggregation:
        n_samples = ""
    many = f"{n_parties:,} parties, " if n_parties > 1 else ""
    device = local_data.model.device
    LOG.info("%r joined: %s%s%s", actor, many, n_samples, device)


def log_round(actor: Any, report: Report, seconds: float) -> None:
    """A line for each round that its parties have trained."""
    if actor.config.hides_choice:
        return  # a line would tell that it was chosen
    if actor.config.hides_parties:
        LOG.info("%r round %s", actor, report.round)
        return
    losses = report.loss[np.isfinite(report.loss)]
    loss = f", loss {losses.mean():.4f}" if len(losses) else ""
    many = f", {len(report.parties):,} parties" if len(report.parties) > 1 else ""
    LOG.info("%r round %s%s%s, %.2f s", actor, report.round, many, loss, seconds)
