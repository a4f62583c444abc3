"""What runs have measured, read from their folders; none is run or changed.

Folders of any version are read as far as they can be: what is missing stays empty, what
is damaged is told in `RunRecord.problem`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray.checkpoint import RunFolder
from fedray.config import read_yaml
from fedray.config.metrics import known_mode
from fedray.errors import FedrayError, RunFolderError

MAX_NUMBER = 1e150
HISTORY, CONFIG = "history.jsonl", "config.yaml"
MAX_DEPTH = 4  # folders below the one that is given, in which runs are looked for
SEED = "seed"
# settings that say where or how long a run may be, not what it computes
WITHOUT_EFFECT = ("name", "party_dir", "history_parties", "keep_checkpoints", "track")
# of parties and of single samples: what has been spent until a round
EPSILONS = ("privacy.epsilon", "privacy.samples.epsilon")
ENDED, UNFINISHED, FAILED = "ended", "unfinished", "failed"

Curve = list[float | None]


@dataclass(frozen=True)
class RunRecord:
    """One run, or one group's global model of it: settings, and curves by round.

    name : its folder, below the one that was given.
    settings : of the config, nested ones by dotted names.
    state : ended | unfinished | failed.
    rounds, seconds, n_bytes : of each round that is over; the last two summed up, None
        where a round hides its own.
    metrics : by name a value for each round; None where nothing was measured.
    lowest, highest : by name the parties' worst and best value of the last round that
        has them.
    weakest : by name the party whose own tests are worst after the last round that has
        them, and its value; only where the name says what is worse.
    problem : what could not be read; empty if all could.
    """

    folder: Path
    name: str
    group: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    state: str = ENDED
    rounds: list[int] = field(default_factory=list)
    seconds: Curve = field(default_factory=list)
    n_bytes: Curve = field(default_factory=list)
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)
    weakest: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    problem: str = ""

    @property
    def seed(self) -> Any:
        """The seed of the run; 0 if its config has none."""
        return self.settings.get(SEED, 0)

    def last(self, metric: str) -> float | None:
        """The last value of a metric that was measured."""
        values = self.metrics.get(metric, [])
        return next((value for value in reversed(values) if value is not None), None)

    def best(self, metric: str, is_more_better: bool) -> float | None:
        """The best value of all rounds."""
        values = [v for v in self.metrics.get(metric, []) if v is not None]
        if not values:
            return None
        return max(values) if is_more_better else min(values)

    def place_of(self, metric: str, target: float, is_more_better: bool) -> int | None:
        """Place in `rounds` of the first that reached a target; None if none did."""
        sign = 1 if is_more_better else -1
        for i, value in enumerate(self.metrics.get(metric, [])):
            if value is not None and sign * value >= sign * target:
                return i
        return None

    def amounts_at(self, place: int) -> dict[str, float | None]:
        """Rounds, seconds and bytes until the round at a place in `rounds`."""
        return {
            "rounds": float(self.rounds[place]),
            "seconds": self.seconds[place],
            "bytes": self.n_bytes[place],
        }


def find_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs in some folders, or below them; in order of their names.

    Raises
    ------
    RunFolderError
        For a path that does not exist, or has no run in it or below.
    """
    folders: dict[Path, str] = {}
    for path in paths:
        path = Path(path).expanduser()
        if not path.is_dir():
            raise RunFolderError(str(path), "there is no such folder of runs")
        inside = sorted(_folders_below(path, MAX_DEPTH))
        if not inside:
            reason = (
                f"holds no run: there is no {HISTORY} in it or {MAX_DEPTH} levels below"
            )
            raise RunFolderError(str(path), reason, "Name a run's folder, or one above")
        for folder in inside:
            below = folder.relative_to(path)
            is_whole = len(paths) > 1 or folder == path
            name = Path(path.resolve().name, below) if is_whole else below
            folders.setdefault(folder.resolve(), str(name))
    return [one for folder, name in folders.items() for one in _read(folder, name)]


def read_run(folder: Path, name: str) -> list[RunRecord]:
    """The run in a folder under a name: one record, or one for each group."""
    return [*_read(folder, name)]


def _folders_below(path: Path, depth: int) -> Iterator[Path]:
    if (path / HISTORY).is_file():
        yield path
        return  # a run's own folders hold no runs
    if depth:
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                yield from _folders_below(child, depth - 1)


def _read(folder: Path, name: str) -> Iterator[RunRecord]:
    """The run in a folder: one record, or one for each group."""
    settings, problem = _read_settings(folder)
    lines, damage = _read_lines(folder)
    problem = "; ".join(filter(None, [problem, damage]))
    by_group: dict[str | None, list[dict[str, Any]]] = {}
    for line in lines:
        by_group.setdefault(line.get("group"), []).append(line)
    for group, raw in (by_group or {None: []}).items():
        own = sorted({line["round"]: line for line in raw}.values(), key=_round_of)
        if own != raw:
            what = f"{HISTORY}: rounds twice or out of order; each counts once"
            problem = "; ".join(filter(None, [problem, what]))
        full_name = f"{name} ({group})" if group is not None else name
        state = _state(folder, settings, own)
        try:
            curves = _curves(own)
        except (TypeError, ValueError, AttributeError, KeyError):  # edited by hand
            what = f"{HISTORY}: it has values of other kinds than a run writes"
            curves, problem = {}, "; ".join(filter(None, [problem, what]))
        yield RunRecord(folder, full_name, group, settings, state, **curves,
                        problem=problem)  # fmt: skip


def _round_of(line: Mapping[str, Any]) -> int:
    return line["round"]


def _read_settings(folder: Path) -> tuple[dict[str, Any], str]:
    try:
        return dict(_flatten(read_yaml(folder / CONFIG))), ""
    except (FedrayError, OSError, ValueError) as error:
        # nobody knows what it differs by: it is like no other run
        return {CONFIG: f"of {folder.name}, unread"}, f"{CONFIG}: {error}"


def _flatten(
    settings: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, Any]]:
    """Settings by dotted names; lists and empty mappings stay as they are."""
    for key, value in settings.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}.")
        elif name not in WITHOUT_EFFECT:
            yield name, value


def _read_lines(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Lines of the history that are rounds, and what is wrong with others."""
    try:
        data = (folder / HISTORY).read_bytes().splitlines()
    except OSError as error:
        return [], f"{HISTORY}: {error.strerror}"
    lines, wrong = [], []
    for number, text in enumerate(data, 1):
        try:
            line = json.loads(text)
            if type(line["round"]) is not int:
                raise TypeError("a round is a whole number")
            lines.append(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(data):  # the last one is cut by a kill
                wrong.append(number)
    if not wrong:
        return lines, ""
    listed = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return lines, f"{HISTORY}: no round's: line {listed}"


def _state(folder: Path, settings: Mapping[str, Any], lines: Sequence[Any]) -> str:
    if RunFolder(folder).failure():
        return FAILED
    last = lines[-1] if lines else {}
    rounds = settings.get("rounds", last.get("round", 1))
    is_done = last.get("round", 0) == rounds or last.get("stop_reason")
    return ENDED if is_done else UNFINISHED


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a record that lines of a history give."""
    names = dict.fromkeys(["accuracy", "loss"])
    for line in lines:
        own = line.get("metrics") or {}
        names |= {n: None for n, v in own.items() if not isinstance(v, list | dict)}
    names |= dict.fromkeys(EPSILONS)
    metrics = {name: [_number(_value(line, name)) for line in lines] for name in names}
    lowest, highest = dict[str, float](), dict[str, float]()
    for line in lines:
        for name, spread in (line.get("spread") or {}).items():
            lowest[name], highest[name] = spread.get("min"), spread.get("max")
    return {
        "rounds": [line["round"] for line in lines],
        "seconds": _sums([_number(line.get("seconds")) for line in lines]),
        "n_bytes": _sums([_number(line.get("bytes_moved")) for line in lines]),
        "metrics": {n: v for n, v in metrics.items() if any(x is not None for x in v)},
        "lowest": {n: v for n, v in lowest.items() if _number(v) is not None},
        "highest": {n: v for n, v in highest.items() if _number(v) is not None},
        "weakest": _weakest(lines),
    }


def _weakest(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float]]:
    """By metric the party whose own tests are worst, in the last round that has any."""
    tests: Mapping[str, Any] = {}
    for line in lines:
        tests = line.get("tests") or tests
    weakest = {}
    for name, values in tests.items():
        mode = known_mode(name)
        pairs = [
            (number, str(party))
            for party, value in zip(tests.get("party", ()), values, strict=False)
            if (number := _number(value)) is not None
        ]
        if pairs and mode is not None:
            number, party = min(pairs) if mode == "max" else max(pairs)
            weakest[name] = party, number
    return weakest


def _value(line: Mapping[str, Any], name: str) -> Any:
    if name in ("loss", "accuracy"):
        return line.get(name)
    if name in EPSILONS:
        own = line.get("privacy") or {}
        return (own if name == EPSILONS[0] else own.get("samples") or {}).get("epsilon")
    return (line.get("metrics") or {}).get(name)


def _number(value: Any) -> float | None:
    """A number whose square is finite; else None: not measured, NaN, no number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= MAX_NUMBER else None


def _sums(values: Curve) -> Curve:
    """Running sums; None from the first value on that is not known."""
    total: float | None = 0.0
    sums = Curve()
    for value in values:
        total = None if total is None or value is None else total + value
        sums.append(total)
    return sums
