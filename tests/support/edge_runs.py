"""A small run for edges: its plan and weights as a service has them, and its oracle."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedray import models
from fedray.config import FederationConfig, parse
from fedray.edges import tensor_file
from fedray.edges.plan import write_plan
from fedray.messages import ActorLocation
from fedray.party import GroupPlan, PartyGroup
from fedray.weights import Weights, encoding

torch.set_num_threads(1)  # as at an edge: the same bits
RUN_ID = f"tiny-{'cd' * 16}"  # as a run's folder has it
HANDLER = "mnist_pytorch"


@dataclass
class EdgeRun:
    """One party's part of a run.

    plan, base : as an edge fetches them.
    """

    config: FederationConfig
    group_plan: GroupPlan
    weights: Weights
    folder: Path
    data: str
    plan: bytes = b""
    base: bytes = b""
    _group: PartyGroup | None = field(default=None, repr=False)

    @property
    def group(self) -> PartyGroup:
        """The party as it would be in the cluster."""
        if self._group is None:
            self._group = PartyGroup(self.group_plan, lambda: ActorLocation("here"))
        return self._group

    @property
    def payload(self) -> Weights:
        return encoding.pack(self.weights, self.config.wire_dtype)

    def update(self, round: int) -> Weights:
        """What the party in the cluster would send, copied."""
        _, update = self.group.train(round, np.array([0]), self.payload)
        return {name: array.copy() for name, array in update.weights.items()}

    def words(self, url: str, state: Path, *more) -> list:
        """Of a command that takes part."""
        own = ["--data", self.data, "--data-handler", HANDLER, "--state-dir", state]
        return ["--url", url, *own, *more]


def make_run(folder: Path, data: str, name: str = "a", **settings) -> EdgeRun:
    folder.mkdir(exist_ok=True)
    if not {"architecture", "model_file", "model_type"} & settings.keys():
        settings = {"model_file": str(folder / "model.pt"), **settings}
        torch.manual_seed(1)
        layers = nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)
        torch.save(nn.Sequential(*layers), settings["model_file"])
    party = {"name": name, "data": data}
    own = {"party_dir": str(folder / "party"), "parties": [party], "rounds": 3}
    config, problems = parse({"data_handler": HANDLER, "seed": 5, **own, **settings})
    assert not problems, problems
    blueprint, weights = models.read(config)
    config = blueprint.settle(config)
    handler = config.data_handler
    group_plan = GroupPlan(name, range(1), config, blueprint, handler, "tiny")
    run = EdgeRun(config, group_plan, weights, folder, data)
    run.plan, run.base = write_plan(group_plan, RUN_ID), to_file(folder, run.payload)
    return run


def to_file(folder: Path, weights: Weights) -> bytes:
    path = folder / "weights.safetensors"
    tensor_file.write(path, weights)
    return path.read_bytes()


def from_file(folder: Path, data: bytes) -> tensor_file.TensorFile:
    path = folder / "update.safetensors"
    path.write_bytes(data)
    return tensor_file.read(path)
