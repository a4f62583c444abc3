"""Outcomes of a grid of faults: played by a driver, recorded, and put into the docs."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.page_tables import table_in, with_table
from support.processes import ray_folder, remaining_pids, running_process

PAGE = Path(__file__).parent.parent.parent / "docs" / "failures.md"
Outcomes = dict[str, dict[str, Any]]  # by cell


@dataclass(frozen=True)
class GridPage:
    """What a grid's cells came to, in a file, and their table on the page of failures.

    marks : between which the table stands.
    keys : of an outcome, that are recorded.
    table : makes it.
    """

    file: Path
    marks: tuple[str, str]
    cells: Sequence[str]
    keys: Sequence[str]
    table: Callable[[Outcomes], str]

    def write(self, outcomes: Outcomes) -> None:
        """Record what every cell came to, and put it into the page."""
        ours = sorted(outcomes.items(), key=lambda item: self.cells.index(item[0]))
        plain = {
            cell: {key: seen[key] for key in self.keys if key in seen}
            for cell, seen in ours
        }
        self.file.write_text(json.dumps(plain, indent=1) + "\n")
        self.put()

    def read(self) -> Outcomes:
        """What was recorded."""
        return json.loads(self.file.read_text())

    def shown(self) -> str:
        """The table as the page has it."""
        return table_in(PAGE.read_text(encoding="utf-8"), self.marks)

    def made(self) -> str:
        """The table of what was recorded."""
        return self.table(self.read())

    def put(self) -> None:
        """Put the table into the page."""
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_table(text, self.marks, self.made()), encoding="utf-8")


def cell_text(seen: dict[str, Any], *others: str) -> str:
    """Text of a recorded cell: how the run went on, and what was wrong.

    others : flaws beside those of every grid; empty where there is none.
    """
    if "error" in seen:
        return "**the run fails**"
    flaws = [
        "other bits" * (not seen["same"]),
        "; ".join(seen["missing"]),
        "half files" * bool(seen["half"] or seen["damaged"]),
        *others,
    ]
    return ", ".join([seen["how"], *(f"**{flaw}**" for flaw in flaws if flaw)])


def lines(rows: Sequence[Sequence[str]]) -> str:
    """A table; its first row is its head."""
    head, *others = rows
    whole = [head, ["---"] * len(head), *others]
    return "".join(f"| {' | '.join(row)} |\n" for row in whole)


def cells_in(session: Any, name: str) -> list[str]:
    """Cells that a session's tests ask for.

    name : of the parameter that is a cell.
    """
    specs = [getattr(item, "callspec", None) for item in session.items]
    return [spec.params[name] for spec in specs if spec and name in spec.params]


def play(driver: Path, folder: Path, cells: Sequence[str], **env: str) -> Outcomes:
    """Let a driver of its own play cells; what each came to.

    driver : a script; takes a folder and cells, and writes an outcome each into it.
    env : variables beside those of this process.
    """
    with ray_folder() as ray_tmp:
        whole = {**os.environ, **env, "RAY_TMPDIR": str(ray_tmp)}
        whole.pop("RAY_ADDRESS", None)
        command = [sys.executable, str(driver), str(folder), *cells]
        with running_process(command, folder / "log", env=whole, cwd=folder) as process:
            code = process.wait(timeout=600 * (1 + len(cells)))
        assert code == 0, (folder / "log").read_text()[-5000:]
        assert remaining_pids(ray_tmp) == set(), "processes outlived the grid"
    files = {cell: folder / (cell.replace(":", "-") + ".json") for cell in cells}
    return {cell: json.loads(file.read_text()) for cell, file in files.items()}
