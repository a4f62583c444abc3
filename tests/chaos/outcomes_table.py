"""Table in docs/failures.md of the outcomes that `make chaos` recorded.

``python tests/chaos/outcomes_table.py`` writes it between the markers, from
outcomes.json; ``--print`` prints it.
"""

import json
import sys
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parent.parent)
sys.path[:0] = [TESTS] * (TESTS not in sys.path)

from cells import CELLS, SAID, STAGES  # noqa: E402
from support.page_tables import table_in, with_table  # noqa: E402

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "failures.md"
OUTCOMES = HERE / "outcomes.json"
MARKS = ("<!-- chaos: made by tests/chaos/outcomes_table.py -->\n", "<!-- /chaos -->\n")
HEADS = {
    "sending": "before sending",
    "training": "training",
    "reported": "after reporting",
    "combining": "combining",
    "writing": "writing checkpoint",
}
KEPT = ("how", "same", "missing", "half", "damaged", "processes", "pinned", "error")


def write(outcomes: dict[str, dict[str, Any]]) -> None:
    """Record what every cell came to, and put it into the page."""
    kept = {
        cell: {key: seen[key] for key in KEPT if key in seen}
        for cell, seen in sorted(outcomes.items(), key=lambda at: CELLS.index(at[0]))
    }
    OUTCOMES.write_text(json.dumps(kept, indent=1) + "\n")
    put()


def read() -> dict[str, dict[str, Any]]:
    """What was recorded."""
    return json.loads(OUTCOMES.read_text())


def cell_text(seen: dict[str, Any]) -> str:
    """Text of a recorded cell: how the run went on, and what was wrong."""
    if "error" in seen:
        return "**the run fails**"
    flaws = [
        "other bits" * (not seen["same"]),
        "; ".join(seen["missing"]),
        "half files" * bool(seen["half"] or seen["damaged"]),
        "processes left" * bool(seen["processes"]),
        f"{seen['pinned']} bytes left" * bool(seen["pinned"]),
    ]
    return ", ".join([seen["how"], *(f"**{flaw}**" for flaw in flaws if flaw)])


def empty_cell_text(cell: str) -> str:
    """Text of a cell that is not recorded, or that cannot occur."""
    return "not recorded" if cell in CELLS else "–"


def table(outcomes: dict[str, dict[str, Any]]) -> str:
    """Fault x stage x outcome."""
    rows = [["what is killed or held up", *(HEADS[stage] for stage in STAGES)]]
    rows.append(["---"] * len(rows[0]))
    for victim, said in SAID.items():
        cells = [f"{victim}:{stage}" for stage in STAGES]
        seen = [
            cell_text(outcomes[c]) if c in outcomes else empty_cell_text(c)
            for c in cells
        ]
        rows.append([said, *seen])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def shown() -> str:
    """The table as the page has it."""
    text = PAGE.read_text(encoding="utf-8")
    return table_in(text, MARKS)


def put() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(text, MARKS, table(read())), encoding="utf-8")


if __name__ == "__main__":
    if "--print" in sys.argv:
        sys.stdout.write(table(read()))
    else:
        put()
