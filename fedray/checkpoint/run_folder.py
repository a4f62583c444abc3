"""A run's folder: history.jsonl, and checkpoints that are written atomically."""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray import weights as arrays
from fedray.checkpoint.frozen import RESTORE_IT, read_frozen, read_record
from fedray.errors import CheckpointError, RunFolderError, format_count
from fedray.messages import RoundReport
from fedray.privacy.ledger import Anchor
from fedray.privacy.run_ledger import RunLedger, has_ledger
from fedray.weights import Weights

ROUND, LEDGER_ANCHOR = "round.json", "ledger.json"
FAILURE = "failure.txt"
RESTORE = (
    "Restore checkpoints/, or begin a new run: another folder with --run-dir, or "
    "another name=..."
)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on after `round`.

    anchor : of the run's privacy ledger, if it has one.
    """

    round: int
    weights: Weights
    state: dict[str, Weights]
    report: RoundReport
    anchor: Anchor | None = None


class RunFolder:
    """Reads and writes a run's folder.

    Parameters
    ----------
    path : Path
        The folder.
    keep : int
        Checkpoints to keep.
    group : str, optional
        Whose checkpoints; all groups share one history.
    """

    def __init__(self, path: Path, keep: int = 2, group: str | None = None):
        self.path, self.keep, self.group = Path(path), keep, group
        self.checkpoints = self.path / "checkpoints" / (group or "")
        self.history_file = self.path / "history.jsonl"

    def save(self, checkpoint: Checkpoint, keep: Collection[int] = ()) -> None:
        """Write a checkpoint atomically, then append its line to the history.

        keep : rounds whose checkpoints stay, though there are newer ones.

        Raises
        ------
        CheckpointError
            If it cannot be written; earlier checkpoints are kept.
        """
        final = self._folder(checkpoint.round)
        aside = final.with_name(final.name + ".part")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            durable_files.make_folder(self.checkpoints)
            aside.mkdir()
            line = _line(checkpoint.report)
            _write(aside, checkpoint, line)
            shutil.rmtree(final, ignore_errors=True)
            durable_files.move(aside, final)
            self._append(line)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            size = arrays.n_bytes(checkpoint.weights)
            what = f" while writing {size} bytes of weights; earlier checkpoints"
            raise _write_error(error, final, f"{what} are kept") from None
        # a damaged one may be newer, of a run that went on from an older one
        rounds = [one for one in self.saved_rounds() if one <= checkpoint.round]
        for old in rounds[: -self.keep]:
            if old not in keep:
                shutil.rmtree(self._folder(old), ignore_errors=True)

    def append_line(self, report: RoundReport) -> None:
        """Append the line of a round that did not change the global weights.

        Raises
        ------
        CheckpointError
            If it cannot be written.
        """
        try:
            self._append(_line(report))
        except OSError as error:
            raise _write_error(error, self.history_file) from None

    def write_failure(self, reason: str) -> None:
        """Keep why the run failed; an empty reason forgets an earlier one.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        if reason:
            durable_files.write_text(self.path / FAILURE, f"{reason}\n")
        else:
            (self.path / FAILURE).unlink(missing_ok=True)

    def failure(self) -> str:
        """Why the run failed or was stopped; empty if it did not, or goes on."""
        try:
            return (self.path / FAILURE).read_text("utf-8").strip()
        except (OSError, ValueError):
            return ""

    def last_saved_round(self) -> int:
        """The last round whose weights are saved; a resumed run goes on after it.

        With groups that of the one that is least far and has not stopped.
        """
        last: dict[str | None, int] = {}
        stopped = dict[str | None, bool]()
        for line in self._lines():
            done = line.round if line.aggregated or line.skipped else 0
            last[line.group] = max(last.get(line.group, 0), done)
            stopped[line.group] = bool(line.stop_reason)
        training = [done for group, done in last.items() if not stopped[group]]
        return min(training) if training else max(last.values(), default=0)

    def groups(self) -> list[str | None]:
        """Names of the groups with a global model each; [None] where there is one."""
        return list(dict.fromkeys(line.group for line in self._lines()))

    def newest_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """Read the newest checkpoint that is intact; also says why newer ones are not.

        Raises
        ------
        CheckpointError
            If there are checkpoints and none can be read.
        """
        damage: list[str] = []
        for round in reversed(self.saved_rounds()):
            try:
                return _read(self._folder(round)), damage
            except Exception as error:  # a damaged zip raises of many kinds
                damage.append(f"{self._folder(round).name} {_damage(error)}")
        if damage:
            raise CheckpointError(str(self.checkpoints), "; ".join(damage))
        return None, damage

    def checkpoint_of(self, round: int) -> Checkpoint:
        """The checkpoint of a round, with whole weights.

        Raises
        ------
        CheckpointError
            If there is none, or it is damaged.
        RunFolderError
            If tensors that do not travel cannot be read.
        """
        try:
            checkpoint = _read(self._folder(round))
        except Exception as error:  # a damaged zip raises of many kinds
            raise CheckpointError(str(self._folder(round)), _damage(error)) from None
        return replace(checkpoint, weights=self.complete(checkpoint.weights))

    def last_checkpoint(self) -> Checkpoint:
        """The newest intact checkpoint of a run that has saved one, with whole weights.

        Raises
        ------
        CheckpointError
            If there is none.
        RunFolderError
            If tensors that do not travel cannot be read.
        """
        checkpoint, _ = self.newest_checkpoint()
        if checkpoint is None:
            raise CheckpointError(str(self.checkpoints), "there is none yet")
        return replace(checkpoint, weights=self.complete(checkpoint.weights))

    def complete(self, weights: Weights) -> Weights:
        """A checkpoint's weights and those that the run keeps once, in order.

        Raises
        ------
        RunFolderError
            If these cannot be read.
        """
        record = read_record(self.path, self.group)
        if record is None:
            return weights
        frozen = read_frozen(self.path, self.group) if record.fixed else {}
        return record.complete({**frozen, **weights})

    def history(self) -> list[RoundReport]:
        """Every complete line of history.jsonl."""
        return list(self._lines())

    def rewind(self, checkpoint: Checkpoint | None) -> list[RoundReport]:
        """Truncate the history after a checkpoint, as a resumed run needs it.

        Lines of other groups stay. Returns those of this one.

        Raises
        ------
        CheckpointError
            If the history cannot be written, or has rounds whose checkpoints are all
            gone; it is as before.
        """
        last_round, group = checkpoint.round if checkpoint else 0, self.group
        lines = list(self._lines())
        fused = [r.round for r in lines if r.group == group and r.aggregated]
        if fused and checkpoint is None:
            raise CheckpointError(
                str(self.checkpoints), _lost_checkpoints(fused, group), RESTORE
            )
        lines = [r for r in lines if r.group != group or r.round < last_round]
        if checkpoint:
            lines.append(checkpoint.report)
        lines.sort(key=lambda line: line.round)
        try:
            durable_files.write_text(self.history_file, "".join(map(_line, lines)))
        except OSError as error:
            raise _write_error(error, self.history_file) from None
        return [line for line in lines if line.group == group]

    def check(self) -> None:
        """See that a run can go on from what is in its folder, of each of its groups.

        Raises
        ------
        RunFolderError
            If the history was altered, or the checkpoints of its rounds are gone.
        """
        by_group = defaultdict[str | None, list[RoundReport]](list)
        for line in self._lines():
            by_group[line.group].append(line)
        for group, lines in by_group.items():
            for before, after in itertools.pairwise(line.round for line in lines):
                if after <= before:
                    raise self._altered(f"round {after} follows round {before}")
            fused = [line.round for line in lines if line.aggregated]
            if fused and not RunFolder(self.path, self.keep, group).saved_rounds():
                reason = f"cannot go on: {_lost_checkpoints(fused, group)}"
                raise RunFolderError(str(self.path), reason, RESTORE)

    def check_ledger(self) -> None:
        """See that a run's privacy ledger is what its checkpoints know, if it has one.

        Raises
        ------
        LedgerError
            If it or its key were altered or do not belong together, or if they lie in a
            copy of the run's folder.
        """
        anchors = self.path.glob(f"checkpoints/**/{LEDGER_ANCHOR}")
        if not has_ledger(self.path) and not any(anchors):
            return
        ledger = RunLedger(self.path, "").ledger
        for group in self.groups() or [None]:
            folder = RunFolder(self.path, self.keep, group)
            for round in folder.saved_rounds():
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    anchor = _read_anchor(folder._folder(round))
                    if anchor is not None:
                        ledger.require(anchor, f"the checkpoint of round {round}")

    def missing_rounds(self, checkpoint: Checkpoint | None) -> list[str]:
        """Says which rounds are trained again though the history has them as done."""
        last = checkpoint.round if checkpoint else 0
        own = (r for r in self._lines() if r.group == self.group and r.aggregated)
        again = {r.round for r in own if r.round > last} - {*self.saved_rounds()}
        if not again:
            return []
        rounds = format_count(len(again), "round")
        of_group = f" of {self.group}" if self.group else ""
        done = f"history.jsonl has {rounds}{of_group} after round {last} as done"
        return [f"{done}, but checkpoints/ does not: trained again"]

    def _altered(self, reason: str) -> RunFolderError:
        what = f"its history.jsonl has been altered: {reason}"
        return RunFolderError(str(self.path), what, RESTORE_IT)

    def is_started(self) -> bool:
        """Whether the folder holds a round of a run, or has released of one."""
        is_saved = self.saved_rounds() or self.history()
        return bool(is_saved or has_ledger(self.path))

    def follow(self) -> Iterator[list[RoundReport]]:
        """Yield, at each step, the rounds appended since the last one; each once.

        The aggregator may replace the file by a shorter one; it is then read again.
        """
        offset = 0
        last: dict[str | None, int] = {}  # by group: the last round that was yielded
        while True:
            lines, offset = _lines_from(self.history_file, offset)
            new = [line for line in lines if line.round > last.get(line.group, 0)]
            last |= {line.group: line.round for line in new}
            yield new

    def _lines(self) -> Iterator[RoundReport]:
        if not self.history_file.exists():
            return
        lines = self.history_file.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                yield _report(line)
            except (ValueError, TypeError, KeyError, RecursionError):
                if number == len(lines):  # cut by a crash
                    return
                raise self._altered(f"line {number} is no round's") from None

    def _append(self, line: str) -> None:
        """Append a line that is on disk then; where that fails, nothing of it stays."""
        file = self.history_file
        with durable_files.name_errors(file), file.open("ab", buffering=0) as opened:
            n_bytes, rest = opened.seek(0, os.SEEK_END), line.encode()
            try:
                while rest:
                    rest = rest[opened.write(rest) :]
                os.fsync(opened.fileno())
                if not n_bytes:  # it may be new
                    durable_files.flush(file.parent)
            except OSError:
                with contextlib.suppress(OSError):
                    opened.truncate(n_bytes)
                raise

    def _folder(self, round: int) -> Path:
        return self.checkpoints / f"round-{round:05d}"

    def saved_rounds(self) -> list[int]:
        """Rounds that have a checkpoint, ascending."""
        if not self.checkpoints.is_dir():
            return []
        names = (p.name.removeprefix("round-") for p in self.checkpoints.iterdir())
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,9}", name))


def _lost_checkpoints(rounds: list[int], group: str | None) -> str:
    """That no checkpoint is left of the rounds that a history has."""
    done = format_count(len(rounds), "round", "rounds")
    of_group = f" of {group}" if group else ""
    return f"history.jsonl has {done}{of_group}, and every checkpoint of them is gone"


def _damage(error: Exception) -> str:
    why = " ".join(str(error).split())[:300]
    return f"is damaged ({type(error).__name__}: {why})"


def _lines_from(file: Path, offset: int) -> tuple[list[RoundReport], int]:
    """Complete lines from an offset on, and the offset after them."""
    if not file.exists():
        return [], 0
    with file.open("rb") as lines:
        offset = lines.seek(offset if file.stat().st_size >= offset else 0)
        data = lines.read()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        reports = [RoundReport.from_json(json.loads(x)) for x in whole.splitlines()]
        return reports, offset + len(whole)
    except (ValueError, TypeError, KeyError):
        return [], 0  # the file was replaced: read from its start the next time


def write_file(folder: Path, name: str, text: str) -> None:
    """Replace a small file of a run's folder; on disk when this returns.

    Raises
    ------
    RunFolderError
        If the disk refuses; what was there before is still there.
    """
    try:
        durable_files.write_text(folder / name, text)
    except OSError as error:
        reason = f"cannot write {name}: {error.strerror}; what it holds is kept"
        raise RunFolderError(str(folder), reason, write_remedy(error)) from None


def write_with_digest(folder: Path, name: str, text: str) -> None:
    """As `write_file`, of one line of text, with its digest before it."""
    write_file(folder, name, f"{_sha256(text)}\n{text}\n")


def read_with_digest(folder: Path, name: str) -> str:
    """The text that `write_with_digest` wrote.

    Raises
    ------
    OSError, ValueError
        If the file is lost or altered.
    """
    digest, text = (folder / name).read_text(encoding="utf-8").splitlines()
    if digest != _sha256(text):
        raise ValueError("digest")
    return text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_remedy(error: Exception) -> str:
    """What to do after a file could not be written."""
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return f"{'Make room' if is_full else 'Mend that'}, then go on with --resume"


def _write_error(error: OSError, file: Path, what: str = "") -> CheckpointError:
    path = str(error.filename or file)
    reason = f"{error.strerror or error}{what}"
    return CheckpointError(path, reason, write_remedy(error))


def _write(folder: Path, checkpoint: Checkpoint, line: str) -> None:
    parts = {f"state-{key}.npz": part for key, part in checkpoint.state.items()}
    for name, part in {"weights.npz": checkpoint.weights, **parts}.items():
        with durable_files.name_errors(folder / name):
            arrays.save(part, folder / name)
    with durable_files.name_errors(folder / ROUND):
        (folder / ROUND).write_text(line, encoding="utf-8")
    if checkpoint.anchor is not None:
        with durable_files.name_errors(folder / LEDGER_ANCHOR):
            text = json.dumps(checkpoint.anchor._asdict())
            (folder / LEDGER_ANCHOR).write_text(text, encoding="utf-8")
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
    weights, anchor = arrays.load(folder / "weights.npz"), _read_anchor(folder)
    return Checkpoint(report.round, weights, state, report, anchor)


def _read_anchor(folder: Path) -> Anchor | None:
    file = folder / LEDGER_ANCHOR
    if not file.exists():
        return None
    n_lines, link = json.loads(file.read_bytes()).values()
    if type(n_lines) is not int or n_lines < 0:
        raise ValueError("no length of a ledger")
    return Anchor(n_lines, str(link))


def _report(line: bytes) -> RoundReport:
    report = RoundReport.from_json(json.loads(line))
    if type(report.round) is not int or report.round < 1:
        raise ValueError("no round")
    if type(report.refused) not in (int, type(None)):  # None: only its operator knows
        raise ValueError("no count of the refused")
    return report


def _line(report: RoundReport) -> str:
    plain = report.to_json()
    try:
        text = json.dumps(plain, allow_nan=False)
    except ValueError:  # only then, since there may be very many parties
        text = json.dumps(_finite(plain), allow_nan=False)
    return text + "\n"


def _finite(plain: Any) -> Any:
    """Replace NaN and infinity by None: JSON has neither."""
    if isinstance(plain, dict):
        return {key: _finite(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_finite(value) for value in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return plain
