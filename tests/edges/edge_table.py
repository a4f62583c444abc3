"""Table in docs/failures.md of the outcomes that `make edge-faults` recorded.

``python tests/edges/edge_table.py`` writes it between the markers, from outcomes.json.
"""

import sys
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parent.parent)
sys.path[:0] = [TESTS] * (TESTS not in sys.path)

from edge_cells import CELLS, NETWORKS, STAGES, VICTIMS  # noqa: E402
from support import grid_outcomes  # noqa: E402
from support.grid_outcomes import GridPage, Outcomes  # noqa: E402

MARKS = ("<!-- edges: made by tests/edges/edge_table.py -->\n", "<!-- /edges -->\n")
KEYS = (
    *("how", "same", "missing", "half", "damaged", "spool", "exits", "struck"),
    "error",
)


def cell_text(seen: dict[str, Any] | None) -> str:
    """Text of a cell; None: it is not recorded."""
    if seen is None:
        return "not recorded"
    left = "uploads left" * bool(seen.get("spool"))
    fails = "an edge fails" * any(seen.get("exits", {}).values())
    return grid_outcomes.cell_text(seen, left, fails)


def table(outcomes: Outcomes) -> str:
    """Victim x stage x outcome."""
    rows = [["what is killed or cut", *STAGES]]
    for victim, name in VICTIMS.items():
        seen = [outcomes.get(f"{victim}:{stage}") for stage in STAGES]
        rows.append([name, *map(cell_text, seen)])
    networks = [["what the network does", "the run ends"]]
    for kind, name in NETWORKS.items():
        networks.append([name, cell_text(outcomes.get(f"faults:{kind}"))])
    return grid_outcomes.lines(rows) + "\n" + grid_outcomes.lines(networks)


GRID = GridPage(Path(__file__).parent / "outcomes.json", MARKS, CELLS, KEYS, table)

if __name__ == "__main__":
    GRID.put()
