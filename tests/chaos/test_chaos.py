"""Killed and held up at every stage of a round: what the run comes to.

`make test` plays one cell for each victim, `make chaos` all of them; it also writes
outcomes.json, from which the table of docs/failures.md is made
(`python tests/chaos/outcomes_table.py`).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cells import CELLS, QUICK, ROUNDS
from outcomes_table import GRID
from support.grid_outcomes import cells_in, play

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PATHS = (HERE / "gates", ROOT, HERE.parent)
ALL = [
    pytest.param(cell, marks=() if cell in QUICK else pytest.mark.chaos)
    for cell in CELLS
]


@pytest.fixture(scope="module")
def played(request, tmp_path_factory):
    """What the cells that are asked for came to, by cell."""
    folder, cells = tmp_path_factory.mktemp("chaos"), cells_in(request.session, "cell")
    path, gates = os.pathsep.join(map(str, PATHS)), str(folder / "gates")
    outcomes = play(HERE / "fault_grid.py", folder, cells, PYTHONPATH=path, CHAOS=gates)
    if set(cells) == set(CELLS):
        GRID.write(outcomes)
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("cell", ALL)
def test_the_run_reaches_the_same_bits_and_leaves_nothing_behind(played, cell):
    seen = played[cell]
    assert "error" not in seen, seen["error"]
    assert (seen["rounds"], seen["kept"]) == (list(range(1, ROUNDS + 1)), ROUNDS)
    assert (seen["same"], seen["missing"]) == (True, [])
    assert (seen["half"], seen["damaged"]) == ([], [])
    rounds = [*range(1, ROUNDS + 1)] if cell.startswith("private_") else []
    assert seen.get("released", []) == rounds  # one line a round
    assert seen["processes"] == []
    assert seen["pinned"] in (0, None)


def test_the_page_on_failures_has_the_table_of_what_was_recorded():
    assert GRID.shown() == GRID.made()


def test_the_table_can_be_made_by_anyone(tmp_path):
    command = [sys.executable, str(HERE / "outcomes_table.py"), "--print"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == GRID.made()
