"""Table in docs/failures.md of the outcomes that `make edge-faults` recorded.

``python tests/edges/edge_table.py`` writes it between the markers, from outcomes.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parent.parent)
sys.path[:0] = [TESTS] * (TESTS not in sys.path)

from edge_cells import CELLS, NETWORKS, STAGES, VICTIMS  # noqa: E402
from support.page_tables import table_in, with_table  # noqa: E402

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "failures.md"
OUTCOMES = HERE / "outcomes.json"
MARKS = ("<!-- edges: made by tests/edges/edge_table.py -->\n", "<!-- /edges -->\n")
KEPT = (
    "how",
    "same",
    "missing",
    "half",
    "damaged",
    "spool",
    "exits",
    "struck",
    "error",
)


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
        "uploads left" * bool(seen["spool"]),
        "an edge fails" * any(seen["exits"].values()),
    ]
    return ", ".join([seen["how"], *(f"**{flaw}**" for flaw in flaws if flaw)])


def table(outcomes: dict[str, dict[str, Any]]) -> str:
    """Victim x stage x outcome."""
    rows = [["what is killed or cut", *STAGES], ["---"] * (len(STAGES) + 1)]
    for victim, name in VICTIMS.items():
        seen = [outcomes.get(f"{victim}:{stage}") for stage in STAGES]
        rows.append([name, *(cell_text(s) if s else "not recorded" for s in seen)])
    kills = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    rows = [["what the network does", "the run ends"], ["---"] * 2]
    for kind, name in NETWORKS.items():
        seen = outcomes.get(f"faults:{kind}")
        rows.append([name, cell_text(seen) if seen else "not recorded"])
    return kills + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def shown() -> str:
    """The table as the page has it."""
    return table_in(PAGE.read_text(encoding="utf-8"), MARKS)


def put() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(text, MARKS, table(read())), encoding="utf-8")


if __name__ == "__main__":
    put()
