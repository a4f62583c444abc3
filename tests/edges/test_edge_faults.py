"""Edge, door, EdgeGroup, aggregator, driver killed at every stage of an edge's part.

`make test` plays a few cells, `make edge-faults` all of them; it also writes
outcomes.json, from which the table of docs/failures.md is made
(`python tests/edges/edge_table.py`).
"""

import json
import os
import sys
from pathlib import Path

import edge_table
import pytest
from edge_cells import CELLS, QUICK, ROUNDS
from support.processes import ray_folder, remaining_pids, running_process

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
    folder = tmp_path_factory.mktemp("edges")
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    cells = [spec.params[NAME] for spec in specs if spec and NAME in spec.params]
    with ray_folder() as ray_tmp:
        env = os.environ | {"RAY_TMPDIR": str(ray_tmp)}
        env["PYTHONPATH"] = os.pathsep.join(map(str, PATHS))
        env.pop("RAY_ADDRESS", None)
        command = [sys.executable, str(HERE / "edge_grid.py"), str(folder), *cells]
        with running_process(command, folder / "log", env=env, cwd=folder) as driver:
            code = driver.wait(timeout=600 * (1 + len(cells)))
        assert code == 0, (folder / "log").read_text()[-5000:]
        assert remaining_pids(ray_tmp) == set(), "processes outlived the grid"
    names = {cell: cell.replace(":", "-") + ".json" for cell in cells}
    outcomes = {c: json.loads((folder / name).read_text()) for c, name in names.items()}
    if set(cells) == set(CELLS):
        edge_table.write(outcomes)
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
    assert edge_table.shown() == edge_table.table(edge_table.read())
