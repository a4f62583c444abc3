"""One run for the list of runs: its state, settings, last numbers and troubles.

A run's folder is looked at often: its files are read again only when they have changed,
and of the history only the lines that are new.
"""

import contextlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from fedray.checkpoint import BEST, LAST, RunFolder, is_locked
from fedray.config.loading import MAX_FILE_BYTES
from fedray.experiments.records import CONFIG, HISTORY
from fedray.messages import BUDGET_SPENT, FAILED, LATE, REFUSED, is_budget_spent
from fedray.runs_page.history_tail import HistoryTail, Line, file_version
from fedray.runs_page.values import items, mapping, number, text

TRAINING, ENDED, STOPPED = "training", "ended", "stopped"
UNFINISHED, UNREADABLE = "unfinished", "unreadable"
FAILURE, REPORT, INPUTS = "failure.txt", "report.html", "inputs.json"
TROUBLES = (LATE, REFUSED, FAILED)
MAX_SETTINGS, MAX_VALUE = 60, 80  # of an entry; characters of one value
N_METRICS = 20  # beside loss and accuracy
MODEL_SUFFIXES = (".pt", ".keras", ".npz", ".skops", ".safetensors")

ENCODER = json.JSONEncoder(default=str, ensure_ascii=False)
# the other one takes ten times as long
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNSHOWN = ("name", "parties", "party_dir", "track", "history_parties")  # in the list


class Totals:
    """What the lines of a history add up to."""

    def __init__(self) -> None:
        self.round, self.n_lines, self.n_notes = 0, 0, 0
        self.seconds: float | None = 0.0  # of the rounds before `round`
        self.round_seconds: float | None = 0.0
        self.n_bytes: float | None = 0.0
        self.last: dict[str, dict[str, Any]] = {}  # scores, by group
        self.rounds: dict[str, int] = {}  # last one, by group
        self.stops: dict[str, str] = {}
        self.troubles: Counter[str] = Counter()
        self.n_gone = 0
        self.is_hidden = False
        self.epsilons: dict[str, float] = {}
        self.worst_tenth: dict[str, float] = {}  # of the parties' own tests
        self.staleness: float | None = None
        self.is_mixed = False  # rounds twice or out of order

    def add(self, line: Line) -> None:
        """Add one line, unless its round was there before."""
        group, round = text(line.get("group")), line["round"]
        if round <= self.rounds.get(group, 0):
            self.is_mixed = True
            return
        self.rounds[group] = round
        self.n_lines += 1
        self._add_amounts(round, line)
        scores = {name: number(line.get(name)) for name in ("loss", "accuracy")}
        if any(value is not None for value in scores.values()):
            weight = number(line.get("evaluated")) or 0
            more = {n: number(v) for n, v in mapping(line.get("metrics")).items()}
            self.last[group] = scores | {"weight": weight, "metrics": more}
        self.stops[group] = text(line.get("stop_reason"))
        self._add_parties(line)
        for name, spread in mapping(line.get("spread")).items():
            worst = number(mapping(spread).get("worst_tenth"))
            if name in ("loss", "accuracy") and worst is not None:
                self.worst_tenth[name] = worst
        self.staleness = number(line.get("staleness"))
        own = mapping(line.get("privacy"))
        spent = {"party": own, "sample": mapping(own.get("samples"))}
        for unit, one in spent.items():
            if (epsilon := number(one.get("epsilon"))) is not None:
                self.epsilons[unit] = epsilon

    def _add_amounts(self, round: int, line: Line) -> None:
        seconds, n_bytes = number(line.get("seconds")), number(line.get("bytes_moved"))
        if round > self.round:
            self.seconds = _sum(self.seconds, self.round_seconds)
            self.round, self.round_seconds = round, seconds
        elif seconds is not None and self.round_seconds is not None:
            self.round_seconds = max(seconds, self.round_seconds)
        self.n_bytes = _sum(self.n_bytes, n_bytes)

    def _add_parties(self, line: Line) -> None:
        outcomes = mapping(mapping(line.get("summary")).get("outcomes"))
        if outcomes:
            for kind in TROUBLES:
                self.troubles[kind] += int(number(outcomes.get(kind)) or 0)
        for party in items(line.get("parties")):
            outcome = party.get("outcome")
            if outcome is None:
                self.is_hidden = True
            elif not outcomes:
                self.troubles[outcome.partition(":")[0]] += 1
            self.n_notes += bool(party.get("note"))
        self.n_gone += len(items(line.get("left")))
        self.n_notes += len(items(line.get("notes"))) + bool(line.get("skipped"))

    def score(self, name: str) -> float | None:
        """The last loss or accuracy; of groups' models the mean, by test samples."""
        pairs = [
            (own[name], own["weight"])
            for own in self.last.values()
            if own[name] is not None
        ]
        n = sum(weight for _, weight in pairs)
        if len(pairs) < 2 or not n:
            return pairs[0][0] if pairs else None
        return sum(value * weight for value, weight in pairs) / n

    @property
    def metrics(self) -> dict[str, float]:
        """Other numbers that were measured last, of a run with one model."""
        own = [*self.last.values()]
        if len(own) != 1:
            return {}
        pairs = [*own[0]["metrics"].items()][:N_METRICS]
        return {text(n, 80): v for n, v in pairs if v is not None}


class RunReader:
    """One run's folder, read as it grows.

    name : that it is shown by.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.tail = HistoryTail(folder / HISTORY)
        self.totals = Totals()
        self.settings: dict[str, Any] = {}
        self.problem = self.failure = ""
        self.models: list[str] = []
        self.has_report = False
        self.versions: dict[str, Any] = {}

    def refresh(self) -> None:
        """Read what has changed since the last time."""
        if self._has_changed(CONFIG):
            self.settings, self.problem = read_settings(self.folder / CONFIG)
        if self._has_changed(FAILURE):
            self.failure = text(RunFolder(self.folder).failure(), 4000)
        if self._has_changed(""):
            self.models = [file.name for file in model_files(self.folder)]
            self.has_report = (self.folder / REPORT).is_file()
        if self.tail.look():
            self.totals = Totals()
        for line in self.tail.lines():
            try:
                self.totals.add(line)
            except (TypeError, ValueError, AttributeError, KeyError, OverflowError):
                self.tail.refuse()

    def _has_changed(self, name: str) -> bool:
        version = file_version(self.folder / name)
        is_new = name not in self.versions or self.versions[name] != version
        self.versions[name] = version
        return is_new

    @property
    def state(self) -> str:
        """In a word, as `fedray runs` says it."""
        if self._is_done() and not self.failure:
            reasons = self.totals.stops.values()
            return BUDGET_SPENT if any(map(is_budget_spent, reasons)) else ENDED
        if is_locked(self.folder):
            return TRAINING
        if self.failure:
            return STOPPED if self.failure.startswith("stopped") else FAILED
        return UNREADABLE if self.problem else UNFINISHED

    @property
    def n_rounds(self) -> float | None:
        """Rounds that it was asked for; None where its config cannot be read."""
        return None if self.problem else number(self.settings.get("rounds", 1))

    def _is_done(self) -> bool:
        totals, rounds = self.totals, self.n_rounds
        return bool(totals.rounds) and all(
            totals.stops[group] or (rounds is not None and done >= rounds)
            for group, done in totals.rounds.items()
        )

    def entry(self) -> dict[str, Any]:
        """Plain data of the run for the list."""
        totals, settings, state = self.totals, self.settings, self.state
        n_listed = len(items(settings.get("parties"))) or None
        return {
            "name": self.name,
            "states": [state],
            "is_live": state == TRAINING,
            "fusion_algorithm": text(settings.get("fusion_algorithm", "fedavg"), 80),
            "model_type": text(settings.get("model_type", "pytorch"), 80),
            "num_parties": number(settings.get("num_parties")) or n_listed,
            "remaining_parties": 0,
            "round": totals.round,
            "rounds": self.n_rounds,
            **{name: totals.score(name) for name in ("loss", "accuracy")},
            "metrics": totals.metrics,
            "epsilons": totals.epsilons,
            "worst_tenth": totals.worst_tenth,
            "staleness": totals.staleness,
            "bytes_moved": totals.n_bytes if totals.n_lines else None,
            "seconds": self._seconds(),
            "troubles": self._troubles(),
            "n_notes": totals.n_notes,
            "failure": self.failure,
            "stop_reason": next(filter(None, totals.stops.values()), ""),
            "problem": self._problems(),
            "settings": short_settings(settings),
            "created": self._time(INPUTS) or self._time(CONFIG),
            "changed": self._time(HISTORY) or self._time(CONFIG),
            "has_report": self.has_report,
            "models": self.models,
        }

    def _problems(self) -> str:
        mixed = "rounds twice or out of order; each counts once"
        problems = [self.problem, self.tail.problem]
        problems.append(f"{HISTORY}: {mixed}" if self.totals.is_mixed else "")
        return "; ".join(filter(None, problems))

    def _seconds(self) -> float | None:
        totals = self.totals
        whole = _sum(totals.seconds, totals.round_seconds)
        return whole if totals.n_lines else None

    def _troubles(self) -> dict[str, int] | None:
        """How often parties were late, refused or failed; None where that is hidden."""
        if self.totals.is_hidden:
            return None
        counts = {kind: self.totals.troubles[kind] for kind in TROUBLES}
        return {k: n for k, n in (counts | {"gone": self.totals.n_gone}).items() if n}

    def _time(self, name: str) -> float | None:
        version = self.versions.get(name) or file_version(self.folder / name)
        return version[0] / 1e9 if version else None


def read_settings(file: Path) -> tuple[dict[str, Any], str]:
    """The settings of a config.yaml as YAML has them, and what is wrong with it."""
    if file_version(file) is None:
        return {}, f"{CONFIG}: there is no such file"
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            return {}, f"{CONFIG}: larger than {MAX_FILE_BYTES} bytes"
        settings = yaml.load(raw, LOADER)
    except OSError as error:
        return {}, f"{CONFIG}: {error.strerror}"
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        return {}, f"{CONFIG}: not YAML{where}"
    if not isinstance(settings, dict):
        return {}, f"{CONFIG}: no mapping of keys to values"
    return {str(key): value for key, value in settings.items()}, ""


def short_settings(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as short texts by dotted names, of which there may be very many."""
    short: dict[str, str] = {}
    for key, value in settings.items():
        if key in UNSHOWN or len(short) >= MAX_SETTINGS:
            continue
        nested = value if isinstance(value, dict) and value else {"": value}
        for name, inner in [*nested.items()][:MAX_SETTINGS]:
            if isinstance(inner, list | dict) and len(inner) > MAX_SETTINGS:
                plain = f"{len(inner)} listed"
            else:
                plain = setting_text(inner)
            short[text(f"{key}.{name}" if name else key, MAX_VALUE)] = plain
    return short


def setting_text(value: Any, most: int = MAX_VALUE) -> str:
    """A setting's value as one line of some `most` characters."""
    if isinstance(value, str):
        return text(value, most)
    written = ""
    try:
        for part in ENCODER.iterencode(value):  # aliases of YAML may make it endless
            written += part
            if len(written) > most:
                break
    except (ValueError, RecursionError, TypeError):  # nested in itself
        written += "…"
    return text(written, most)


def model_files(folder: Path) -> list[Path]:
    """A run's model files, the last model first; none that a link leads to."""
    try:
        files = [
            Path(one.path)
            for one in os.scandir(folder)
            if one.name.startswith((LAST, BEST))
            and one.name.endswith(MODEL_SUFFIXES)
            and one.is_file(follow_symlinks=False)
        ]
    except OSError:
        return []
    return sorted(files, key=lambda file: (file.suffix == ".safetensors", file.name))


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def size_of(file: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return None
