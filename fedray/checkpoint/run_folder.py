"""One run's folder: config, history, and checkpoints that are whole or not there."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray import weights as arrays
from fedray.errors import CheckpointError
from fedray.messages import RoundReport
from fedray.weights import Weights

ROUND = "round.json"
MAKE_ROOM = "Make room, then go on with --resume"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on after `round`."""

    round: int
    weights: Weights
    state: dict[str, Weights]
    report: RoundReport


class RunFolder:
    """Reads and writes one run's folder; the only writer of its checkpoints.

    group : whose checkpoints; all groups share one history.
    """

    def __init__(self, path: Path, keep: int = 2, group: str | None = None):
        self.path, self.keep, self.group = Path(path), keep, group
        self.checkpoints = self.path / "checkpoints" / (group or "")
        self.history_file = self.path / "history.jsonl"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint aside, rename it, then add its line to the history.

        Raises
        ------
        CheckpointError
            If the disk refuses; what was there before is still there.
        """
        final = self._folder(checkpoint.round)
        aside = final.with_name(final.name + ".part")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            line = _line(checkpoint.report)
            _write(aside, checkpoint, line)
            shutil.rmtree(final, ignore_errors=True)
            durable_files.move(aside, final)
            self._append(line)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            size = arrays.n_bytes(checkpoint.weights)
            reason = (
                f"{error.strerror or error} while writing {size} bytes of weights; "
                "earlier checkpoints are kept"
            )
            raise CheckpointError(str(final), reason, MAKE_ROOM) from None
        for old in self._rounds()[: -self.keep]:
            shutil.rmtree(self._folder(old), ignore_errors=True)

    def note(self, report: RoundReport) -> None:
        """Add the line of a round that left the global weights as they were.

        Raises
        ------
        CheckpointError
            If the disk refuses.
        """
        try:
            self._append(_line(report))
        except OSError as error:
            file, reason = str(self.history_file), str(error.strerror or error)
            raise CheckpointError(file, reason, MAKE_ROOM) from None

    def n_kept(self) -> int:
        """The last round whose result is here; later ones would be run again."""
        last: dict[str | None, int] = {}
        for line in self._lines():
            done = line.round if line.aggregated else 0
            last[line.group] = max(last.get(line.group, 0), done)
        return min(last.values(), default=0)

    def groups(self) -> list[str | None]:
        """Names of the groups that have a global model; None where there is but one."""
        return list(dict.fromkeys(line.group for line in self._lines()))

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be read, and what was wrong with newer ones.

        Raises
        ------
        CheckpointError
            If there are checkpoints and none can be read.
        """
        wrong = []
        for round in reversed(self._rounds()):
            try:
                return _read(self._folder(round)), wrong
            except Exception as error:  # a damaged zip raises of many kinds
                kind = type(error).__name__
                why = " ".join(str(error).split())[:300]
                wrong.append(f"{self._folder(round).name} is damaged ({kind}: {why})")
        if wrong:
            raise CheckpointError(str(self.checkpoints), "; ".join(wrong))
        return None, wrong

    def history(self) -> list[RoundReport]:
        """Every whole line of history.jsonl."""
        return list(self._lines())

    def rewind(self, checkpoint: Checkpoint | None) -> list[RoundReport]:
        """Make the history end with the checkpoint, whatever a crash left behind.

        Lines of other groups stay. Returns those of this one.
        """
        done, group = checkpoint.round if checkpoint else 0, self.group
        lines = [r for r in self._lines() if r.group != group or r.round < done]
        if checkpoint:
            lines.append(checkpoint.report)
        lines.sort(key=lambda line: line.round)
        durable_files.write_text(self.history_file, "".join(map(_line, lines)))
        return [line for line in lines if line.group == group]

    def is_started(self) -> bool:
        """Does the folder hold a round of some run?"""
        return bool(self._rounds() or self.history())

    def follow(self) -> Iterator[list[RoundReport]]:
        """Each time it is asked, the rounds whose lines have come since; each once.

        The aggregator may replace the file by a shorter one; it is then read anew.
        """
        at, last = 0, {}  # by group: the last round told
        while True:
            lines, at = _lines_from(self.history_file, at)
            new = [line for line in lines if line.round > last.get(line.group, 0)]
            last |= {line.group: line.round for line in new}
            yield new

    def _lines(self) -> Iterator[RoundReport]:
        if not self.history_file.exists():
            return
        for line in self.history_file.read_bytes().splitlines():
            try:
                yield _report(line)
            except (ValueError, TypeError, KeyError, RecursionError):
                return  # a line cut by a crash is the last one

    def _append(self, line: str) -> None:
        with self.history_file.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _folder(self, round: int) -> Path:
        return self.checkpoints / f"round-{round:05d}"

    def _rounds(self) -> list[int]:
        if not self.checkpoints.is_dir():
            return []
        names = (p.name.removeprefix("round-") for p in self.checkpoints.iterdir())
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,9}", name))


def _lines_from(file: Path, at: int) -> tuple[list[RoundReport], int]:
    """Whole lines from a place in the file on, and the place after them."""
    if not file.exists():
        return [], 0
    with file.open("rb") as lines:
        at = lines.seek(at if file.stat().st_size >= at else 0)
        data = lines.read()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        found = [RoundReport.from_json(json.loads(x)) for x in whole.splitlines()]
        return found, at + len(whole)
    except (ValueError, TypeError, KeyError):
        return [], 0  # another file than before: from its start, the next time


def _write(folder: Path, checkpoint: Checkpoint, line: str) -> None:
    arrays.save(checkpoint.weights, folder / "weights.npz")
    for key, part in checkpoint.state.items():
        arrays.save(part, folder / f"state-{key}.npz")
    (folder / ROUND).write_text(line, encoding="utf-8")
    for file in folder.iterdir():
        durable_files.flush(file)


def _read(folder: Path) -> Checkpoint:
    report = _report((folder / ROUND).read_bytes())
    if folder.name != f"round-{report.round:05d}":
        raise ValueError(f"it says it is of round {report.round}")
    state = {
        path.stem.removeprefix("state-"): arrays.load(path)
        for path in sorted(folder.glob("state-*.npz"))
    }
    return Checkpoint(report.round, arrays.load(folder / "weights.npz"), state, report)


def _report(line: bytes) -> RoundReport:
    report = RoundReport.from_json(json.loads(line))
    if type(report.round) is not int or report.round < 1:
        raise ValueError("no round")
    if type(report.refused) is not int:
        raise ValueError("no count of the refused")
    return report


def _line(report: RoundReport) -> str:
    plain = report.to_json()
    try:
        text = json.dumps(plain, allow_nan=False)
    except ValueError:  # looked for only then: there may be very many parties
        text = json.dumps(_finite(plain), allow_nan=False)
    return text + "\n"


def _finite(plain: Any) -> Any:
    """Plain data with NaN and infinity as None: JSON has neither."""
    if isinstance(plain, dict):
        return {key: _finite(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_finite(value) for value in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return plain
