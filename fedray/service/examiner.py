"""Examiner: the process that reads uploaded files of one model type.

``python -m fedray.service.examiner MODEL_TYPE FOLDER`` imports the model adapter once
and forks a child for each request on stdin: lines of JSON in, a line of JSON out for
each. Children run side by side. A child's memory, CPU time, open files and file sizes
are limited, so a hostile file harms nothing else; its temporary files lie in a folder
of its own below FOLDER, which is deleted with whatever the child has started. Nothing
outlives this process, in whatever way it ends, and it ends with the service.
"""

import contextlib
import fcntl
import json
import math
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray import data, limits, models
from fedray.errors import ConfigError, FedrayError, PartyError
from fedray.federation import ModelBytes, read_config
from fedray.messages import ActorLocation
from fedray.party import (
    GroupPlan,
    PartyGroup,
    count_documents,
    count_statistics,
    survey_parties,
)
from fedray.weights import encoding

N_TRIED = 16  # samples in the training step that is tried, which must take seconds
MAX_TEXT = 4_000  # characters
MAX_ANSWER = 60_000  # bytes: less than a pipe holds
MAX_OPEN_FILES = 512  # of a child
OOM_SCORE = "1000"  # the kernel kills a child before anything else when memory is short
SWEEP_S = 5.0  # for processes that are being killed


@dataclass(frozen=True)
class Bounds:
    """What one child may take.

    cpu_s : CPU time, of itself and of each process that it starts.
    wall_s : time by the clock, however busy the machine is.
    memory : bytes of address space on top of what the adapter takes, and of a file.
    """

    cpu_s: float
    wall_s: float
    memory: int


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Read a federation's model, and the data of party `request["party"]` with it.

    Returns
    -------
    n_train, n_test and memory of the party, memory of the model, as far as they
    are known; on an error its kind and text.
    """
    try:
        config = read_config(request["config"])
        blueprint, weights = models.named(config.model_type).read(config)
        party = request.get("party")
        if party is None:
            return {"model_bytes": vars(ModelBytes.of(blueprint))}
        before = limits.resident_bytes()
        only = range(party, party + 1)
        handler = data.named(config.handler_of(party))
        name = config.party_name(party)
        group = GroupPlan(name, only, config, blueprint, handler)
        if not blueprint.schema:  # made of what all parties count together
            model = _count_for_model(group)
            grown = limits.peak_bytes() - before
            return {"model_bytes": vars(model), "data_bytes": grown}
        payload = encoding.pack(weights, config.wire_dtype)
        party_group = PartyGroup(group, lambda: ActorLocation("service"))
        joined = party_group.join(payload, N_TRIED)
        counts = {"n_train": int(joined.n_train.sum()), "n_test": joined.n_test}
        return counts | {"data_bytes": limits.peak_bytes() - before}
    except PartyError as error:
        return {"kind": error.kind, "text": error.why}
    except ConfigError as error:
        return {"kind": "ConfigError", "problems": error.problems}
    except FedrayError as error:
        return {"kind": type(error).__name__, "text": str(error)}


def _count_for_model(group: GroupPlan) -> ModelBytes:
    """Count what a model without weights asks a party for; raises what is wrong.

    Returns
    -------
    The size of a model of this party's data alone, as far as that is known by it.
    """
    adapter = models.named(group.blueprint.model_type)
    if adapter.statistics is not None:
        count_statistics(group, models.codes_for(group.blueprint, None))
    if adapter.survey is None:
        count_documents(group)
        return ModelBytes()
    survey = survey_parties(group, adapter.survey.request(group.config))
    n_bytes = adapter.survey.size(group.config, survey).n_bytes
    return ModelBytes(n_bytes, n_bytes)


@dataclass
class Child:
    """A forked process that reads the files of one request.

    reader : the pipe that its answer comes through.
    """

    id: int
    bounds: Bounds
    folder: Path
    pid: int
    reader: int
    answer: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.ends_at = time.monotonic() + self.bounds.wall_s

    def end(self) -> tuple[int, float]:
        """Kill it and all that it has started; its exit status and CPU time."""
        os.close(self.reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)
        with contextlib.suppress(ChildProcessError):
            while True:  # what it had started is this process's child now
                os.waitpid(-self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)
        return status, used.ru_utime + used.ru_stime


class ForkServer:
    """Answers requests by children that it forks, many at a time.

    Parameters
    ----------
    out : file descriptor that answers are written to.
    folder : for temporary files.
    failure : answered to every request, if the model type cannot be imported.
    """

    def __init__(self, out: int, folder: Path, failure: dict[str, Any] | None = None):
        self.out, self.folder, self.failure = out, folder, failure
        self.children: dict[int, Child] = {}  # by id of their request
        self.requests = bytearray()  # of a line that is not complete
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Answer requests until stdin ends; then end all children."""
        self.selector.register(0, selectors.EVENT_READ)
        is_open = True
        while is_open:
            now = time.monotonic()
            waits = [child.ends_at - now for child in self.children.values()]
            timeout_s = max(0.0, min(waits)) if waits else None
            for key, _ in self.selector.select(timeout_s):
                if key.fd == 0:
                    is_open = self._read_requests()
                elif key.data.id in self.children:
                    self._read_answer(key.data)
            now = time.monotonic()
            for child in [c for c in self.children.values() if c.ends_at <= now]:
                self._end(child)
        for child in [*self.children.values()]:
            child.end()

    def _read_requests(self) -> bool:
        """Start what stdin asks for; False at its end."""
        chunk = os.read(0, 1 << 16)
        *lines, self.requests[:] = (bytes(self.requests) + chunk).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "end" in request:  # whoever asked has hung up
                if child := self.children.get(request["end"]):
                    self._end(child)
            elif self.failure is not None:
                self._write(request["id"], self.failure)
            else:
                self._fork(request)
        return bool(chunk)

    def _fork(self, request: dict[str, Any]) -> None:
        try:
            folder = Path(tempfile.mkdtemp(dir=self.folder))
        except OSError as error:
            text = f"the service's disk refuses: {error.strerror}"
            self._write(request["id"], {"kind": "DiskError", "text": text})
            return
        bounds, parent = Bounds(**request["bounds"]), os.getpid()
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, too little memory
            for end in (reader, writer):
                os.close(end)
            shutil.rmtree(folder, ignore_errors=True)
            text = f"no process can be started: {error.strerror}"
            self._write(request["id"], {"kind": "NotStarted", "text": text})
            return
        if not pid:
            with contextlib.suppress(BaseException):
                self._close_files(reader)
                _confine(parent, folder, bounds)
                _answer(request, writer)
            os._exit(0)
        os.close(writer)
        self._watch(Child(request["id"], bounds, folder, pid, reader))

    def _watch(self, child: Child) -> None:
        with contextlib.suppress(OSError):  # the child does the same
            os.setpgid(child.pid, child.pid)
        self.children[child.id] = child
        self.selector.register(child.reader, selectors.EVENT_READ, child)

    def _close_files(self, reader: int) -> None:
        """Close what a child does not need: it must keep no pipe of others open."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        readers = [child.reader for child in self.children.values()]
        for handle in (reader, self.out, *readers):
            os.close(handle)
        self.selector.close()

    def _read_answer(self, child: Child) -> None:
        chunk = os.read(child.reader, MAX_ANSWER)
        child.answer += chunk
        if not chunk or len(child.answer) > MAX_ANSWER:
            self._end(child)

    def _end(self, child: Child) -> None:
        """End a child; answer what it has said, or how it has ended."""
        del self.children[child.id]
        self.selector.unregister(child.reader)
        is_late = time.monotonic() >= child.ends_at
        status, cpu_s = child.end()
        try:
            answer = json.loads(child.answer)
        except ValueError:
            answer = _describe_end(child.bounds, is_late, status, cpu_s)
        self._write(child.id, answer)

    def _write(self, id: int, answer: dict[str, Any]) -> None:
        line = json.dumps({"id": id, "answer": answer}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # stdin ends too
            while line:
                line = line[os.write(self.out, line) :]


def _describe_end(
    bounds: Bounds, is_late: bool, status: int, cpu_s: float
) -> dict[str, Any]:
    """The answer for a child that gave none."""
    kind, number = "TooLarge", os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGXCPU or cpu_s >= bounds.cpu_s:
        text = f"it takes more than the {bounds.cpu_s:g} s of CPU time that it may take"
    elif is_late:
        text = f"it could not be read within {bounds.wall_s:g} s"
    elif number == signal.SIGKILL:
        text = "it needs more memory than the service has free"
    elif number == signal.SIGABRT:  # of C++ libraries, without memory above all
        text = f"it needs more than the {_gib(bounds.memory)}, or is damaged"
    else:
        how = signal.Signals(number).name if number else "no answer"
        kind, text = "Unreadable", f"it cannot be read (its reader ended with {how})"
    return {"kind": kind, "text": text}


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.3g} GiB of memory that reading a file may take"


def _confine(parent: int, folder: Path, bounds: Bounds) -> None:
    """Limit this process, and put its temporary files into a folder of its own.

    The number of processes is not limited: the kernel counts all of a user's, so a
    limit would refuse honest files on a busy machine. All are of one process group,
    and end with it.
    """
    os.setpgid(0, 0)
    limits.end_with_parent(parent)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits.limit_memory(pages * resource.getpagesize() + bounds.memory)
    cpu_s = max(1, math.ceil(bounds.cpu_s))
    for name, most in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, bounds.memory),  # files unpacked aside
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
    ):
        hard = resource.getrlimit(name)[1]
        hard = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        # one more than the soft limit, which says by its signal what it was
        resource.setrlimit(name, (min(most, hard), min(most + 1, hard)))


def _answer(request: dict[str, Any], writer: int) -> None:
    """Write the answer to the pipe."""
    try:
        answer = examine(request)
    except MemoryError:
        text = f"it needs more than the {_gib(request['bounds']['memory'])}"
        answer = {"kind": "TooLarge", "text": text}
    except Exception as error:
        text = f"it cannot be read ({type(error).__name__})"
        answer = {"kind": "Unreadable", "text": text}
    if "text" in answer:
        answer["text"] = answer["text"][:MAX_TEXT]
    os.write(writer, json.dumps(answer).encode())


@contextlib.contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A folder below `parent` that is locked until this process and its children end.

    Folders of ended processes are deleted.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(parent):
        sweep(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(parent: Path) -> bool:
    """Delete the folders of processes that have ended; whether no other is left."""
    remaining = 0
    for folder in parent.iterdir():
        with contextlib.suppress(OSError), _locked(folder, fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)
        remaining += folder.exists()
    return not remaining


@contextlib.contextmanager
def _locked(folder: Path, flags: int = 0) -> Iterator[None]:
    """Hold a folder's lock; OSError with LOCK_NB if a process has it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(handle)


def main(model_type: str, folder: str) -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the service ends first
    out = os.dup(1)
    os.dup2(2, 1)  # a framework's prints must not mix with answers
    limits.adopt_orphans()
    failure = None
    try:
        models.named(model_type)
    except FedrayError as error:
        failure = {"kind": type(error).__name__, "text": str(error)}
    with own_folder(Path(folder)) as own:
        server = ForkServer(out, own, failure)
        os.write(out, b'{"ready": true}\n')
        server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
