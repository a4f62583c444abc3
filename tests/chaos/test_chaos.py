"""Killed and held up at every stage of a round: what the run comes to.

`make test` plays one cell for each victim, `make chaos` all of them; it also writes
outcomes.json, from which the table of docs/failures.md is made
(`python tests/chaos/outcomes_table.py`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import outcomes_table
import pytest
from cells import CELLS, QUICK, ROUNDS
from support.processes import ray_folder, remaining_pids, running_process

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
    folder = tmp_path_factory.mktemp("chaos")
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    cells = [spec.params["cell"] for spec in specs if spec and "cell" in spec.params]
    with ray_folder() as ray_tmp:
        env = {
            **os.environ,
            "RAY_TMPDIR": str(ray_tmp),
            "CHAOS": str(folder / "gates"),
            "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
        }
        env.pop("RAY_ADDRESS", None)
        command = [sys.executable, str(HERE / "fault_grid.py"), str(folder), *cells]
        with running_process(command, folder / "log", env=env, cwd=folder) as driver:
            code = driver.wait(timeout=600 * (1 + len(cells)))
        assert code == 0, (folder / "log").read_text()[-5000:]
        assert remaining_pids(ray_tmp) == set(), "processes outlived the grid"
    names = {cell: cell.replace(":", "-") + ".json" for cell in cells}
    outcomes = {c: json.loads((folder / name).read_text()) for c, name in names.items()}
    if set(cells) == set(CELLS):
        outcomes_table.write(outcomes)
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
    assert outcomes_table.shown() == outcomes_table.table(outcomes_table.read())


def test_the_table_can_be_made_by_anyone(tmp_path):
    command = [sys.executable, str(HERE / "outcomes_table.py"), "--print"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == outcomes_table.table(outcomes_table.read())
