"""Enrolled edges as they are listed: who, in which state, when last heard of."""

import math
from typing import Any

import numpy as np

from fedray.edges.contacts import STATES, read_contacts
from fedray.edges.roster import ENROLLED, LEFT, Edge, Roster


def list_edges(roster: Roster, n_most: int | None = None) -> list[dict[str, Any]]:
    """Every edge that ever enrolled and has not left, in order of enrolment.

    Times are Unix times; what is not known is None.

    n_most : of the last that enrolled; None: all.
    """
    rows = read_contacts(roster.folder, len(roster.edges))
    return [
        _describe(edge, rows[edge.number])
        for edge in roster.edges[-n_most if n_most else None :]
        if edge.state != LEFT
    ]


def _describe(edge: Edge, row: np.void) -> dict[str, Any]:
    is_seen = bool(row["version"])
    is_active = is_seen and edge.state == ENROLLED
    rate = float(row["rate"])
    return {
        "name": edge.name,
        "state": edge.state,
        "enrolled": edge.since,
        "last_seen": float(row["last_seen"]) if row["last_seen"] else None,
        "activity": STATES[row["state"]] if is_active else None,
        "share": round(float(row["share"]), 4) if is_seen else None,
        "round": int(row["round"]) or None,
        "version": row["version"].decode("ascii", "replace") or None,
        "bytes_up": int(row["bytes_up"]),
        "bytes_down": int(row["bytes_down"]),
        "bytes_per_s": round(rate) if math.isfinite(rate) else 0,
    }
