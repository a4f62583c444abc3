"""One run for its own view: curves, parties, notes, settings, models.

How much of it there is does not grow without bounds: curves are thinned out, of very
many parties those in most trouble are listed.
"""

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.config import read_yaml, split_by_default
from fedray.config.metrics import known_mode
from fedray.edges.listing import list_edges
from fedray.edges.roster import EDGES, FOLDER, Roster
from fedray.errors import FedrayError
from fedray.experiments.records import CONFIG, HISTORY
from fedray.messages import APART, FUSED
from fedray.runs_page.history_tail import HistoryTail, Line, file_version
from fedray.runs_page.run_reader import (
    TROUBLES,
    model_files,
    read_settings,
    setting_text,
    size_of,
)
from fedray.runs_page.values import items, mapping, number, text

MAX_POINTS = 400  # of one curve
MAX_PARTIES = 300  # with a row of their own
MAX_TALLIES = 20_000  # parties that are counted
MAX_NOTES = 200  # the newest
N_RECENT = 60  # rounds whose outcomes are shown one by one
MAX_METRICS = 12  # curves beside loss and accuracy
MAX_GROUPS = 12
MAX_CHANGED = 200  # settings
LETTERS = {FUSED: "f", APART: "a", "late": "l", "refused": "r", "failed": "x"}
CURVES = ("loss", "accuracy", "bytes_moved", "seconds")


class PartyTally:
    """One party over all rounds."""

    def __init__(self, name: str):
        self.name = name
        self.kinds: Counter[str] = Counter()
        self.recent: deque[tuple[int, str]] = deque(maxlen=N_RECENT)
        self.last: dict[str, float | None] = {}
        self.trouble = self.note = ""
        self.is_hidden = False
        self.joined_round: int | None = None
        self.left_round: int | None = None

    def add(self, round: int, line: Mapping[str, Any]) -> None:
        """Add its line of one more round."""
        outcome = line.get("outcome")
        kind = "hidden" if outcome is None else str(outcome).partition(":")[0]
        self.is_hidden |= outcome is None
        self.kinds[kind] += 1
        self.recent.append((round, LETTERS.get(kind, "h")))
        for name in ("n_samples", "loss", "seconds"):
            if (value := number(line.get(name))) is not None:
                self.last[name] = value
        if kind in TROUBLES:
            self.trouble = f"round {round}: {text(outcome)}"
        if line.get("note"):
            self.note = f"round {round}: {text(line['note'])}"

    @property
    def n_trouble(self) -> int:
        """Rounds in which it was late, refused or failed."""
        return sum(self.kinds[kind] for kind in TROUBLES)

    def plain(self, tests: Mapping[str, Any], rounds: Sequence[int]) -> dict[str, Any]:
        """Plain data; tests : values of its own test samples, by metric."""
        own = dict(self.recent)
        counts = {kind: self.kinds[kind] for kind in (FUSED, APART, *TROUBLES)}
        return {
            "name": self.name,
            "chosen": sum(self.kinds.values()),
            **({} if self.is_hidden else counts),
            "is_hidden": self.is_hidden,
            **self.last,
            "tests": tests,
            "strip": "".join(own.get(round, "-") for round in rounds),
            "trouble": self.trouble or self.note,
            "joined": self.joined_round,
            "left": self.left_round,
        }


class RunDetails:
    """What a run's folder says of its rounds and parties, read as it grows."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tail = HistoryTail(folder / HISTORY)
        self.config_version: Any = ()
        self.changed: list[tuple[str, str]] = []
        self.roster: Roster | None = None  # of parties outside the cluster
        self._forget()

    def _forget(self) -> None:
        self.groups: dict[str, dict[str, list[float | None]]] = {}
        self.parties: dict[str, PartyTally] = {}
        self.notes: deque[str] = deque(maxlen=MAX_NOTES)
        self.rounds: deque[int] = deque(maxlen=N_RECENT)
        self.tests: Mapping[str, Any] = {}
        self.spread: Mapping[str, Any] = {}
        self.has_omitted_lines = False
        self.edge_counts: Mapping[str, Any] = {}  # after the last round

    def refresh(self) -> None:
        """Read what has changed since the last time."""
        version = file_version(self.folder / CONFIG)
        if version != self.config_version:
            self.config_version = version
            self.changed = changed_settings(self.folder / CONFIG)
        if self.tail.look():
            self._forget()
        for line in self.tail.lines():
            try:
                self._add(line)
            except (TypeError, ValueError, AttributeError, KeyError, OverflowError):
                self.tail.refuse()

    def _add(self, line: Line) -> None:
        round, group = line["round"], text(line.get("group"), 80)
        if not self.rounds or round > self.rounds[-1]:
            self.rounds.append(round)
        if group in self.groups or len(self.groups) < MAX_GROUPS:
            self._add_point(self.groups.setdefault(group, {"round": []}), line)
        for own in items(line.get("parties")):
            self._party(own.get("name")).add(round, own)
        for name in items(line.get("joined")):
            self._party(name).joined_round = round
        for name in items(line.get("left")):
            self._party(name).left_round = round
        self.has_omitted_lines |= bool(line.get("summary"))
        self.edge_counts = mapping(line.get("edges")) or self.edge_counts
        self.tests = mapping(line.get("tests")) or self.tests
        self.spread = mapping(line.get("spread")) or self.spread
        self._add_notes(round, line)

    def _add_notes(self, round: int, line: Line) -> None:
        where = f"{text(line['group'], 80)}, " if line.get("group") else ""
        notes = [*items(line.get("notes")), line.get("skipped")]
        if line.get("stop_reason"):
            notes.append(f"training stopped: {line['stop_reason']}")
        self.notes += [f"{where}round {round}: {text(note)}" for note in notes if note]

    def _add_point(self, curves: dict[str, list[float | None]], line: Line) -> None:
        if curves["round"] and line["round"] <= (curves["round"][-1] or 0):
            return  # twice, or out of order
        values = {name: number(line.get(name)) for name in CURVES}
        values |= {n: number(v) for n, v in mapping(line.get("metrics")).items()}
        n_before = len(curves["round"])
        for name, value in values.items():
            is_room = len(curves) < len(CURVES) + MAX_METRICS
            if name not in curves and value is not None and is_room:
                curves[text(name, 80)] = [None] * n_before
        curves["round"].append(line["round"])
        for name, own in curves.items():
            if name != "round":
                own.append(values.get(name))

    def _party(self, name: Any) -> PartyTally:
        key = text(name, 200)
        if key not in self.parties:
            if len(self.parties) >= MAX_TALLIES:
                self.has_omitted_lines = True
                return PartyTally(key)  # of nobody that is shown
            self.parties[key] = PartyTally(key)
        return self.parties[key]

    def plain(self) -> dict[str, Any]:
        """Plain data of the run's own view."""
        ranked = sorted(self.parties.values(), key=lambda one: -one.n_trouble)
        tests = self._tests_by_party()
        shown = sorted(ranked[:MAX_PARTIES], key=lambda one: _natural_key(one.name))
        rounds = [*self.rounds]
        return {
            "curves": [
                {"group": group, **_thinned(own)} for group, own in self.groups.items()
            ],
            "parties": [one.plain(tests.get(one.name, {}), rounds) for one in shown],
            "n_parties": len(self.parties),
            "is_hidden": any(one.is_hidden for one in shown),
            "has_omitted_lines": self.has_omitted_lines,
            "findings": [*self._findings()],
            "notes": [*self.notes],
            "changed_settings": self.changed,
            "models": [[f.name, size_of(f)] for f in model_files(self.folder)],
            **self._edges(),
        }

    def _edges(self) -> dict[str, Any]:
        """The newest edges and how many there are; {} of a run without any."""
        if self.roster is None and (self.folder / FOLDER / EDGES).exists():
            self.roster = Roster(self.folder)
        if self.roster is None:
            return {}
        try:
            self.roster.refresh()
        except FedrayError:
            return {}
        rows = list_edges(self.roster, MAX_PARTIES)
        for row in rows:
            own = self.parties.get(row["name"])
            row["chosen"] = sum(own.kinds.values()) if own else 0
        counts = {n: number(self.edge_counts.get(n)) for n in ("present", "training")}
        counts |= {"enrolled": self.roster.n_enrolled}
        return {"edges": rows, "edge_counts": counts} if rows else {}

    def _tests_by_party(self) -> dict[str, dict[str, float]]:
        """What parties' own tests of the global model gave last, by metric."""
        names = [text(name, 200) for name in items(self.tests.get("party"))]
        by_party: dict[str, dict[str, float]] = {name: {} for name in names}
        for metric, values in self.tests.items():
            for name, value in zip(names, items(values), strict=False):
                if metric in ("loss", "accuracy") and number(value) is not None:
                    by_party[name][metric] = value
        return by_party

    def _findings(self) -> Sequence[str]:
        """Which party suffers, in words."""
        sentences = []
        tests = self._tests_by_party()
        for metric in ("accuracy", "loss"):
            pairs = [(own[metric], n) for n, own in tests.items() if metric in own]
            if len(pairs) > 1:
                is_more = known_mode(metric) == "max"
                value, name = min(pairs) if is_more else max(pairs)
                word = "lowest" if is_more else "highest"
                median = number(mapping(self.spread.get(metric)).get("median"))
                beside = "" if median is None else f"; the median is {median:.4g}"
                sentences.append(
                    f"{word} {metric} on its own tests: {name}, {value:.4g}{beside}"
                )
                break
        worst = max(self.parties.values(), key=lambda one: one.n_trouble, default=None)
        if worst is not None and worst.n_trouble:
            counts = [f"{worst.kinds[k]} × {k}" for k in TROUBLES if worst.kinds[k]]
            of = f"in the {sum(worst.kinds.values())} rounds that chose it"
            sentences.append(f"most trouble: {worst.name}, {', '.join(counts)} {of}")
        return sentences


def changed_settings(file: Path) -> list[tuple[str, str]]:
    """Settings other than by default; as far as the file can be read, all."""
    try:
        settings = split_by_default(read_yaml(file))[0]
    except (FedrayError, OSError, ValueError):
        settings = read_settings(file)[0]
    pairs = [
        (text(key, 80), setting_text(value, 2000))
        for key, value in settings.items()
        if key != "parties"  # they have a table of their own
    ]
    return pairs[:MAX_CHANGED]


def _thinned(curves: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """The same curves with at most `MAX_POINTS` points, the first and last of them."""
    n = len(curves["round"])
    if n <= MAX_POINTS:
        return curves
    places = [i * (n - 1) // (MAX_POINTS - 1) for i in range(MAX_POINTS)]
    return {name: [own[i] for i in places] for name, own in curves.items()}


def _natural_key(name: str) -> list[Any]:
    """party-2 before party-10."""
    parts = re.split(r"(\d+)", name)
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part
        for i, part in enumerate(parts)
    ]
