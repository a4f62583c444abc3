"""How many edges of a run have enrolled, are there and train; and what they moved."""

import time
from pathlib import Path

from fedray.edges.contacts import STATES, read_contacts
from fedray.edges.population import PRESENT_S
from fedray.edges.roster import ENROLLED, FOLDER, Roster

BYTES = ("bytes_up", "bytes_down")  # columns of the contacts, of an edge's whole life


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
