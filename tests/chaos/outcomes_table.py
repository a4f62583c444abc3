"""Table in docs/failures.md of the outcomes that `make chaos` recorded.

``python tests/chaos/outcomes_table.py`` writes it between the markers, from
outcomes.json; ``--print`` prints it.
"""

import sys
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parent.parent)
sys.path[:0] = [TESTS] * (TESTS not in sys.path)

from cells import CELLS, SAID, STAGES  # noqa: E402
from support import grid_outcomes  # noqa: E402
from support.grid_outcomes import GridPage, Outcomes  # noqa: E402

MARKS = ("<!-- chaos: made by tests/chaos/outcomes_table.py -->\n", "<!-- /chaos -->\n")
HEADS = {
    "sending": "before sending",
    "training": "training",
    "reported": "after reporting",
    "combining": "combining",
    "writing": "writing checkpoint",
}
KEYS = ("how", "same", "missing", "half", "damaged", "processes", "pinned", "error")


def cell_text(cell: str, seen: dict[str, Any] | None) -> str:
    """Text of a cell; None: it is not recorded, or cannot occur."""
    if seen is None:
        return "not recorded" if cell in CELLS else "–"
    left = "processes left" * bool(seen.get("processes"))
    pinned = f"{seen.get('pinned')} bytes left" * bool(seen.get("pinned"))
    return grid_outcomes.cell_text(seen, left, pinned)


def table(outcomes: Outcomes) -> str:
    """Fault x stage x outcome."""
    rows = [["what is killed or held up", *(HEADS[stage] for stage in STAGES)]]
    for victim, said in SAID.items():
        cells = [f"{victim}:{stage}" for stage in STAGES]
        rows.append([said, *(cell_text(c, outcomes.get(c)) for c in cells)])
    return grid_outcomes.lines(rows)


GRID = GridPage(Path(__file__).parent / "outcomes.json", MARKS, CELLS, KEYS, table)

if __name__ == "__main__":
    if "--print" in sys.argv:
        sys.stdout.write(GRID.made())
    else:
        GRID.put()
