"""What a party's books say of central releases: rounds whose sums it was part of."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fedray.privacy.accounting import Release, epsilon_of


class CentralRun(NamedTuple):
    """What the config of a run's aggregator claims of its releases.

    source : what the party's data was read from; its name where that was memory.
    cut : how a partition cut it; empty: it is the whole.
    noise_multiplier : z, as `fedray.privacy.accounting.Release` has it.
    cycle, band, participations : 1 but for cyclic sampling.
    epsilon : that the run stops at; None: it has no such limit.
    is_secure : whether the aggregator saw sums of parties only.
    """

    run: str
    group: str
    source: str
    cut: str
    mechanism: str
    sampling: str
    noise_multiplier: float
    cycle: int
    band: int
    participations: int
    epsilon: float | None
    delta: float
    is_secure: bool


class CentralSpent(NamedTuple):
    """What releases of all runs have told of one source's data.

    n_parts : of the cut that took part in any.
    releases : of the part that was in most, by run.
    """

    source: str
    cut: str
    n_parts: int
    epsilon: float
    delta: float
    releases: Counter[CentralRun]


class CentralRecords:
    """Rounds of all runs in which parties of one `party_dir` took part."""

    def __init__(self) -> None:
        self.rounds: dict[CentralRun, dict[tuple[int, str], list[range]]] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line of the ledger."""
        run = CentralRun(**{name: line[name] for name in CentralRun._fields})
        at = line["round"], line["weights"]
        there = self.rounds.setdefault(run, {}).setdefault(at, [])
        there.extend(range(first, last + 1) for first, last in line["parts"])

    def find(self, run: str, group: str, source: str, cut: str) -> CentralRun | None:
        """What is known of a run's releases of a source; None: nothing."""
        place = run, group, source, cut
        return next((one for one in self.rounds if one[:4] == place), None)

    def has(self, run: CentralRun, at: tuple[int, str], parts: Iterable[int]) -> bool:
        """Whether a round that was trained from these weights is recorded for all."""
        there = self.rounds.get(run, {}).get(at, [])
        return all(any(part in some for some in there) for part in parts)

    def spent(self) -> Iterator[CentralSpent]:
        """What the releases have told of each source: of the part that was in most."""
        sources: dict[tuple[str, str], list[CentralRun]] = defaultdict(list)
        for run in self.rounds:
            sources[run.source, run.cut].append(run)
        for (source, cut), runs in sources.items():
            delta = min(run.delta for run in runs)
            by_part: dict[int, list[tuple[CentralRun, int]]] = defaultdict(list)
            for run in runs:
                for (number, _), ranges in self.rounds[run].items():
                    for part in {part for some in ranges for part in some}:
                        by_part[part].append((run, number))
            alike = {tuple(own) for own in by_part.values()}
            epsilon, most = max(
                (epsilon_of(itertools.starmap(_release, own), delta), own)
                for own in alike
            )
            counts = Counter(run for run, _ in most)
            yield CentralSpent(source, cut, len(by_part), epsilon, delta, counts)


def _release(run: CentralRun, number: int) -> Release:
    """As accounting has it, for someone who knows that the party was in it."""
    release = Release(
        noise_multiplier=run.noise_multiplier,
        mechanism=run.mechanism,
        sampling=run.sampling,
        cycle=run.cycle,
        band=run.band,
        participations=run.participations,
        run=run.run,
        group=run.group,
        round=number,
    )
    return release.for_participant()


def ranges_of(places: Iterable[int]) -> list[list[int]]:
    """Ascending whole numbers as ranges: first and last of each."""
    ranges: list[list[int]] = []
    for place in places:
        if ranges and place == ranges[-1][1] + 1:
            ranges[-1][1] = place
        else:
            ranges.append([place, place])
    return ranges
