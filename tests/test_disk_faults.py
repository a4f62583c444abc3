"""Every call that writes fails once, and power is cut at each: nothing is lost. No Ray.

In the manner of SQLite's tests: a short script is played again and again by the real
code, and each time another call fails, or is the last before the machine stops. Here
every call meets one error and one kind of power cut; ``make faults`` plays all of them.
"""

import errno
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support.faulty_disk import CUTS, ERRORS, FaultyDisk, Point, PowerCut
from support.page_tables import table_in
from support.scripted_private_run import ScriptedPrivateRun
from support.scripted_run import ScriptedRun
from support.scripted_service import ScriptedService

from fedray.service.responses import error_response

pytestmark = pytest.mark.slow
PLAYS_ALL = "FEDRAY_ALL_FAULTS" in os.environ
MEMORY = Path("/dev/shm")  # a disk in memory, if there is one: thousands of files
PAGE = Path(__file__).parent.parent / "docs" / "failures.md"
MARKS = ("<!-- faults: compared by tests/test_disk_faults.py -->\n", "<!-- /faults -->")


SCRIPTS = [ScriptedRun, ScriptedPrivateRun, ScriptedService]
TEMPORARY = re.compile(r"^\.(.*)\.[0-9a-f]{8}\.part")


class FaultRunner:
    """Plays one script on a new disk each time, at the same path."""

    def __init__(self, kind: type, folder: Path):
        self.kind, self.disk_folder, self.user = kind, folder / "disk", folder / "user"
        self.user.mkdir()
        script, disk = self.new_script(), FaultyDisk(self.disk_folder)
        with disk.mounted():
            script.play()
        self.points, self.result = disk.points, script.result()
        assert script.errors == []
        self._by_config = {self.result.get("config"): self.result}

    def new_script(self, *arguments):
        shutil.rmtree(self.disk_folder, ignore_errors=True)
        self.disk_folder.mkdir()
        return self.kind(self.disk_folder, self.user, *arguments)

    def fail(self, point: Point, error: str) -> None:
        """Play with one call that fails, once; see that all comes out as without."""
        script = self.new_script()
        disk = FaultyDisk(self.disk_folder, point, ERRORS[error])
        with disk.mounted():
            script.play()
        assert disk.error_path is not None
        for text in script.errors:
            assert any(name in text for name in names_of(disk.error_path)), text
        assert script.result() == self._expected(script)

    def cut(self, point: Point, cut: str) -> None:
        """Stop the machine at one call, start it again, and play what is missing."""
        script, disk = self.new_script(), FaultyDisk(self.disk_folder, point)
        with disk.mounted(), pytest.raises(PowerCut):
            script.play()
        disk.restart(cut)
        script.check_acknowledged()
        script.play()
        assert script.errors == []
        assert script.result() == self._expected(script)

    def _expected(self, script) -> dict:
        """The result without faults; of a run, that of the config that it ended with.

        Someone who leaves while a round runs is not asked again if it is run anew.
        """
        config = script.result().get("config")
        if config not in self._by_config:
            kept = self.disk_folder.with_name("kept")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(self.disk_folder, kept)
            again = self.new_script(yaml.safe_load(config)["parties"])
            code = "runs/tiny/handlers"
            shutil.copytree(kept / code, self.disk_folder / code)
            again.play()
            self._by_config[config] = again.result()
        return self._by_config[config]


def names_of(path: str) -> set[str]:
    """What an error may call a file: its later name, or its checkpoint's."""
    file = Path(path)
    name = TEMPORARY.sub(r"\1", file.name).removesuffix(".part").removesuffix(".new")
    checkpoint = file.parent.name.removesuffix(".part")
    return {name, checkpoint} if checkpoint.startswith("round-") else {name}


@pytest.fixture(scope="module", params=SCRIPTS)
def runner(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    if MEMORY.is_dir():
        folder = MEMORY / f"fedray-{os.getpid()}-{folder.name}"
        folder.mkdir()
    yield FaultRunner(request.param, folder)
    shutil.rmtree(folder)


def plays(runner: FaultRunner, kinds: list[str]) -> list[tuple[Point, str]]:
    """Every point with every kind, or each with another one in turn.

    Not all, of a script that is like another: only files that the other has not.
    """
    if PLAYS_ALL:
        return [(point, kind) for point in runner.points for kind in kinds]
    own = getattr(runner.kind, "own_files", ("",))
    points = [p for p in runner.points if any(word in p.file for word in own)]
    return [(point, kinds[i % len(kinds)]) for i, point in enumerate(points)]


def failures(play, pairs: list[tuple[Point, str]]) -> list[str]:
    """What went wrong in plays, one line each."""
    lines = []
    for point, kind in pairs:
        try:
            play(point, kind)
        except Exception as error:
            lines.append(f"{point}, {kind}: {type(error).__name__} {error}"[:600])
    return lines


def test_a_call_that_fails_is_an_error_that_names_its_file_and_nothing_is_lost(runner):
    assert failures(runner.fail, plays(runner, list(ERRORS))) == []


def test_nothing_that_was_acknowledged_is_lost_when_power_is_cut(runner):
    assert failures(runner.cut, plays(runner, list(CUTS))) == []


def test_the_page_says_how_many_calls_are_tried(runner):
    page = PAGE.read_text(encoding="utf-8")
    assert row_of(runner) in table_in(page, MARKS).splitlines()


def test_a_full_disk_is_an_answer_of_the_service_that_tells_no_path(caplog):
    error = OSError(errno.ENOSPC, "No space left on device", "/srv/fedray/a.json")
    scope = {"method": "POST", "path": "/start-party"}
    response = error_response(error, scope)
    assert response.status_code == 507
    assert b"The service's disk refuses: No space left on device." in response.body
    assert b"/srv" not in response.body
    assert "/srv/fedray/a.json" in caplog.text  # for its operator


def row_of(runner: FaultRunner) -> str:
    """The script's row of the table in docs/failures.md."""
    n = len(runner.points)
    n_flushes = Counter(point.call for point in runner.points)["fsync"]
    n_plays = n * (len(ERRORS) + len(CUTS))
    return f"| {runner.kind.title} | {n} | {n_flushes} | {n_plays:,} |"
