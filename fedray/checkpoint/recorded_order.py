"""The order in which updates were fused in an asynchronous run, for a replay of it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.errors import RunFolderError
from fedray.messages import RoundReport

FILE = "replay.jsonl"  # in the folder of a run that follows another one's order
Task = tuple[int, int]  # a party's place, and the version of the weights it trains from


@dataclass(frozen=True)
class RecordedOrder:
    """Which updates each step of one global model is made of, by round."""

    rounds: dict[int, list[Task]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, group: str | None) -> "RecordedOrder | None":
        """What a run's folder says that it is to follow; None: nothing.

        Raises
        ------
        RunFolderError
            If the file is damaged.
        """
        try:
            lines = (folder / FILE).read_text("utf-8").splitlines()
            plain = [json.loads(line) for line in lines]
            own = [line for line in plain if line["group"] == group]
            return cls({line["round"]: _tasks(line) for line in own})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            reason = f"its {FILE} is damaged"
            raise RunFolderError(str(folder), reason, "Replay the run again") from None

    def later_versions(self, round: int) -> list[int]:
        """Versions until a round from which updates of later rounds are trained."""
        later = (o for number, o in self.rounds.items() if number > round)
        return sorted({v for order in later for _, v in order if v <= round})


def _tasks(line: dict[str, Any]) -> list[Task]:
    """What a round's line says, if parties can have trained so."""
    tasks = [(place, version) for place, version in line["order"]]
    for place, version in tasks:
        if type(place) is not int or type(version) is not int or place < 0:
            raise TypeError("no place or version")
        if not 0 <= version < line["round"]:
            raise ValueError("weights that were not there yet")
    return tasks


def write_order(folder: Path, history: Iterable[RoundReport]) -> None:
    """Write into a new run's folder which order it is to follow."""
    lines = (
        json.dumps({"round": r.round, "group": r.group, "order": r.order})
        for r in history
    )
    durable_files.make_folder(folder)
    durable_files.write_text(folder / FILE, "".join(f"{line}\n" for line in lines))
