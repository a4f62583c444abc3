"""One run's folder: config, history, and checkpoints that are whole or not there."""

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedray import weights as arrays
from fedray.config import FederationConfig, parse, read_yaml
from fedray.errors import CheckpointError, RunFolderError
from fedray.messages import RoundReport
from fedray.weights import Weights

ROUND = "round.json"
MAY_CHANGE = (  # what a resumed run may have otherwise
    "rounds",
    "name",
    "quorum",
    "round_timeout_s",
    "placement_timeout_s",
    "keep_checkpoints",
    "party_cpus",
    "evaluate_every",
)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on after `round`."""

    round: int
    weights: Weights
    state: dict[str, Weights]
    report: RoundReport


class RunFolder:
    """Reads and writes one run's folder; the only writer of its checkpoints."""

    def __init__(self, path: Path, keep: int = 2):
        self.path, self.keep = Path(path), keep
        self.checkpoints = self.path / "checkpoints"
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
            _write(aside, checkpoint)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(aside, final)
            _sync(self.checkpoints)
            self._append(checkpoint.report)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            size = arrays.n_bytes(checkpoint.weights)
            reason = (
                f"{error.strerror or error} while writing {size} bytes of weights; "
                "earlier checkpoints are kept. Make room, then go on with --resume"
            )
            raise CheckpointError(str(final), reason) from None
        for old in self._rounds()[: -self.keep]:
            shutil.rmtree(self._folder(old), ignore_errors=True)

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
                wrong.append(f"{self._folder(round).name} is damaged ({kind}: {error})")
        if wrong:
            raise CheckpointError(str(self.checkpoints), "; ".join(wrong))
        return None, wrong

    def history(self) -> list[RoundReport]:
        """Every whole line of history.jsonl."""
        return list(self._lines())

    def rewind(self, checkpoint: Checkpoint | None) -> list[RoundReport]:
        """Make the history end with the checkpoint, whatever a crash left behind."""
        done = checkpoint.round if checkpoint else 0
        lines = [line for line in self._lines() if line.round < done]
        if checkpoint:
            lines.append(checkpoint.report)
        aside = self.history_file.with_name("history.jsonl.part")
        aside.write_text("".join(map(_line, lines)), encoding="utf-8")
        os.replace(aside, self.history_file)
        return lines

    def is_started(self) -> bool:
        """Does the folder hold a round of some run?"""
        return bool(self._rounds() or self.history())

    def _lines(self) -> Iterator[RoundReport]:
        if not self.history_file.exists():
            return
        for line in self.history_file.read_text(encoding="utf-8").splitlines():
            try:
                yield RoundReport.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError):
                return  # a line cut by a crash is the last one

    def _append(self, report: RoundReport) -> None:
        with self.history_file.open("a", encoding="utf-8") as file:
            file.write(_line(report))
            file.flush()
            os.fsync(file.fileno())

    def _folder(self, round: int) -> Path:
        return self.checkpoints / f"round-{round:05d}"

    def _rounds(self) -> list[int]:
        if not self.checkpoints.is_dir():
            return []
        names = (
            path.name.removeprefix("round-") for path in self.checkpoints.iterdir()
        )
        return sorted(int(name) for name in names if name.isdigit())


@contextlib.contextmanager
def opened(path: Path, config: FederationConfig, resume: bool) -> Iterator[RunFolder]:
    """Hold a run's folder for this process, with the resolved config in it.

    Raises
    ------
    RunFolderError
        If it holds another run, is in use, or cannot be written.
    """
    folder = RunFolder(path, config.keep_checkpoints)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise RunFolderError(str(path), reason) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another process is running in it; wait for it or stop it"
            raise RunFolderError(str(path), reason) from None
        _check_folder(folder, config, resume)
        text = yaml.safe_dump(config.to_dict(), sort_keys=False)
        aside = path / "config.yaml.part"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path / "config.yaml")
        yield folder


def _check_folder(folder: RunFolder, config: FederationConfig, resume: bool) -> None:
    if not folder.is_started():
        return
    n_done = len(folder.history())
    if not resume:
        reason = (
            f"already holds a run ({n_done} rounds done). Go on with --resume, or take "
            "another folder with --run-dir or another name=..."
        )
        raise RunFolderError(str(folder.path), reason)
    before, _ = parse(read_yaml(folder.path / "config.yaml"))
    old, new = _essence(before), _essence(config)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        told = ", ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
        reason = f"cannot go on with another config: {told}"
        raise RunFolderError(str(folder.path), reason)


def _essence(config: FederationConfig) -> dict[str, Any]:
    """Settings that decide the result; of files their names, since jobs move them."""
    plain = {k: v for k, v in config.to_dict().items() if k not in MAY_CHANGE}
    for key in ("model_file", "architecture", "data_handler", "test_data"):
        plain[key] = os.path.basename(plain.get(key) or "")
    for party in plain.get("parties", ()):
        party["data"] = os.path.basename(party["data"])
    return plain


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    arrays.save(checkpoint.weights, folder / "weights.npz")
    for key, part in checkpoint.state.items():
        arrays.save(part, folder / f"state-{key}.npz")
    text = json.dumps(finite(checkpoint.report.to_json()), allow_nan=False)
    (folder / ROUND).write_text(text, encoding="utf-8")
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _read(folder: Path) -> Checkpoint:
    report = RoundReport.from_json(json.loads((folder / ROUND).read_text("utf-8")))
    state = {
        path.stem.removeprefix("state-"): arrays.load(path)
        for path in sorted(folder.glob("state-*.npz"))
    }
    return Checkpoint(report.round, arrays.load(folder / "weights.npz"), state, report)


def _line(report: RoundReport) -> str:
    return json.dumps(finite(report.to_json()), allow_nan=False) + "\n"


def finite(plain: Any) -> Any:
    """Plain data with NaN and infinity as None: JSON has neither."""
    if isinstance(plain, dict):
        return {key: finite(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [finite(value) for value in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return plain


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
