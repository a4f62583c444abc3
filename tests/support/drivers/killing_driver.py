"""A federation whose driver kills a party, the aggregator, and at last itself.

``python killing_driver.py CONFIG RUN_DIR PARTY ROUNDS``: after one round each; the
others' rounds go on meanwhile. It joins the cluster of RAY_ADDRESS.
"""

import os
import signal
import sys

from support.cluster_runs import kill

import fedray

VICTIMS = ("party", "aggregator", "driver")


def main(config: str, run_dir: str, party: str, victims: list[str]) -> None:
    """Run it until it is killed."""
    name = os.path.basename(run_dir)
    todo, last = list(victims), 0

    def watch(progress):
        nonlocal last
        if not todo or progress.round <= last:
            return
        victim, last = todo.pop(0), progress.round
        if victim == "party":
            kill(f"party:{name}:{party}")
        elif victim == "aggregator":
            kill(f"aggregator:{name}", concurrency_group="control")
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    fedray.run(config, run_dir=run_dir, watch=watch)
    raise SystemExit(f"it has not killed {todo}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
