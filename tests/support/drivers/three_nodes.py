"""Federations on three nodes, in a process of its own: see test_multinode.py.

``python three_nodes.py FOLDER`` plays every scene and writes FOLDER/facts.json. Ray's
`Cluster` overwrites the current-cluster file: set RAY_TMPDIR to a folder of its own.
"""

import contextlib
import json
import os
import shutil
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster
from rest_scene import served
from support.waiting import wait_for
from support.worker_server import forked_workers

from fedray import FederationConfig, placement, run
from fedray.config import PartySpec
from fedray.data import MnistPytorch
from fedray.errors import FedrayError, Stopped
from fedray.federation import join
from fedray.messages import Progress

DRIVERS = Path(__file__).parent
NODE = {"object_store_memory": 100 << 20}
QUICK = {
    "metrics_report_interval_ms": 1000,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10000,  # a slow one is not dead
    # a killed node is noticed after about 10 s: longer than Ray repeats a call
    "health_check_failure_threshold": 20,
}


class Stage:
    """The driver's node, one of party a with 1 core, one of party b with 2 and a GPU.

    The GPU is a number that Ray believes; everything trains on CPUs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        head = {**NODE, "num_cpus": 1, "include_dashboard": False}
        head["_system_config"] = QUICK
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.a = self.add("a")
        self.b = self.add("b", num_cpus=2, num_gpus=1)
        os.environ["RAY_ADDRESS"] = self.cluster.address
        ray.init(self.cluster.address, namespace="fedray", log_to_driver=False)
        for name in ("trap_architecture.py", "recording_handler.py"):
            shutil.copy(DRIVERS / name, folder)

    def add(self, label: str, **more):
        labels = {"fedray-party": label, "site": "shared"}
        return self.cluster.add_node(
            **{**NODE, "num_cpus": 1, **more, "labels": labels}
        )

    def end(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()

    def digits(self, name: str, n_train: int, skip: int) -> str:
        (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
        path, train = self.folder / f"{name}.npz", slice(skip, skip + n_train)
        arrays = {"x_train": x[train], "y_train": y[train]}
        np.savez(path, **arrays, x_test=x_test[:20], y_test=y_test[:20])
        return str(path)

    def settings(self, parties: dict[str, tuple[str, int]], **more) -> dict:
        """A federation of parties {name: (label, samples)}."""
        return {
            "architecture": str(self.folder / "trap_architecture.py:mlp"),
            "data_handler": str(self.folder / "recording_handler.py:Spy"),
            "learning_rate": 0.1,
            "batch_size": 16,
            "parties": [
                {
                    "name": name,
                    "data": self.digits(name, n_samples, skip=100 * i),
                    "labels": {"fedray-party": label},
                }
                for i, (name, (label, n_samples)) in enumerate(parties.items())
            ],
            **more,
        }

    def trap(self, actor: str, wait_s: float) -> Path:
        """Let that actor wait and die in its round 2; the file that tells of it."""
        file = self.folder / f"{actor.replace(':', '-')}.trap"
        file.write_text(str(wait_s))
        return file.with_suffix(".sprung")

    def received(self) -> dict[str, float]:
        """Bytes of objects that each node took from others, as Ray counts them."""
        time.sleep(3)  # the counters are a second or two late
        before, now = {}, self._counters()
        while now != before:
            time.sleep(1.5)
            before, now = now, self._counters()
        return now

    def _counters(self) -> dict[str, float]:
        return wait_for(self._read_counters, "a living node's metrics")

    def _read_counters(self) -> dict[str, float]:
        """Nothing while a node is not known to be dead yet, or is only starting."""
        total = {}
        for node in filter(lambda node: node["Alive"], ray.nodes()):
            url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
            try:
                with urllib.request.urlopen(url, timeout=300) as page:
                    lines = page.read().decode().splitlines()
            except OSError:
                return {}
            ours = [x for x in lines if x.startswith("ray_object_manager_bytes{")]
            total[node["NodeID"]] = sum(
                float(x.split()[-1]) for x in ours if 'Type="Received"' in x
            )
        return total


def where(stage: Stage) -> dict:
    ids = {"driver": ray.get_runtime_context().get_node_id()}
    ids |= {"a": stage.a.node_id, "b": stage.b.node_id}
    return ids | {"order": [node.id for node in placement.nodes()]}


def spread(stage: Stage) -> dict:
    """One party on each labelled node, tested where they are; twice."""
    settings = stage.settings({"a": ("a", 40), "b": ("b", 48)}, rounds=2)
    (stage.folder / "spread.json").write_text(json.dumps(settings))
    for name in ("spread-0", "spread-1"):
        run(settings, run_dir=stage.folder / name)
    stage.trap("party:killed:a", wait_s=0)
    run(settings, run_dir=stage.folder / "killed")
    return {}


def pair(stage: Stage) -> dict:
    """Two parties on one node and one on another, tested by the aggregator; twice."""
    test_data = stage.digits("test", 20, skip=1000)
    parties = {"a1": ("a", 40), "b1": ("b", 48), "a2": ("a", 33)}
    settings = stage.settings(parties, rounds=3, test_data=test_data)
    (stage.folder / "pair.json").write_text(json.dumps(settings))
    before = stage.received()
    run(settings, run_dir=stage.folder / "pair-0")
    after = stage.received()
    run(settings, run_dir=stage.folder / "pair-1")
    return {"received": {node: after[node] - before[node] for node in after}}


def members(stage: Stage) -> dict:
    """An ensemble of a member on each labelled node, tested by the aggregator."""
    test_data = stage.digits("test", 20, skip=1000)
    settings = stage.settings({"a": ("a", 40), "b": ("b", 48)}, rounds=2)
    settings["parties"][1]["epochs"] = 2
    settings |= {"fusion_algorithm": "ensemble", "test_data": test_data}
    settings["data_handler"] = "mnist_pytorch"  # read here too, where no actor is
    (stage.folder / "members.json").write_text(json.dumps(settings))
    result = run(settings, run_dir=stage.folder / "members")
    return {"together": result.ensemble}


def eight(stage: Stage) -> dict:
    """Four parties on each of two nodes; with whole floats and with halves."""
    test_data = stage.digits("test", 20, skip=1000)
    parties = {f"{node}-{i}": (node, 20 + i) for i in range(4) for node in "ab"}
    settings = stage.settings(parties, rounds=1, test_data=test_data, party_cpus=0.1)
    received = {}
    for dtype in ("float32", "bfloat16"):
        before = stage.received()
        run(settings, run_dir=stage.folder / dtype, wire_dtype=dtype)
        after = stage.received()
        received[dtype] = {node: after[node] - before[node] for node in after}
    return received


def joined(stage: Stage) -> dict:
    """A party joins on the node that its label names, while the run goes on."""
    settings = stage.settings({"a": ("a", 40)}, rounds=100_000, quorum=0.5)
    late = stage.settings({"a": ("a", 40), "c": ("b", 48)})["parties"][1]
    told, done = {}, []

    def watch(progress: Progress) -> None:
        done.extend(report.round for report in progress.reports)
        if done and not told:
            told["round"] = join("joined", late).round
        if told and done[-1] > told["round"]:
            raise KeyboardInterrupt

    with contextlib.suppress(Stopped):
        run(settings, run_dir=stage.folder / "joined", watch=watch)
    return told


def twins(stage: Stage) -> dict:
    """Three actors for two nodes that both carry the label: [seat, where it is]."""

    class Where:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    wanted = {name: {"site": "shared"} for name in ("t0", "t1", "t2")}
    placements = placement.place_parties(wanted, placement.nodes(), party_cpus=0.25)
    actors = {
        name: ray.remote(Where).options(**placed.options()).remote()
        for name, placed in placements.items()
    }
    nodes = {name: ray.get(actor.node.remote()) for name, actor in actors.items()}
    return {name: [placements[name].node_id, nodes[name]] for name in wanted}


def missing(stage: Stage) -> dict:
    """A party whose label nobody has."""
    return refused(stage, stage.settings({"c": ("c", 20)}, placement_timeout_s=2))


def broken(stage: Stage) -> dict:
    """A party on a node where fedray cannot be imported."""
    package = stage.folder / "broken" / "fedray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('an older fedray')")
    node = stage.add("broken", env_vars={"PYTHONPATH": str(package.parent)})
    found = refused(stage, stage.settings({"d": ("broken", 20)}))
    stage.cluster.remove_node(node, allow_graceful=False)
    return {"node": node.node_id, **found}


def refused(stage: Stage, settings: dict) -> dict:
    started = time.monotonic()
    try:
        run(settings, run_dir=stage.folder / "refused", name="refused")
        return {}
    except FedrayError as error:
        seconds = time.monotonic() - started
        return {"kind": type(error).__name__, "told": str(error), "seconds": seconds}


def late(stage: Stage) -> dict:
    """A node that joins while its party is waited for."""
    with ThreadPoolExecutor(1) as pool:
        config = FederationConfig(
            parties=(PartySpec("late", "-", {"fedray-party": "late"}),)
        )
        pools = pool.submit(placement.wait_for_placement, 60, config)
        node = stage.add("late")
        return {"seat": pools.result()[0].placement.node_id, "node": node.node_id}


def moved(stage: Stage) -> dict:
    """In round 2, when two of three have reported, the third's node is replaced."""
    sprung, moves = stage.trap("party:moved:a2", wait_s=120), {}

    def replace(progress: Progress) -> None:
        if not moves and sprung.exists() and progress.reported == 2:
            moves["removed"] = stage.a.node_id
            stage.cluster.remove_node(stage.a, allow_graceful=False)
            stage.a = stage.add("a")
            moves["added"] = stage.a.node_id

    settings = json.loads((stage.folder / "pair.json").read_text())
    own = ray.get_runtime_context().get_node_id()
    before = stage.received()[own]
    run(settings, run_dir=stage.folder / "moved", watch=replace)
    return {**moves, "received": stage.received()[own] - before}


SCENES = (
    where, spread, pair, members, eight, joined, twins, served, missing, broken, late,
    moved,
)  # fmt: skip


def main(folder: Path) -> None:
    with forked_workers():
        play(Stage(folder), folder)


def play(stage: Stage, folder: Path) -> None:
    facts = {}
    try:
        for scene in SCENES:
            started = time.monotonic()
            facts[scene.__name__] = scene(stage)
            took_s = time.monotonic() - started
            print(f"{scene.__name__}: {took_s:.1f} s", flush=True)
    finally:
        (folder / "facts.json").write_text(json.dumps(facts))
        stage.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
