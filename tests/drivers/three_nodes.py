"""Federations on three nodes, in a process of its own: see test_multinode.py.

``python three_nodes.py FOLDER`` runs every scene and writes FOLDER/facts.json. Ray's
`Cluster` overwrites the current-cluster file, so RAY_TMPDIR must be a folder of its own.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster

from fedray import run
from fedray.data import MnistPytorch
from fedray.errors import PlacementError

QUICK = {  # a dead node is noticed after about 2 s
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
NODE = {"object_store_memory": 100 << 20, "num_cpus": 1}
MLP = '''
import os, signal, time
from pathlib import Path
import ray
from torch import nn

class Mlp(nn.Sequential):
    """Does what the party's trap file says, in the middle of its round 2, once."""

    n_batches = 0

    def forward(self, x):
        self.n_batches += self.training
        if self.training and self.n_batches == 5:  # a round has 3 batches
            name = ray.get_runtime_context().get_actor_name().replace(":", "-")
            trap = Path(__file__).with_name(name)
            if trap.exists():
                trap.rename(trap.with_suffix(".sprung"))
                time.sleep(120 if trap.with_suffix(".sprung").read_text() else 0)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def mlp():
    return Mlp(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
'''
SPY = '''
import json, os
import ray
from fedray.data import MnistPytorch

class Spy(MnistPytorch):
    """Digits, and a note of which process on which node read them."""

    def __init__(self, path):
        super().__init__(path)
        me = ray.get_runtime_context()
        note = {"node": me.get_node_id(), "gpus": ray.get_gpu_ids(), "pid": os.getpid()}
        with open(path + "." + me.get_actor_name().replace(":", "-"), "a") as file:
            file.write(json.dumps(note) + "\\n")
'''


class Stage:
    """A cluster of a driver's node and two that carry a party's label."""

    def __init__(self, folder: Path):
        self.folder, self.facts = folder, {}
        head = {**NODE, "include_dashboard": False, "_system_config": QUICK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.a, self.b = self.add("a"), self.add("b", num_gpus=1)
        os.environ["RAY_ADDRESS"] = self.cluster.address
        ray.init(self.cluster.address, namespace="fedray", log_to_driver=False)
        own = ray.get_runtime_context().get_node_id()
        self.facts["nodes"] = {"driver": own, "a": self.a.node_id, "b": self.b.node_id}
        self.facts["labels"] = {n["NodeID"]: n["Labels"] for n in ray.nodes()}

    def add(self, label: str, **more):
        return self.cluster.add_node(**NODE, labels={"fedray-party": label}, **more)

    def end(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()

    def digits(self, name: str, n_train: int, skip: int) -> str:
        (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
        path = self.folder / f"{name}.npz"
        train, test = slice(skip, skip + n_train), slice(skip, skip + 20)
        np.savez(
            path,
            x_train=x[train],
            y_train=y[train],
            x_test=x_test[test],
            y_test=y_test[test],
        )
        return str(path)

def main(folder: Path) -> None:
    t0 = time.monotonic()
    s = Stage(folder)
    (folder/"mlp.py").write_text(MLP)
    (folder/"spy.py").write_text(SPY)
    print("up", time.monotonic()-t0, flush=True)
    try:
        base = dict(architecture=str(folder/"mlp.py:mlp"), epochs=1, learning_rate=.1, batch_size=16, loss="cross_entropy", data_handler=str(folder/"spy.py:Spy"))
        L = lambda x: {"fedray-party": x}
        spread = dict(base, rounds=2, parties=[dict(name="a", data=s.digits("a",40,0), labels=L("a")), dict(name="b", data=s.digits("b",48,40), labels=L("b"))])
        pair = dict(base, rounds=3, test_data=s.digits("t", 20, 200), parties=[dict(name="a1", data=s.digits("a1",40,0), labels=L("a")), dict(name="b1", data=s.digits("b1",48,40), labels=L("b")), dict(name="a2", data=s.digits("a2",33,100), labels=L("a"))])
        def go(name, cfg, **kw):
            t1 = time.monotonic()
            r = run(cfg, run_dir=folder/name, name=name, **kw)
            print("=====", name, time.monotonic()-t1)
            for line in (folder/name/"history.jsonl").read_text().splitlines():
                d = json.loads(line); print(d["round"], d["bytes_moved"]/203560, d["fused"], round(d["seconds"],2), round(d["train_seconds"],2), [(p["name"],p["node"][:6],p["outcome"]) for p in d["parties"]])
            import hashlib
            print(hashlib.md5(b"".join(v.tobytes() for v in r.weights().values())).hexdigest(), flush=True)
        if "spread" in sys.argv:
            go("spread-0", spread)
        if "kill" in sys.argv:
            (folder/"party-killed-a").write_text("")
            go("killed", spread)
        if "pair" in sys.argv:
            go("pair-0", pair)
            go("pair-1", pair)
        if "moved" in sys.argv:
            (folder/"party-moved-a2").write_text("wait")
            st = []
            def watch(p):
                if p.notes: print(p.notes)
                if (folder/"party-moved-a2.sprung").exists() and p.reported == 2 and not st:
                    st.append(1)
                    print("removing", s.a.node_id[:6], p, flush=True)
                    s.cluster.remove_node(s.a, allow_graceful=False)
                    s.a = s.add("a")
                    print("added", s.a.node_id[:6], flush=True)
            go("moved", pair, watch=watch)
        if "missing" in sys.argv:
            t=time.monotonic()
            try: go("missing", dict(spread, placement_timeout_s=2, parties=[dict(spread["parties"][0], labels=L("c"))]))
            except PlacementError as e: print(e, time.monotonic()-t)
        for f in sorted(folder.glob("*.npz.*")): print(f.name, f.read_text())
    except Exception: traceback.print_exc()
    finally:
        s.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
