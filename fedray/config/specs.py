"""Settings that are mappings of their own, and what each may be."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL = re.compile(r"[A-Za-z0-9./_-]{1,128}")
MAX_COUNT = 10_000_000  # rounds, epochs, parties: past this it is a slip of the finger
SIMILARITY = "similarity"  # what groups may go by, other than a field
MAX_ALIKE = 2_000  # parties that are compared with each other
MAX_CANDIDATES = 8  # each travels to every party
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


def group_problems(
    groups: GroupsSpec, parties: tuple[PartySpec, ...], n_parties: int
) -> list[str]:
    """What is wrong with groups; parties at fault are named."""
    if groups.by == SIMILARITY:
        found = []
        if not 2 <= n_parties <= MAX_ALIKE:
            compared = f"groups by similarity compare 2 to {MAX_ALIKE} parties, each "
            found.append(f"{compared}with each other; there are {n_parties}")
        if groups.k is not None and not 1 <= groups.k <= n_parties:
            found.append(f"groups k must be 1 to {n_parties} parties, got {groups.k}")
        return found
    found, by = [], groups.by
    if groups.k is not None:
        found.append(f"groups k is for by: similarity; {by!r} has as many as differ")
    if not parties:
        found.append(f"groups by {by!r} needs `parties` with fields, or by: similarity")
    for party in parties:
        if by not in party.fields:
            there = sorted(party.fields) or "none"
            lacks = f"party {party.name!r} has no field {by!r} to go by, it has {there}"
            found.append(f"{lacks}; give it fields: {{{by}: ...}}")
        elif not NAME.fullmatch(party.fields[by]):
            wrong = f"party {party.name!r}: field {by} {party.fields[by]!r} must match "
            found.append(wrong + NAME.pattern)
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
