"""Edge fault grid: who is killed x at which stage of an edge's part in a run.

``python edge_grid.py FOLDER VICTIM:STAGE ...`` plays these cells on a cluster of its
own and writes the outcome of each to FOLDER/<victim>-<stage>.json. Needs a RAY_TMPDIR
of its own. An edge's calls go through a proxy which holds the one that the stage is
about, or its answer; training is held by the edge's own model.
"""

import json
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edge_cells import CALLS
from support.edge_scene import EDGES, EdgeScene
from support.faulty_proxy import DOWN, KINDS, UP, FaultyProxy, seeded
from support.worker_server import SERVICE, forked_workers

ANSWER_LOST = ("edge", "door", "network")


def main(folder: Path, cells: list[str]) -> None:
    """Play the cells, one after the other."""
    with forked_workers(SERVICE), EdgeScene(folder) as scene:
        for cell in cells:
            started = time.monotonic()
            seen = play(scene, *cell.split(":"))
            seen["seconds"] = round(time.monotonic() - started, 1)
            (folder / f"{cell.replace(':', '-')}.json").write_text(json.dumps(seen))
            print(cell, json.dumps(seen), flush=True)


def play(scene: EdgeScene, victim: str, stage: str) -> dict[str, Any]:
    """Run one cell; a mistake on the way is its outcome."""
    try:
        return _play(scene, victim, stage)
    except Exception:
        traceback.print_exc()
        scene.open_gates()
        return {"error": traceback.format_exc()[-3000:]}


def _play(scene: EdgeScene, victim: str, stage: str) -> dict[str, Any]:
    if victim == "faults":
        return play_faults(scene, stage)
    run = scene.new_run(f"{victim}-{stage}")
    run.has_own_driver = victim == "driver"
    gate = scene.training_gate() if stage == "training" else hold(scene, victim, stage)
    run.start()
    run.enrol_all()
    gate.wait()
    getattr(run, f"kill_{victim}")()
    gate.let_go(is_lost=victim in ANSWER_LOST)
    how = getattr(run, f"go_on_after_{victim}", lambda: "by itself")()
    run.wait()
    return run.look() | {"how": how}


def hold(scene: EdgeScene, victim: str, stage: str):
    """Hold the answer where its loss is the worst: what it is of is done, unknown to
    its edge. Else hold the call, which then finds the victim dead or just back.
    """
    pattern, skip = CALLS[stage]
    way = DOWN if victim in ANSWER_LOST else UP
    return scene.proxy.hold(pattern, way, skip)


def play_faults(scene: EdgeScene, kind: str) -> dict[str, Any]:
    """A run whose edges call through proxies that do this to most connections."""
    kinds = KINDS if kind in ("tutorial", "all") else (kind,)
    job = "tutorial" if kind == "tutorial" else "tiny"
    run, struck, tls = scene.new_run(f"faults-{kind}", job), [], scene.proxy.tls
    with ExitStack() as stack:
        for seed, name in enumerate(EDGES):
            fault_of = seeded(seed, share=0.7, kinds=kinds)
            proxy = FaultyProxy(scene.door_port, fault_of, tls)
            run.ports[name] = stack.enter_context(proxy).port
            struck.append(proxy)
        run.start()
        run.enrol_all()
        run.wait()
        seen = run.look() | {"how": "by itself"}
        return seen | {"struck": sorted(set().union(*(p.struck() for p in struck)))}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
