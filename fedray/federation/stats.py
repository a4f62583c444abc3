"""Statistics of the parties' data, without training: `fedray stats`."""

from typing import Any

from fedray import placement
from fedray.config import FederationConfig, describe_mechanisms
from fedray.errors import ConfigError, JoinFailed
from fedray.federation.connection import cluster_connection
from fedray.federation.survey import survey_pools
from fedray.models import Blueprint
from fedray.survey import (
    MIN_COUNT,
    MIN_PARTIES,
    DataSurvey,
    SurveyRequest,
    ValueCounts,
)


def stats(config: FederationConfig, extremes: bool = False) -> DataSurvey:
    """Count, mean, standard deviation and missing values of all parties' columns.

    Each party's sums are made in a task on its own node; no sample leaves it. Nodes
    that have not joined yet are not waited for.

    Parameters
    ----------
    extremes : also the lowest and highest value of each column, which are values of
        single samples.

    Raises
    ------
    ClusterError, PlacementError
        If there is no cluster, or no node for a party.
    JoinFailed
        Naming every party whose data cannot be read, or has other columns than most.
    ConfigError
        If the parties have documents, or a privacy mechanism protects them.
    """
    if config.privacy_mechanisms:
        mechanisms = describe_mechanisms(config.privacy_mechanisms)
        why = f"statistics of the parties' data have no noise: leave out {mechanisms}"
        raise ConfigError([f"{why}, if the parties agree to show them"])
    if config.takes_documents:
        why = f"model_type {config.model_type} reads documents, which have no columns"
        raise ConfigError([why])
    request = SurveyRequest(
        codes=True,
        moments=True,
        extremes=extremes,
        missing=True,
        channels_first=config.model_type == "pytorch",
    )
    bare = Blueprint(config.model_type, None, {}, ())
    with cluster_connection(job="fedray:stats"):
        pools = placement.place_federation(config, placement.nodes())
        survey, failures = survey_pools(config, bare, pools, request)
    if survey is None:
        raise JoinFailed(failures, config.errors_log)
    return survey


def to_json(
    survey: DataSurvey, min_count: int = MIN_COUNT, min_parties: int = MIN_PARTIES
) -> dict[str, Any]:
    """Statistics as plain data; rare labels and categories are counted, not named."""
    columns = [
        {"input": f"x{key}", **column}
        for key, moments in survey.moments.items()
        for column in moments.total().columns()
    ]
    counts = {"y": survey.labels} if survey.labels else {}
    counts |= survey.categories
    return {
        "n_parties": survey.n_parties,
        "n_samples": survey.n_samples,
        "columns": columns,
        "categories": {
            name: _frequent(values, min_count, min_parties)
            for name, values in counts.items()
        },
    }


def _frequent(values: ValueCounts, min_count: int, min_parties: int) -> dict[str, Any]:
    rows = [
        {"value": value, "count": count, "n_parties": values.parties[value]}
        for value, count in sorted(values.counts.items())
        if count >= min_count and values.parties[value] >= min_parties
    ]
    return {"values": rows, "n_left_out": len(values.counts) - len(rows)}
