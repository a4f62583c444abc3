"""Federations on three nodes, in a process of its own: see test_multinode.py.

``python three_nodes.py FOLDER`` runs every scene and writes FOLDER/facts.json. Ray's
`Cluster` overwrites the current-cluster file, so set RAY_TMPDIR to a folder of its own.
"""

import json
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from fedray import run

QUICK = {  # a dead node is noticed after about 2 s
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}
STORE = 100 << 20


def main(folder: Path) -> None:
    t0 = time.monotonic()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": STORE,
            "include_dashboard": False,
            "_system_config": QUICK,
        },
    )
    print("head", time.monotonic() - t0)
    a = cluster.add_node(num_cpus=1, object_store_memory=STORE, labels={"fedray-party": "a"})
    b = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE, labels={"fedray-party": "b"})
    print("nodes", time.monotonic() - t0)
    try:
        ray.init(cluster.address, namespace="fedray", log_to_driver=False)
        print("init", time.monotonic() - t0)
        for n in ray.nodes():
            print(n["NodeID"], n["Labels"], n["Resources"], n["MetricsExportPort"])
        settings = json.loads((folder / "settings.json").read_text())
        for i in range(2):
            t1 = time.monotonic()
            r = run(settings, run_dir=folder / f"spread-{i}", watch=lambda p: print(p.stage, p.reports, p.notes))
            print("run", time.monotonic() - t1)
            print((folder / f"spread-{i}" / "history.jsonl").read_text())
            import hashlib
            print({k: hashlib.md5(v.tobytes()).hexdigest() for k, v in r.weights().items()})
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
