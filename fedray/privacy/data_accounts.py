"""What DP-SGD has spent of each data set's privacy: accounts, from a party's ledger.

Trainings count together where their data may be the same people's: data that was read
from one source, and data of one content, whatever it was called. Parts that a partition
cuts from one source are data sets of their own; another cut of it is not.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

Sampled = tuple[float, float]  # (q, z) of Poisson-sampled Gaussian noise
Spent = Counter[Sampled]  # how many steps of each
Cut = tuple[str, str]  # source, and how it was cut


@dataclass(frozen=True)
class DataSet:
    """How a party's ledger tells data sets apart.

    source : where it was read from; empty: it was given in memory.
    content : fingerprint of all its samples, in any order; empty: they are read anew
        in each pass, and have none.
    cut : how a partition cut the source; empty: it is the whole source.
    part : which part of the cut.
    """

    source: str
    content: str = ""
    cut: str = ""
    part: int = 0

    def to_line(self) -> dict[str, Any]:
        """Plain values, for a ledger's line."""
        return asdict(self)

    @property
    def keys(self) -> list[str]:
        """Data sets that have one of these in common are one."""
        keys = [f"content {self.content}"] if self.content else []
        if self.source or not self.content:
            keys.append(f"source {self.source}")
        return keys


def data_set_of(line: Mapping[str, Any]) -> DataSet:
    """The data set of a ledger's line."""
    return DataSet(**{f.name: line[f.name] for f in fields(DataSet) if f.name in line})


class Training(NamedTuple):
    """One party's training of one round, as the ledger has it.

    run : id of the run.
    tag : names everything that decides the result; in hex.
    n_samples : n, which is public.
    rate : q.
    noise_multiplier : z.
    n_steps : noised gradients that were taken.
    delta : of the run's epsilon.
    """

    run: str
    group: str
    round: int
    party: str
    tag: str
    n_samples: int
    rate: float
    noise_multiplier: float
    n_steps: int
    delta: float

    @property
    def spent(self) -> Spent:
        """What it adds to its data set's account."""
        return Counter({(self.rate, self.noise_multiplier): self.n_steps})


class Limit(NamedTuple):
    """The most that a data set may spend, and the delta that its epsilon is for."""

    epsilon: float
    delta: float


class Account:
    """All trainings of data that may be the same people's.

    by_set : each data set's trainings, oldest first.
    first : the limit that the first run began with.
    """

    def __init__(self) -> None:
        self.by_set: dict[DataSet, list[Training]] = {}
        self.first: Limit | None = None
        self._sums: dict[DataSet, Spent] = {}
        self._whole: Spent = Counter()  # of data sets that are no parts
        self._cuts: dict[Cut, Spent] = {}  # the most of each kind that a part has
        self._parts: dict[tuple[Cut, int | str], set[DataSet]] = {}

    def add(self, data: DataSet, training: Training) -> None:
        """Add a training to the account."""
        self.by_set.setdefault(data, []).append(training)
        own = self._sums.setdefault(data, Counter())
        own.update(training.spent)
        if not data.cut:
            self._whole.update(training.spent)
            return
        cut = data.source, data.cut
        for name in (data.part, data.content or data.part):
            self._parts.setdefault((cut, name), set()).add(data)
        most = self._cuts.setdefault(cut, Counter())
        most |= self._sum(self.alike(data))

    def alike(self, data: DataSet) -> set[DataSet]:
        """Data sets of the same cut, or of none, that may have samples of this one."""
        if not data.cut:
            return {one for one in self.by_set if not one.cut}
        cut = data.source, data.cut
        names = data.part, data.content or data.part
        return set().union(*(self._parts.get((cut, name), ()) for name in names))

    def spent_by(self, data: DataSet) -> Spent:
        """The most that any sample of this data has been part of.

        Of a cut, each sample is in one part: of its own cut the own part counts, of
        another one the most that any part has spent.
        """
        total = Counter(self._whole)
        for cut, most in self._cuts.items():
            is_own = cut == (data.source, data.cut)
            total.update(self._sum(self.alike(data)) if is_own else most)
        return total

    def of_run(self, run: str, data: DataSet) -> list[Training]:
        """Trainings of this data in one run."""
        alike = self.alike(data)
        own = (training for one in alike for training in self.by_set[one])
        return [training for training in own if training.run == run]

    def _sum(self, sets: Iterable[DataSet]) -> Spent:
        total: Spent = Counter()
        for one in sets:
            total.update(self._sums[one])
        return total

    def absorb(self, other: "Account") -> None:
        """Take over another account, whose data turns out to be the same."""
        for data, trainings in other.by_set.items():
            for training in trainings:
                self.add(data, training)
        if other.first and self.first:
            self.first = Limit(*map(min, self.first, other.first))
        self.first = self.first or other.first


class Accounts:
    """The accounts of all data sets of one ledger.

    owner_epsilon : the limit that the data's owner has set; None: none.
    """

    def __init__(self) -> None:
        self.owner_epsilon: float | None = None
        self._by_key: dict[str, Account] = {}
        self._tags: set[str] = set()

    def __iter__(self) -> Iterator[Account]:
        return iter({id(one): one for one in self._by_key.values()}.values())

    @property
    def keys(self) -> list[str]:
        """By which all data sets are told apart."""
        return list(self._by_key)

    def has(self, tag: str) -> bool:
        """Whether this very training is in the ledger."""
        return tag in self._tags

    def of(self, data: DataSet) -> Account:
        """The account of a data set; it is there from now on."""
        there = [self._by_key[key] for key in data.keys if key in self._by_key]
        account = there[0] if there else Account()
        for other in there[1:]:
            if other is not account:
                account.absorb(other)
                moved = [key for one in other.by_set for key in one.keys]
                self._by_key |= dict.fromkeys(moved, account)
        self._by_key |= dict.fromkeys(data.keys, account)
        return account

    def add(self, data: DataSet, training: Training) -> None:
        """Count a training."""
        self.of(data).add(data, training)
        self._tags.add(training.tag)

    def limit_of(self, data: DataSet) -> Limit | None:
        """What the data may spend; None: no run has begun with it."""
        first = self.of(data).first
        if first is None or self.owner_epsilon is None:
            return first
        return first._replace(epsilon=self.owner_epsilon)

    def forget(self, keys: Iterable[str]) -> None:
        """Begin the accounts anew that have these keys."""
        forgotten = {id(self._by_key[key]) for key in keys if key in self._by_key}
        accounts = [account for account in self if id(account) in forgotten]
        self._tags -= {
            training.tag
            for account in accounts
            for trainings in account.by_set.values()
            for training in trainings
        }
        self._by_key = {k: a for k, a in self._by_key.items() if id(a) not in forgotten}
