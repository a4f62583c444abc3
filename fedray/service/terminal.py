"""Lines for the terminal of `fedray serve`: what happens in each federation.

They are read from the federations' folders.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.durable_files import read_new_lines
from fedray.errors import FedrayError, format_count
from fedray.service import store
from fedray.service.schemas import public_state
from fedray.service.store import FAILED, STOPPED, TRAINING, WAITING, State

MAX_REASON = 300  # characters of why a training failed


@dataclass
class Position:
    """How far a federation's files have been told."""

    version: tuple[int, ...] = ()  # of its state
    state: State | None = None
    n_bytes: int = 0  # of history.jsonl


class FederationLines:
    """New lines about all federations below `root`, since the last call.

    What was there before is not told.
    """

    def __init__(self, root: Path):
        self.root = root
        self.positions: dict[str, Position] = {}
        self.new_lines()

    def new_lines(self) -> list[str]:
        """A line for each join, each round, each beginning and each end."""
        lines = []
        for folder in store.federation_folders(self.root):
            position = self.positions.setdefault(folder.name, Position())
            try:
                lines += _lines_of(folder, position)
            except (FedrayError, OSError, ValueError, TypeError, KeyError):
                continue  # it is just being written or deleted: next time
        return lines


def _lines_of(folder: Path, position: Position) -> list[str]:
    before = position.state
    if before is not None and before.state == STOPPED:
        return []
    rounds = _new_rounds(folder, position)
    version = store.version(folder)
    if version != position.version:
        position.version, position.state = version, store.read(folder)
    state = position.state
    if state is None:
        return []
    lines = [round_line(line, state) for line in rounds]
    if _event(state) != (before and _event(before)):
        lines.insert(0 if state.state == TRAINING else len(lines), _event(state))
    return [f"{state.name}: {line}" for line in lines]


def _new_rounds(folder: Path, position: Position) -> list[dict[str, Any]]:
    """Lines of history.jsonl that are complete and were not there before."""
    file = folder / "history.jsonl"
    try:
        if file.stat().st_size < position.n_bytes:
            position.n_bytes = 0  # rounds that a killed actor trains again
        lines, position.n_bytes = read_new_lines(file, position.n_bytes)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def round_line(line: dict[str, Any], state: State) -> str:
    """One line of a history in words."""
    n_rounds = int(float(state.settings.get("rounds", 1)))
    parts = [f"round {line['round']} of {n_rounds}"]
    parts.append(f"{line['fused']} of {line['chosen']} fused")
    for key in ("loss", "accuracy"):
        if line.get(key) is not None:
            parts.append(f"{key} {line[key]:.4g}")
    for name, value in line.get("metrics", {}).items():
        if isinstance(value, float | int):
            parts.append(f"{name} {value:.4g}")
    parts.append(f"{line['seconds']:.1f} s")
    reason = line.get("stop_reason")
    return ", ".join(parts) + (f"; stopped: {reason}" if reason else "")


def _event(state: State) -> str:
    """What a federation is at, in a few words."""
    if state.state == WAITING:
        n_parties = format_count(state.num_parties, "party has", "parties have")
        return f"{len(state.parties)} of {n_parties} joined"
    if state.state == FAILED and state.error:
        reason = " ".join(str(state.error.get("detail", "")).split())[:MAX_REASON]
        return f"failed: {reason}"
    return public_state(state)
