"""The settings of one federation: flat keys, and what each may be."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedray.config.specs import (
    LABEL,
    MAX_CANDIDATES,
    MAX_COUNT,
    NAME,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
    group_problems,
    partition_problems,
    unknown,
)


@dataclass(frozen=True)
class FederationConfig:
    """All settings of one federation."""

    fusion_algorithm: str = "fedavg"  # a name of fedray.fusion
    model_type: str = "pytorch"  # a name of fedray.models
    model_file: str | None = None  # the initial model every party starts from
    architecture: str | None = None  # file.py:function that builds the module
    num_parties: int | None = None  # None: as many as `parties` lists
    rounds: int = 1
    epochs: int = 1  # passes over the party's own data per round
    learning_rate: float | None = None  # None: a Keras file's own, else 0.01
    optimizer: str | None = None  # None: a Keras file's own, else SGD
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    loss: str | None = None  # None: a Keras file's own, else the adapter's default
    loss_args: dict[str, Any] = field(default_factory=dict)  # of a Keras loss
    data_handler: str = "mnist_pytorch"  # a name of fedray.data or file.py:ClassName
    parties: tuple[PartySpec, ...] = ()
    partition: PartitionSpec | None = None
    groups: GroupsSpec | None = None  # a global model for each; None: one for all
    test_data: str | None = None  # held by the aggregator; None: parties' own tests
    party_fraction: float = 1.0  # random subset of parties chosen each round
    quorum: float = 1.0  # share of the chosen that must report, or the round fails
    round_timeout_s: float = 600.0  # later parties are killed and restarted
    placement_timeout_s: float = 60.0  # until every actor must be up
    party_cpus: float | None = None  # None: min(1, cores / actors) of its node
    parties_per_actor: int | None = None  # of a partition; None: an actor per core
    stacked: Literal["auto", "true", "false"] = "auto"  # parties of one actor together
    wire_dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # that travels
    history_parties: int = 1000  # lines of parties in a round's record; 0: none
    aggregation: Literal["always", "adaptive"] = "always"  # adaptive: when they differ
    drift_tolerance: float = 2.5  # disagreement that fuses, beside the first step
    drift_threshold: float | None = None  # the same outright; None: from round 1
    max_rounds_apart: int | None = None  # rounds until a fusion is forced; None: any
    evaluate_every: int = 1  # rounds; 0: only after the last
    proximal_mu: float = 0.0  # pull toward the global weights (FedProx); 0 is FedAvg
    server_learning_rate: float | None = None  # None: 1 for fedavgm, else 0.01
    server_momentum: float = 0.9  # fedavgm's momentum, the others' beta1
    server_beta2: float = 0.99  # fedadam, fedyogi
    server_tau: float = 1e-3  # adaptivity of fedadagrad, fedadam, fedyogi
    candidates: int = 8  # best_model: parties whose model the others look at
    adopt: float = 1.0  # best_model: 1 replaces the global weights, less mixes
    n_hostile: int | None = None  # a robust rule withstands; None: as many as it can
    n_selected: int | None = None  # multi_krum averages; None: updates - n_hostile - 2
    clip_norm: float | None = None  # norm_clipping, centred_clipping: longest step
    bucketing: int = 1  # parties averaged before a robust rule sees them; 1: none
    keep_checkpoints: int = 2  # newest checkpoints kept
    seed: int = 0
    name: str | None = None  # of the run; None: the config file's name

    def __post_init__(self):
        if self.num_parties is None and self.parties:
            object.__setattr__(self, "num_parties", len(self.parties))

    def problems(self, unread: Collection[str] = ()) -> list[str]:
        """Every mistake that can be seen without a framework, a file or a cluster.

        `unread` names keys that could not be read: what follows from them is not told.
        """
        found = []
        for key, (low, high) in _BOUNDS.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                found.append(f"{key} must be between {low} and {high}, got {value}")
        for key, high in _ABOVE_ZERO.items():
            value = getattr(self, key)
            if value is not None and not 0 < value <= high:
                most = "" if high == math.inf else f" and at most {high:g}"
                found.append(f"{key} must be above 0{most}, got {value}")
        for key, names in CHOICES.items():
            if getattr(self, key) not in names:
                found.append(unknown(key, getattr(self, key), names))
        if self.name is not None and not NAME.fullmatch(self.name):
            found.append(f"name {self.name!r} must match {NAME.pattern}")
        nothing = self.model_file is None and self.architecture is None
        if nothing and not {"model_file", "architecture"} & set(unread):
            found.append("model_file is missing: give it, or an architecture")
        for key in ("drift_threshold", "max_rounds_apart"):
            if self.aggregation == "always" and getattr(self, key) is not None:
                found.append(f"{key} is for aggregation: adaptive")
        if not {"parties", "partition", "num_parties"} & set(unread):
            found += self._party_problems()
        return found

    def _party_problems(self) -> list[str]:
        found = []
        if bool(self.parties) == (self.partition is not None):
            found.append("give either parties or a partition to cut them from")
        if self.partition is not None:
            found += partition_problems(self.partition)
            if self.num_parties is None:
                found.append("num_parties is missing: a partition does not tell it")
        elif self.parties_per_actor not in (None, 1):
            found.append(
                "parties_per_actor is for a partition: each of `parties` has "
                "an actor of its own"
            )
        if self.parties and self.num_parties != len(self.parties):
            listed = f"num_parties is {self.num_parties}, but parties lists "
            found.append(listed + str(len(self.parties)))
        names = [party.name for party in self.parties]
        for name in names:
            if not NAME.fullmatch(name):
                found.append(f"party name {name!r} must match {NAME.pattern}")
        for party in self.parties:
            for text in (*party.labels, *party.labels.values()):
                if not LABEL.fullmatch(text):
                    wrong = f"party {party.name!r}: label {text!r} must match "
                    found.append(wrong + LABEL.pattern)
        if self.groups is not None:
            found += group_problems(self.groups, self.parties, self.num_parties or 0)
        for name in sorted({name for name in names if names.count(name) > 1}):
            found.append(f"party name {name!r} is given more than once")
        return found

    def party_name(self, index: int) -> str:
        """Name of one party; config order is the order in which updates fold."""
        return self.parties[index].name if self.parties else f"party-{index}"

    def handler_of(self, index: int) -> str:
        """Data handler of one party: its own, or the one that all have."""
        own = self.parties[index].data_handler if self.parties else None
        return own or self.data_handler

    def handlers(self) -> list[str]:
        """Every data handler that is named, each once."""
        own = (party.data_handler for party in self.parties)
        return list(dict.fromkeys([self.data_handler, *filter(None, own)]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal config."""
        plain = dataclasses.asdict(self)
        plain["parties"] = [
            {key: value for key, value in party.items() if value is not None}
            for party in plain["parties"]
        ]
        return {key: value for key, value in plain.items() if value not in (None, [])}


CHOICES = {
    key: get_args(hint)
    for key, hint in get_type_hints(FederationConfig).items()
    if get_origin(hint) is Literal
}
_BOUNDS = {
    "num_parties": (1, MAX_COUNT),
    "rounds": (1, MAX_COUNT),
    "epochs": (1, MAX_COUNT),
    "batch_size": (1, MAX_COUNT),
    "evaluate_every": (0, MAX_COUNT),
    "keep_checkpoints": (1, MAX_COUNT),
    "proximal_mu": (0, math.inf),
    "server_momentum": (0, 1),
    "server_beta2": (0, 1),
    "party_cpus": (0, 10_000),
    "parties_per_actor": (1, MAX_COUNT),
    "drift_threshold": (0, math.inf),
    "candidates": (1, MAX_CANDIDATES),
    "max_rounds_apart": (1, MAX_COUNT),
    "history_parties": (0, MAX_COUNT),
    "n_hostile": (0, MAX_COUNT),
    "n_selected": (1, MAX_COUNT),
    "bucketing": (1, MAX_COUNT),
    "seed": (0, 2**63 - 1),
}
_ABOVE_ZERO = {
    "party_fraction": 1,
    "quorum": 1,
    "learning_rate": math.inf,
    "round_timeout_s": math.inf,
    "placement_timeout_s": math.inf,
    "server_learning_rate": math.inf,
    "server_tau": math.inf,
    "drift_tolerance": math.inf,
    "adopt": 1,
    "clip_norm": math.inf,
}
