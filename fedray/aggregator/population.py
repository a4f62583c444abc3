"""Edges of a run: who has enrolled, who of them is chosen for a round, and counts.

Whom a round has chosen is on disk before anyone is asked, so that a round which is run
again after a crash asks the same edges, whoever is there by then.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedray import policy
from fedray.checkpoint import write_file
from fedray.config import FederationConfig
from fedray.config.edges import POPULATION, EdgesSpec
from fedray.edges.contacts import STATES, read_contacts
from fedray.edges.population import PRESENT_S
from fedray.edges.roster import ENROLLED, FOLDER, Roster
from fedray.errors import JoinFailed, format_count
from fedray.messages import RoundReport

POLL_S = 0.5  # between two looks who has enrolled
BYTES = ("bytes_up", "bytes_down")  # columns of the contacts, of an edge's whole life
CHOSEN = "chosen.json"  # in the folder of the edges: of the round under way


class Population:
    """Edges of one run by their places in it: `POPULATION` and an edge's number.

    folder : of the run.
    """

    def __init__(self, folder: Path, config: FederationConfig, edges: EdgesSpec):
        self.folder, self.config, self.edges = folder, config, edges
        self.roster = Roster(folder)
        self.counts: Counter[int] = Counter()  # rounds that each place was chosen for

    def places(self) -> np.ndarray:
        """Places of all that have enrolled, and have not left since, ascending."""
        self.roster.refresh()
        numbers = [
            edge.number
            for edge in self.roster.edges
            if edge.state == ENROLLED and edge.own_name is None
        ]
        return POPULATION + np.array(numbers[: self.edges.max], np.int64)

    def wait(self, stop: threading.Event) -> None:
        """Wait until as many have enrolled as round 1 needs.

        Raises
        ------
        JoinFailed
            If they have not within `round_timeout_s`.
        """
        until = time.monotonic() + self.config.round_timeout_s
        while (n_there := len(self.places())) < self.edges.min and not stop.is_set():
            if time.monotonic() > until:
                needed = f"edges.min is {self.edges.min}"
                there = format_count(n_there, "edge has", "edges have")
                why = f"{there} enrolled within round_timeout_s, {needed}"
                raise JoinFailed({"edges": why})
            stop.wait(POLL_S)

    def recount(self, reports: Iterable[RoundReport]) -> None:
        """Count again who was chosen in the rounds that are done."""
        for report in reports:
            for first, last in report.edges.get("chosen", ()):
                self.counts.update(range(POPULATION + first, POPULATION + last + 1))

    def choose(self, places: np.ndarray, round: int) -> np.ndarray:
        """Those that train in a round, ascending.

        Parties that the config lists are chosen as ever; of the population's edges that
        were heard of a short time ago those that were chosen least often before, and
        among these by chance, from the run's seed.

        places : of all that may be chosen.
        """
        is_listed, config = places < POPULATION, self.config
        edges, listed = self._choose(places[~is_listed], round), places[is_listed]
        if len(listed):
            n_chosen = policy.count_chosen(len(listed), config.party_fraction)
            select = policy.SELECTIONS[config.selection]
            listed = select(listed, n_chosen, config.seed, round)
        return np.concatenate([listed, edges])

    def _choose(self, places: np.ndarray, round: int) -> np.ndarray:
        if (before := self._read(round)) is not None:
            chosen = before[np.isin(before, places)]
        else:
            present = self._present(places)
            n_chosen = self.edges.per_round or policy.count_chosen(
                len(present), self.config.party_fraction
            )
            chosen = policy.choose_fairly(
                present, self._counts_of(present), n_chosen, self.config.seed, round
            )
            self._write(round, chosen)
        self.counts.update(chosen.tolist())
        return chosen

    def _counts_of(self, places: np.ndarray) -> np.ndarray:
        return np.array([self.counts[place] for place in places.tolist()], np.int64)

    def _present(self, places: np.ndarray) -> np.ndarray:
        """Those that were heard of a short time ago; all if nobody was."""
        numbers = places - POPULATION
        folder = self.folder / FOLDER
        rows = read_contacts(folder, int(numbers.max(initial=-1)) + 1)
        is_present = rows["last_seen"][numbers] > time.time() - PRESENT_S
        return places[is_present] if is_present.any() else places

    def _read(self, round: int) -> np.ndarray | None:
        try:
            plain = json.loads((self.folder / FOLDER / CHOSEN).read_text("utf-8"))
            return np.array(plain["places"]) if plain["round"] == round else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, round: int, places: np.ndarray) -> None:
        plain = {"round": round, "places": places.tolist()}
        write_file(self.folder / FOLDER, CHOSEN, json.dumps(plain) + "\n")


class EdgeCounts:
    """Counts for a round's record, from the files that the door writes.

    folder : of the run.
    """

    def __init__(self, folder: Path):
        self.folder, self.roster = folder, Roster(folder)
        self._before = dict.fromkeys(BYTES, 0)

    def count(self) -> dict[str, int]:
        """Edges by state, and the bytes that moved since the last call."""
        self.roster.refresh()
        numbers = [e.number for e in self.roster.edges if e.state == ENROLLED]
        rows = read_contacts(self.folder / FOLDER, len(self.roster.edges))
        totals = {name: int(rows[name].sum()) for name in BYTES}
        moved = {name: max(0, totals[name] - self._before[name]) for name in BYTES}
        self._before = totals
        rows = rows[numbers]
        is_present = rows["last_seen"] > time.time() - PRESENT_S
        is_training = is_present & (rows["state"] == STATES.index("training"))
        return {
            "enrolled": len(numbers),
            "present": int(is_present.sum()),
            "training": int(is_training.sum()),
            **moved,
        }
