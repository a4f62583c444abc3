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
class Doc2VecSpec:
    """What a doc2vec model is made of; as in gensim, but for `min_parties`."""

    vector_size: int = 100
    window: int = 5  # words to each side that are context (dm: 1)
    negative: int = 5  # words that are drawn against each true one
    min_count: int = 2  # rarer words, counted over all parties, are left out
    min_parties: int = 1  # words that fewer parties use are left out
    dm: int = 1  # 1: distributed memory, 0: distributed bag of words
    sample: float = 1e-3  # words more frequent than this are thinned out; 0: none


def doc2vec_problems(doc2vec: Doc2VecSpec) -> list[str]:
    """What is wrong with the settings of a doc2vec model."""
    bounds = {
        "vector_size": (1, 10_000),
        "window": (1, 10_000),
        "negative": (1, 1_000),
        "min_count": (1, MAX_COUNT),
        "min_parties": (1, MAX_COUNT),
        "dm": (0, 1),
        "sample": (0, 1),
    }
    return [
        f"doc2vec.{key} must be between {low} and {high}, got {getattr(doc2vec, key)}"
        for key, (low, high) in bounds.items()
        if not low <= getattr(doc2vec, key) <= high
    ]


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
