"""The settings of one federation: flat keys, and what each may be."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedray.config import rules
from fedray.config.ensemble_rules import member_problems
from fedray.config.membership import presence_problems
from fedray.config.specs import (
    MEMBER,
    NAME,
    WITH,
    AttackSpec,
    Doc2VecSpec,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
    unknown,
)


@dataclass(frozen=True)
class FederationConfig:
    """All settings of one federation."""

    fusion_algorithm: str = "fedavg"  # a name of fedray.fusion
    model_type: str = "pytorch"  # a name of fedray.models
    model_file: str | None = None  # the initial model every party starts from
    doc2vec: Doc2VecSpec = field(default_factory=Doc2VecSpec)  # of model_type: doc2vec
    share: Literal["additive", "mean", "output_only"] = "additive"  # doc2vec's rows
    cap: Literal["fourth", "root", "none"] = "fourth"  # on doc2vec's summed rows
    row_momentum: float = 0.0  # of those, on the aggregator; helps short trainings
    party_dir: str | None = None  # on a party's node; None: ~/.fedray/parties
    architecture: str | None = None  # file.py:function that builds the module
    num_parties: int | None = None  # None: as many as `parties` lists
    rounds: int = 1
    epochs: int = 1  # passes over the party's own data per round
    learning_rate: float | None = None  # None: a Keras file's, else 0.01; text 0.025
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
    over_select: float = 1.0  # times as many are asked, the first to report count
    deadline_s: float | None = None  # closes a round, kills nobody; None: no sooner
    late: Literal["discard", "next_round"] = "discard"  # updates after the round closed
    round_timeout_s: float = 600.0  # later parties are killed and restarted
    placement_timeout_s: float = 60.0  # until every actor must be up
    party_cpus: float | None = None  # None: min(1, cores / actors) of its node
    parties_per_actor: int | None = None  # of a partition; None: an actor per core
    stacked: Literal["auto", "true", "false"] = "auto"  # parties of one actor together
    wire_dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # that travels
    history_parties: int = 1000  # lines of parties in a round's record; 0: none
    aggregation: Literal["always", "adaptive"] = "always"  # adaptive: when they differ
    drift_tolerance: float = 2.5  # growth of disagreement that fuses, per common step
    drift_threshold: float | None = None  # disagreement that fuses; None: as it grows
    max_rounds_apart: int | None = None  # rounds until a fusion is forced; None: any
    evaluate_every: int = 1  # rounds; 0: only after the last
    proximal_mu: float = 0.0  # pull toward the global weights (FedProx); 0 is FedAvg
    server_learning_rate: float | None = None  # None: 1 for fedavgm, else 0.01
    server_momentum: float = 0.9  # fedavgm's momentum, the others' beta1
    server_beta2: float = 0.99  # fedadam, fedyogi
    server_tau: float = 1e-3  # adaptivity of fedadagrad, fedadam, fedyogi
    candidates: int = 8  # best_model: parties whose model the others look at
    member_weights: Literal["equal", "accuracy"] = "equal"  # of an ensemble's mean
    distill: str | None = None  # ensemble: a PyTorch model that learns from the members
    distill_data: str | None = None  # npz of x or x_train: what it learns on, unlabeled
    distill_epochs: int = 10
    adopt: float = 1.0  # best_model: 1 replaces the global weights, less mixes
    n_hostile: int | None = None  # a robust rule withstands; None: as many as it can
    n_selected: int | None = None  # multi_krum averages; None: updates - n_hostile - 2
    clip_norm: float | None = None  # norm_clipping, centred_clipping: longest step
    bucketing: int = 1  # parties averaged before a robust rule sees them; 1: none
    max_update_norm: float | None = None  # longer steps are refused; None: any length
    max_refused: int | None = None  # updates in all rounds; one more ends the run
    attack: AttackSpec | None = None  # hostile parties, simulated, for research
    keep_checkpoints: int = 2  # newest checkpoints kept
    track: Literal["none", "mlflow", "tensorboard"] = "none"  # also tell rounds there
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
        for key, (low, high) in rules.BOUNDS.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                found.append(f"{key} must be between {low} and {high}, got {value}")
        for key, high in rules.ABOVE_ZERO.items():
            value = getattr(self, key)
            if value is not None and not 0 < value <= high:
                most = "" if high == math.inf else f" and at most {high:g}"
                found.append(f"{key} must be above 0{most}, got {value}")
        for key, names in CHOICES.items():
            if getattr(self, key) not in names:
                found.append(unknown(key, getattr(self, key), names))
        if self.name is not None and not NAME.fullmatch(self.name):
            found.append(f"name {self.name!r} must match {NAME.pattern}")
        found += member_problems(self)
        nothing = self.model_file is None and self.architecture is None
        made = self.model_type == "doc2vec"  # of the words that its parties use
        made |= self.has_member_models  # members are looked at instead
        if nothing and not made and not {"model_file", "architecture"} & set(unread):
            found.append("model_file is missing: give it, or an architecture")
        found += rules.apart_problems(self)
        found += rules.text_problems(self)
        if not {"parties", "partition", "num_parties"} & set(unread):
            found += rules.party_problems(self)
            found += rules.group_problems(self) if self.groups else []
            found += presence_problems(self)
        if self.attack is not None:
            found += rules.hostile_problems(self)
        return found

    def party_place(self, name: str) -> int | None:
        """Place in the config of a party of this name; None if there is none."""
        if self.parties:
            names = [party.name for party in self.parties]
            return names.index(name) if name in names else None
        number = name.removeprefix("party-")
        place = int(number) if number.isdecimal() and len(number) < 12 else -1
        is_there = 0 <= place < (self.num_parties or 0)
        return place if is_there and self.party_name(place) == name else None

    def member(self, index: int) -> "FederationConfig":
        """The config that one party trains by: its own settings over everyone's."""
        spec = self.parties[index] if self.parties else None
        given = {key: getattr(spec, key, None) for key in MEMBER}
        own = {key: value for key, value in given.items() if value not in (None, "")}
        for key in set(WITH) & set(own):
            own = WITH[key] | own
        return dataclasses.replace(self, **own) if own else self

    @property
    def closes_after_s(self) -> float:
        """When a round waits for nobody any more, seconds from its start."""
        return min(self.deadline_s or self.round_timeout_s, self.round_timeout_s)

    @property
    def has_member_models(self) -> bool:
        """Whether every party keeps a model of its own: the members of an ensemble."""
        return self.fusion_algorithm == "ensemble"

    def party_name(self, index: int) -> str:
        """Name of one party; config order is the order in which updates fold."""
        return self.parties[index].name if self.parties else f"party-{index}"

    def handler_of(self, index: int) -> str:
        """Data handler of one party: its own, or the one that all have."""
        own = self.parties[index].data_handler if self.parties else None
        return own or self.data_handler

    def handlers(self) -> list[str]:
        """Every data handler that is used, each once."""
        used = [self.handler_of(i) for i in range(len(self.parties))]
        if self.test_data or not used:
            used.append(self.data_handler)
        return list(dict.fromkeys(used))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal config."""
        plain = dataclasses.asdict(self)
        plain["parties"] = [
            {key: value for key, value in party.items() if value is not None}
            for party in plain["parties"]
        ]
        if self.attack is not None:
            plain["attack"]["parties"] = list(self.attack.parties)
        return {key: value for key, value in plain.items() if value not in (None, [])}


CHOICES = {
    key: get_args(hint)
    for key, hint in get_type_hints(FederationConfig).items()
    if get_origin(hint) is Literal
}
