"""Runs `fedray edge` in processes that are forked from one that has PyTorch loaded.

Each is a process like any other: it has a pid of its own, and may be killed. None of
them can import Ray: whoever tries gets an ImportError.
"""

import contextlib
import importlib.abc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from support.waiting import wait_for

MISSING = {"ray", "gensim", "safetensors", "scipy", "fastapi", "uvicorn", "psutil"}
COMMAND = [sys.executable, str(Path(__file__))]


class NoRay(importlib.abc.MetaPathFinder):
    """Refuses to import what an edge need not have."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ImportError(f"an edge imports {name}")
        return None


class ForkedEdges:
    """Starts edges, and says what they ended with."""

    def __init__(self, server: subprocess.Popen):
        self.server = server
        self.pids: set[int] = set()
        self.codes: dict[int, int] = {}

    def ask(self, **question):
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, words: list, log: Path, stdin: str = "") -> int:
        """Start ``fedray edge WORDS``; its output is added to `log`."""
        self.log = log
        words = ["edge", *map(str, words)]
        pid = self.ask(words=words, log=str(log), stdin=stdin)
        self.pids.add(pid)
        self.codes.pop(pid, None)
        return pid

    def poll(self, pid: int) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if pid in self.pids and (code := self.ask(pid=pid)) is not None:
            self.pids.discard(pid)
            self.codes[pid] = code
        return self.codes.get(pid)

    def wait(self, pid: int) -> int:
        wait_for(lambda: self.poll(pid) is not None)
        return self.codes[pid]

    def run(self, words: list, log: Path, stdin: str = "") -> int:
        return self.wait(self.start(words, log, stdin))

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)


@contextlib.contextmanager
def forked_edges() -> Iterator[ForkedEdges]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(COMMAND, text=True, env=env, **pipes) as server:
        edges = ForkedEdges(server)
        try:
            yield edges
        finally:
            for pid in [*edges.pids]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            server.stdin.close()


def serve() -> None:
    sys.meta_path.insert(0, NoRay())
    import fedray.edge
    import fedray.models.pytorch  # noqa: F401
    from fedray.cli import main

    for line in sys.stdin:
        question = json.loads(line)
        if "pid" in question:
            pid, status = os.waitpid(question["pid"], os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
            print(json.dumps(code), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            os._exit(run_child(main, question))


def run_child(main, question) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(question["log"], flags, 0o600)
    reader, writer = os.pipe()
    os.write(writer, question["stdin"].encode())
    os.close(writer)
    os.dup2(reader, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = open(0, encoding="utf-8")
    os.environ.pop("PYTHONPATH")
    try:
        return int(main(question["words"]))
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    serve()
