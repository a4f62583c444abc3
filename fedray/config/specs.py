"""Settings that are mappings of their own, and what each may be."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL = re.compile(r"[A-Za-z0-9./_-]{1,128}")
MAX_COUNT = 10_000_000  # rounds, epochs, parties: past this it is a slip of the finger
SIMILARITY = "similarity"  # what groups may go by, other than a field
MAX_ALIKE = 2_000  # parties that are compared with each other
MAX_CANDIDATES = 8  # each travels to every party
MEMBER = (
    "model_type", "model_file", "architecture", "optimizer", "optimizer_args",
    "learning_rate", "loss", "loss_args", "epochs",
)  # fmt: skip
WITH = {  # a member's own and what it then has, never half of everyone's
    "model_file": {"architecture": None},
    "architecture": {"model_file": None},
    "optimizer": {"optimizer_args": {}},
    "loss": {"loss_args": {}},
}
SCHEMES = ("iid", "dirichlet", "shards")


@dataclass(frozen=True)
class PartySpec:
    """A real party: its name, where its data lies, which node may hold it."""

    name: str
    data: str  # a path on the party's own node
    labels: dict[str, str] = field(default_factory=dict)  # {}: the driver's node
    fields: dict[str, str] = field(default_factory=dict)  # free; `groups` may go by one
    data_handler: str | None = None  # None: the config's
    data_root: str | None = None  # the data must lie in this folder; None: anywhere
    joined: int | None = None  # the first round it takes part in; None: 1
    left: int | None = None  # the first without it; None: it stays
    model_type: str | None = None  # these: an ensemble's member; None: the config's
    model_file: str | None = None
    architecture: str | None = None
    optimizer: str | None = None
    optimizer_args: dict[str, Any] | None = None
    learning_rate: float | None = None
    loss: str | None = None
    loss_args: dict[str, Any] | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class PartitionSpec:
    """Parties cut from one data set."""

    source: str = "mnist"  # mnist (shipped) or a path that every node can read
    samples_per_party: int | None = None  # None: all samples, shared out evenly
    scheme: str = "iid"  # iid | dirichlet | shards
    alpha: float = 0.5  # dirichlet: small is unlike, large is alike
    shards_per_party: int = 2  # shards: runs of equal labels that a party gets
    replace: bool = False  # draw with replacement


@dataclass(frozen=True)
class GroupsSpec:
    """Parties that share a global model of their own."""

    by: str  # a name of the parties' fields, or similarity of what they learn
    k: int | None = None  # similarity: how many groups; None: as many as are far apart


ATTACKS = (
    "sign_flip", "alie", "ipm", "label_flip", "gaussian", "same_value", "scaled_poison"
)  # fmt: skip


@dataclass(frozen=True)
class AttackSpec:
    """Parties that turn on their own federation, for research; fedray.fusion.attacks.

    The run says loudly that it is one.
    """

    kind: str  # sign_flip | alie | ipm | label_flip | gaussian | same_value | ...
    parties: tuple[str, ...]  # their names
    scale: float | None = None  # how hard; None: what the kind's paper or table says
    n_classes: int = 10  # label_flip, scaled_poison: labels y become n_classes - 1 - y


@dataclass(frozen=True)
class Doc2VecSpec:
    """What a doc2vec model is made of; as in gensim, but for `min_parties`."""

    vector_size: int = 100
    window: int = 5  # words to each side that are context (dm: 1)
    negative: int = 5  # words that are drawn against each true one
    min_count: int = 2  # rarer words, counted over all parties, are left out
    min_parties: int = 1  # words that fewer parties use are left out
    dm: int = 1  # 1: distributed memory, 0: distributed bag of words
    sample: float = 1e-3  # words more frequent than this are thinned out; 0: none


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Name what does not exist, the nearest that does, and all that do."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {what} {name!r}{hint} choose from {sorted(known)}"
