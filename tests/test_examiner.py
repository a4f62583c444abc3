"""Uploaded files are read side by side, clients in turn, within bounds of each file."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import descendants, living, wait_until_gone
from support.waiting import wait_for

from fedray.errors import CallRefused, LimitReached
from fedray.service import examiner, sandbox
from fedray.service.fair_queue import FairQueue
from fedray.service.sandbox import Sandbox
from fedray.service.settings import Settings
from fedray.service.usage import Usage


async def turns(queue: FairQueue, calls: str) -> str:
    """Who has had a place, in order, when calls come at once; a letter is a client."""
    order = []

    async def call(client: str) -> None:
        async with queue.place(client):
            order.append(client)
            await asyncio.sleep(0)

    await asyncio.gather(*map(call, calls))
    return "".join(order)


def test_clients_take_turns_and_each_is_served_in_order():
    assert asyncio.run(turns(FairQueue(1), "aaaabbc")) == "aabcaba"


def test_one_client_leaves_a_place_for_another():
    async def play() -> None:
        queue = FairQueue(3)
        async with queue.place("a"), queue.place("a"):
            waiting = asyncio.ensure_future(queue.place("a").__aenter__())
            await asyncio.sleep(0)
            assert not waiting.done()
            async with queue.place("b"):
                pass
            waiting.cancel()
        assert asyncio.current_task()

    asyncio.run(play())


def test_who_is_cancelled_while_it_waits_has_left_the_line():
    async def play() -> None:
        queue = FairQueue(1)
        async with queue.place("a"):
            waits = [asyncio.ensure_future(turns(queue, client)) for client in "abc"]
            await asyncio.sleep(0.01)
            for wait in waits[:2]:
                wait.cancel()
            await asyncio.wait(waits[:2])
            assert list(queue.lines) == ["c"]
        assert await waits[2] == "c"
        assert (queue.n_free, dict(queue.n_taken), queue.lines) == (1, {}, {})

    asyncio.run(play())


SLOW = """
import json, os, signal, sys, time
from pathlib import Path
from fedray.service import examiner

plain = examiner.examine

def examine(request):
    work = request["config"].get("work")
    if work == "spin":
        while True:
            pass
    if work == "sleep":
        time.sleep(3600)
    if work == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if work == "abort":
        os.abort()
    if work == "memory":
        return {"n": len(bytearray(8 << 30))}
    if work == "litter":
        import subprocess, tempfile
        from fedray import limits
        code = "from fedray import limits; limits.start_child(); import time; "
        code += "time.sleep(3600)"
        environment = limits.child_environment()
        subprocess.Popen([sys.executable, "-c", code], env=environment)
        Path(tempfile.mkdtemp(), "file").write_text("x")
        time.sleep(3600)
    if work == "echo":
        return {"n_train": 1, "n_test": 1}
    return plain(request)

examiner.examine = examine
examiner.main(*sys.argv[1:])
"""


class Scene:
    """A sandbox whose examiner obeys a config's key `work`, and its clients' claims."""

    def __init__(self, root: Path, **settings):
        self.settings = Settings(str(root / "root"), **settings)
        self.usage = Usage(self.settings)
        self.sandbox = Sandbox(self.usage)
        self.folder = self.settings.folder / sandbox.FOLDER

    def start(self, work: str, client: str | None = None) -> asyncio.Task:
        config = {"work": work, "model_file": "x"}
        return asyncio.ensure_future(self.sandbox.check(config, {}, client))

    @property
    def examiner_pid(self) -> int:
        return self.sandbox.examiners["pytorch"].process.pid

    @property
    def child_pids(self) -> set[int]:
        is_started = "pytorch" in self.sandbox.examiners
        return descendants(self.examiner_pid) if is_started else set()

    async def until(self, condition, what: str) -> None:
        await asyncio.to_thread(wait_for, condition, what)

    def litter(self) -> list[str]:
        """Names of temporary files of children."""
        return [str(path) for path in self.folder.glob("*/**/*")]


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs a coroutine function with a scene; nothing is left of it at the end."""
    script = tmp_path / "slow_examiner.py"
    script.write_text(SLOW)
    launch = asyncio.create_subprocess_exec

    def run(scenario, **settings) -> None:
        async def start(python, _, module, *arguments, **how):
            assert module == "fedray.service.examiner"
            return await launch(python, str(script), *arguments, **how)

        async def with_scene() -> None:
            scene = Scene(tmp_path, **settings)
            try:
                await scenario(scene)
            finally:
                await scene.sandbox.close()
            assert list(scene.folder.iterdir()) == []
            assert scene.usage.total("examiner_s") == 0

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
        before = descendants(os.getpid())
        asyncio.run(with_scene())
        assert wait_until_gone(descendants(os.getpid()) - before) == {}

    return run


def test_what_reads_too_long_sleeps_or_crashes_is_refused_by_its_name(
    play, monkeypatch
):
    monkeypatch.setattr(sandbox, "BASE_CPU_S", 1.0)

    async def scenario(scene: Scene) -> None:
        expected = {
            "spin": (413, "model file x: it takes more than the 1 s of CPU time"),
            "sleep": (413, "model file x: it could not be read within 3 s"),
            "crash": (422, "model file x: it cannot be read (its reader ended with"),
            "memory": (413, "model file x: it needs more than the 1 GiB of memory"),
            "abort": (413, "model file x: it needs more than the 1 GiB of memory"),
        }
        for work, (status, text) in expected.items():
            factor = 3 if work == "sleep" else 1000
            monkeypatch.setattr(sandbox, "WALL_FACTOR", factor)
            with pytest.raises(CallRefused) as refusal:
                await scene.start(work)
            assert refusal.value.status == status, work
            assert refusal.value.detail.startswith(text), refusal.value.detail

    play(scenario, max_examiner_memory=1 << 30)


def test_a_clients_slow_files_do_not_hold_up_another(play):
    async def scenario(scene: Scene) -> None:
        slow = [scene.start("sleep", "a") for _ in range(6)]
        await scene.until(lambda: scene.child_pids, "nothing is read")
        assert await scene.start("echo", "b") == {"n_train": 1, "n_test": 1}
        assert len(scene.child_pids) == 1
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)

    play(scenario, max_examiner_files=2)


def test_what_nobody_waits_for_is_dropped_or_killed_with_all_it_made(play):
    async def scenario(scene: Scene) -> None:
        running = scene.start("litter", "a")
        await scene.until(lambda: len(scene.litter()) > 1, "it made no files")
        waiting = scene.start("echo", "a")
        await asyncio.sleep(0)
        pids = scene.child_pids
        assert len(pids) == 2
        for task in (waiting, running):
            task.cancel()
            await asyncio.wait([task])
        assert living(pids) == {}
        assert scene.litter() == []
        assert await scene.start("echo", "a") == {"n_train": 1, "n_test": 1}

    play(scenario, max_examiner_files=2)


def test_a_killed_examiner_fails_no_call_and_leaves_nothing(play):
    async def scenario(scene: Scene) -> None:
        slow = scene.start("litter", "a")
        await scene.until(lambda: len(scene.litter()) > 1, "it made no files")
        pids = scene.child_pids | {scene.examiner_pid}
        stopped = scene.sandbox.examiners["pytorch"]
        os.kill(scene.examiner_pid, signal.SIGSTOP)
        answer = scene.start("echo", "b")
        await scene.until(lambda: len(stopped.answers) == 2, "it was not asked")
        os.kill(scene.examiner_pid, signal.SIGKILL)
        assert await answer == {"n_train": 1, "n_test": 1}
        assert wait_until_gone(pids) == {}
        await scene.until(lambda: len(list(scene.folder.iterdir())) == 1, "litter")
        slow.cancel()
        await asyncio.wait([slow])

    play(scenario, max_examiner_files=2)


@pytest.mark.parametrize("kills_examiner", [False, True])
def test_nothing_outlives_a_killed_service(tmp_path, kills_examiner):
    """Its end closes the examiner's stdin; both may be killed at once."""
    (script := tmp_path / "slow_examiner.py").write_text(SLOW)
    folder = tmp_path / "folder"
    command = [sys.executable, str(script), "pytorch", str(folder)]
    bounds = {"cpu_s": 60, "wall_s": 6000, "memory": 1 << 30}
    request = {"config": {"work": "litter"}, "id": 1, "bounds": bounds}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert json.loads(process.stdout.readline()) == {"ready": True}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        wait_for(lambda: [*folder.glob("*/*/*")], "it made no files")
        pids = descendants(process.pid) | {process.pid}
        if kills_examiner:
            process.kill()
        process.stdin.close()
    assert wait_until_gone(pids) == {}
    assert len(pids) == 3
    if kills_examiner:  # what the next one does first
        wait_for(lambda: examiner.sweep(folder), "a lock is held")
    assert list(folder.iterdir()) == []


def test_as_many_seconds_wait_as_a_client_may_have(play):
    async def scenario(scene: Scene) -> None:
        tasks = [scene.start("sleep", "a") for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(LimitReached) as refusal:
            await tasks[2]
        assert refusal.value.limit == "max_examiner_s_per_client"
        other = scene.start("echo", "b")
        assert await other == {"n_train": 1, "n_test": 1}
        for task in tasks[:2]:
            task.cancel()
        await asyncio.wait(tasks[:2])

    play(scenario, max_examiner_s_per_client=2 * sandbox.BASE_CPU_S)


def test_processes_that_nobody_needs_end(play, monkeypatch):
    monkeypatch.setattr(sandbox, "IDLE_S", 0.1)
    monkeypatch.setattr(sandbox, "OTHERS_IDLE_S", 0.05)

    async def scenario(scene: Scene) -> None:
        await scene.start("echo")
        await scene.until(lambda: not scene.sandbox.examiners, "it has not ended")
        await scene.until(lambda: not [*scene.folder.iterdir()], "its folder stays")

    play(scenario)
