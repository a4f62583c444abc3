"""Fault injection grid: which process is killed or paused x at which stage of a round.

``python fault_grid.py FOLDER VICTIM:STAGE ...`` runs these cells and writes the outcome
of each to FOLDER/<victim>-<stage>.json. Needs this folder's gates on PYTHONPATH, CHAOS
and a RAY_TMPDIR of its own (Ray's `Cluster` overwrites the current-cluster file there).
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import NODES, PRIVATE, SERVICE, TROUBLES
from fault_injection import Gates


def nodes(folder: Path, gates: Gates) -> Any:
    """A cluster that notices a dead node soon."""
    from nodes import Nodes

    return Nodes(folder / "nodes", gates)


def patient(folder: Path, gates: Gates) -> Any:
    """A cluster as patient as Ray is by default."""
    from nodes import Nodes

    return Nodes(folder / "patient", gates, is_quick=False)


def service(folder: Path, gates: Gates) -> Any:
    """The service, with a cluster of its own."""
    from service_process import Serving

    return Serving(folder / "service", gates)


def main(folder: Path, cells: list[str]) -> None:
    """Run the cells, those of one cluster on one."""
    from support.worker_server import SERVICE as SERVE
    from support.worker_server import forked_workers

    gates = Gates(Path(os.environ["CHAOS"]))
    kinds: list[tuple[Callable, dict]] = [
        (nodes, NODES | PRIVATE), (service, SERVICE), (patient, TROUBLES),
    ]  # fmt: skip
    for make, victims in kinds:
        mine = [cell.split(":") for cell in cells if cell.split(":")[0] in victims]
        if not mine:
            continue
        with forked_workers(*([SERVE] if make is service else [])):
            ground = make(folder, gates)
            try:
                for victim, stage in mine:
                    seen = play(ground, victim, stage)
                    (folder / f"{victim}-{stage}.json").write_text(json.dumps(seen))
                    print(victim, stage, json.dumps(seen), flush=True)
            finally:
                ground.end()


def play(ground: Any, victim: str, stage: str) -> dict[str, Any]:
    """Run one cell; a mistake on the way is its outcome."""
    try:
        return ground.play(victim, stage)
    except Exception:
        traceback.print_exc()
        ground.gates.open()
        return {"error": traceback.format_exc()[-3000:]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
