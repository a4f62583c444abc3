"""Settings that are mappings of their own, and what each may be."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL = re.compile(r"[A-Za-z0-9./_-]{1,128}")
MAX_COUNT = 10_000_000  # rounds, epochs, parties: past this it is a slip of the finger
SCHEMES = ("iid", "dirichlet", "shards")


@dataclass(frozen=True)
class PartySpec:
    """A real party: its name, where its data lies, which node may hold it."""

    name: str
    data: str  # a path on the party's own node
    labels: dict[str, str] = field(default_factory=dict)  # {}: the driver's node
    data_handler: str | None = None  # None: the config's
    data_root: str | None = None  # the data must lie in this folder; None: anywhere


@dataclass(frozen=True)
class PartitionSpec:
    """Parties cut from one data set."""

    source: str = "mnist"  # mnist (shipped) or a path that every node can read
    samples_per_party: int | None = None  # None: all samples, shared out evenly
    scheme: str = "iid"  # iid | dirichlet | shards
    alpha: float = 0.5  # dirichlet: small is unlike, large is alike
    shards_per_party: int = 2  # shards: runs of equal labels that a party gets
    replace: bool = False  # draw with replacement


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


def attack_problems(attack: AttackSpec) -> list[str]:
    """What is wrong with an attack, whoever the parties are."""
    found = []
    if attack.kind not in ATTACKS:
        found.append(unknown("attack kind", attack.kind, ATTACKS))
    if not attack.parties:
        found.append("attack.parties is empty: name those that are hostile")
    if len(set(attack.parties)) < len(attack.parties):
        found.append("attack.parties names a party more than once")
    if attack.kind in ("alie", "label_flip") and attack.scale is not None:
        found.append(f"attack.scale does not apply to {attack.kind}")
    if not 2 <= attack.n_classes <= MAX_COUNT:
        found.append(f"attack.n_classes must be at least 2, got {attack.n_classes}")
    return found


def partition_problems(partition: PartitionSpec) -> list[str]:
    """What is wrong with a partition, whatever its data."""
    found = []
    if partition.scheme not in SCHEMES:
        found.append(unknown("partition scheme", partition.scheme, SCHEMES))
    if not partition.alpha > 0:
        found.append(f"partition alpha must be above 0, got {partition.alpha}")
    for key in ("samples_per_party", "shards_per_party"):
        value = getattr(partition, key)
        if value is not None and not 1 <= value <= MAX_COUNT:
            found.append(f"partition {key} must be at least 1, got {value}")
    return found


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Name what does not exist, the nearest that does, and all that do."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {what} {name!r}{hint} choose from {sorted(known)}"
