"""The workloads as an app of Flower: what benchmark_flower.py measures fedray against.

Runs in the peer's own environment (flwr, torch, numpy; no fedray). Its workers import
this module, as they import an installed app, and find what to do in the file that
FEDRAY_PEER names: {"workload", "rounds", "data", "out"}.
"""

import functools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workloads import SHIFT, WORKLOADS, build, evaluate, large_arrays, train

PATIENCE_S = 600  # for the answers of one round
client_app, server_app = ClientApp(), ServerApp()


@functools.cache
def plan() -> dict:
    """What this run does."""
    return json.loads(Path(os.environ["FEDRAY_PEER"]).read_text())


@functools.cache
def digits() -> dict[str, torch.Tensor]:
    """All digits and whose they are; read once by each worker process."""
    with np.load(plan()["data"]) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def mine(context: Context, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits of one party: the same ones as in fedray."""
    data, party = digits(), int(context.node_config["partition-id"])
    start, end = data[f"{part}_ends"][party : party + 2].tolist()
    rows = data[f"{part}_rows"][start:end]
    return data[f"x_{part}"][rows], data[f"y_{part}"][rows]


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """Train the party's model, or shift it where there is nothing to train."""
    _note_first()
    workload = WORKLOADS[plan()["workload"]]
    x, y = mine(context, "train")
    received = message.content["arrays"]
    metrics = MetricRecord({"num-examples": len(x)})
    if workload.n_parameters:
        arrays = received.to_numpy_ndarrays()
        shift = float(x.mean()) * SHIFT
        for i, array in enumerate(arrays):
            arrays[i] = np.add(
                array, shift, out=array if array.flags.writeable else None
            )
        sent = ArrayRecord(arrays)
    else:
        net = build(workload)
        net.load_state_dict(received.to_torch_state_dict())
        party, round = context.node_config["partition-id"], _round(message)
        metrics["train-loss"] = train(workload, net, x, y, hash((party, round)) % 2**32)
        sent = ArrayRecord(net.state_dict())
    return Message(RecordDict({"arrays": sent, "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def test(message: Message, context: Context) -> Message:
    """Loss and accuracy on the party's own test digits."""
    workload = WORKLOADS[plan()["workload"]]
    x, y = mine(context, "test")
    net = build(workload)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss, accuracy = evaluate(workload, net, x, y)
    found = {"loss": loss, "accuracy": accuracy, "num-examples": len(x)}
    return Message(RecordDict({"metrics": MetricRecord(found)}), reply_to=message)


def _round(message: Message) -> int:
    return int(message.content["config"]["server-round"])


def _note_first() -> None:
    """The clock when the first party starts to train."""
    path = Path(plan()["out"]).with_suffix(".first")
    if not path.exists():
        path.write_text(str(time.time()))


class Clocked(FedAvg):
    """FedAvg that notes when each round starts, has its mean, and ends."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.clock: list[dict[str, float]] = []
        self.accuracy: float | None = None
        self.lost: list[int] = []  # clients without an update, by round

    def configure_train(self, *arguments):
        """A round begins."""
        self.clock.append({"start": time.time()})
        if len(self.clock) == 2 and (flag := os.environ.get("BENCHMARK_DEATH")):
            Path(flag).touch()
        return super().configure_train(*arguments)

    def aggregate_train(self, server_round, replies):
        """The round has its new global model when this returns."""
        self.clock[-1]["replies"] = time.time()
        replies, n = list(replies), WORKLOADS[plan()["workload"]].n_parties
        self.lost.append(n - sum(not reply.has_error() for reply in replies))
        done = super().aggregate_train(server_round, replies)
        self.clock[-1]["fused"] = time.time()
        return done

    def aggregate_evaluate(self, *arguments):
        """The round ends when this returns."""
        metrics = super().aggregate_evaluate(*arguments)
        self.clock[-1]["end"] = time.time()
        if metrics:
            self.accuracy = metrics["accuracy"]
        return metrics


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the rounds and write down their clocks."""
    workload = WORKLOADS[plan()["workload"]]
    n = workload.n_parties
    strategy = Clocked(
        fraction_evaluate=float(workload.evaluates),
        min_train_nodes=n,
        min_evaluate_nodes=n if workload.evaluates else 0,
        min_available_nodes=n,
    )
    if workload.n_parameters:
        arrays = ArrayRecord(large_arrays(workload.n_parameters))
    else:
        arrays = ArrayRecord(build(workload).state_dict())
    result = strategy.start(
        grid, arrays, num_rounds=plan()["rounds"], timeout=PATIENCE_S
    )
    told = {"clock": strategy.clock, "accuracy": strategy.accuracy}
    told["lost"] = strategy.lost
    first = result.arrays.to_numpy_ndarrays()[0]
    told["first_weight"] = float(first.reshape(-1)[0])
    Path(plan()["out"]).write_text(json.dumps(told))


def main() -> None:
    """Run it all on this machine, a core for each party that is training."""
    backend = {
        "init_args": {"address": "local", "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    n = WORKLOADS[plan()["workload"]].n_parties
    run_simulation(server_app, client_app, num_supernodes=n, backend_config=backend)
