"""Edge, door, EdgeGroup, aggregator, driver killed at every stage of an edge's part.

`make test` plays a few cells, `make edge-faults` all of them; it also writes
outcomes.json, from which the table of docs/failures.md is made
(`python tests/edges/edge_table.py`).
"""

import os
from pathlib import Path

import pytest
from edge_cells import CELLS, QUICK, ROUNDS
from edge_table import GRID
from support.grid_outcomes import cells_in, play

HERE = Path(__file__).parent
PATHS = (HERE.parent.parent, HERE.parent)
NAME = "edge_cell"  # tests/chaos has a grid of its own in the same session
ALL = [
    pytest.param(cell, marks=() if cell in QUICK else pytest.mark.chaos)
    for cell in CELLS
]


@pytest.fixture(scope="module")
def played(request, tmp_path_factory):
    """What the cells that are asked for came to, by cell."""
    folder, cells = tmp_path_factory.mktemp("edges"), cells_in(request.session, NAME)
    path = os.pathsep.join(map(str, PATHS))
    outcomes = play(HERE / "edge_grid.py", folder, cells, PYTHONPATH=path)
    if set(cells) == set(CELLS):
        GRID.write(outcomes)
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize(NAME, ALL)
def test_the_run_reaches_the_same_bits_and_no_update_counts_twice(played, edge_cell):
    seen = played[edge_cell]
    assert "error" not in seen, seen["error"]
    assert seen["rounds"] == list(range(1, ROUNDS + 1))
    assert seen["fused"] == [2] * ROUNDS
    assert (seen["same"], seen["missing"]) == (True, [])
    assert (seen["half"], seen["damaged"], seen["spool"]) == ([], [], 0)
    assert seen["exits"] == {"a": 0, "b": 0}
    assert seen.get("struck") != []  # faults did strike


def test_the_page_on_failures_has_the_table_of_what_was_recorded():
    assert GRID.shown() == GRID.made()
