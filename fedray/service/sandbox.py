"""Sandbox for uploaded files: they are read in child processes with bounded resources.

`Sandbox` is the service's side. For each model type in use it keeps an examiner process
(`fedray.service.examiner`), which reads each file in a child of its own. Clients take
turns, so that one's slow files do not hold up another's.
"""

import asyncio
import contextlib
import functools
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray import limits
from fedray.errors import CallRefused, ConfigError, FedrayError
from fedray.models import MODELS
from fedray.service import client_words, examiner
from fedray.service.fair_queue import FairQueue
from fedray.service.settings import Settings
from fedray.service.usage import Usage, disk_is_full

FOLDER = ".examiner"  # below the service's folder: for temporary files
# CPU time that reading a file may take, by its size: a file of 200 kB may be a
# recurrent network of Keras that needs most of a minute for its step
BASE_CPU_S = 60.0
CPU_S_PER_BYTE = 2e-6
WALL_FACTOR = 20  # times the CPU time: a busy machine refuses no honest file
START_S = 600.0  # for importing a framework on a busy machine
# an examiner process that nobody needs ends: the one used last after minutes
IDLE_S, OTHERS_IDLE_S = 300.0, 20.0
N_TRIES = 3  # of a request whose examiner process was killed
MAX_LINE = 1 << 18  # bytes of an answer
STATUS = {  # of an error's kind; others are 422
    "MissingExtra": 501,
    "TooLarge": 413,
    "NotStarted": 503,
}
MODEL_HINTS = {  # by model type
    "pytorch": (
        "Send the whole model, of layers that torch.nn has, as torch.save(model, file) "
        "writes it."
    ),
    "keras": "Send the whole model, as model.save('model.keras') writes it.",
    "sklearn": "Send an estimator or pipeline as skops.io.dump(model, file) does.",
    "doc2vec": "Send the global_model.npz of another federation, or no model_file.",
}
HINTS = {
    "DataError": "Look at the data and at data_handler_class_name, then send it again.",
    "MissingExtra": "Its operator must install it; or take another model_type.",
    "TooLarge": "Send a smaller file.",
    "NotStarted": "Try again in a moment.",
}


class Sandbox:
    """Checks uploaded files in examiner processes, clients in turn.

    A process is started when its model type is first needed, and again if it dies;
    what it was reading is then read again.
    """

    def __init__(self, usage: Usage):
        self.usage, self.settings, self.root = usage, usage.settings, usage.root
        self.n_files = files_at_once(self.settings)
        self.queue = FairQueue(self.n_files)
        self.examiners: dict[str, Examiner] = {}
        self.locks = {model_type: asyncio.Lock() for model_type in MODELS}

    async def warm_up(self, model_type: str = "pytorch") -> None:
        """Start a process, so that the first call need not wait for it."""
        with contextlib.suppress(OSError, TimeoutError):  # a call will say so
            await self._examiner(model_type)

    async def check(
        self,
        config: dict[str, Any],
        files: Mapping[str, str],
        client: str | None,
        party: int | None = None,
    ) -> dict[str, Any]:
        """Check that the model file, and the data of `party`, can be used.

        Where this is cancelled, what waits is dropped and what is read is ended.

        Parameters
        ----------
        config : plain data of a whole config.
        files : what the client calls its files, by their names here.
        client : whose turn it takes.
        party : place in the config.

        Returns
        -------
        n_train and n_test of the party where they are known; `schemas.MEMORY_FIELDS`.

        Raises
        ------
        LimitReached
            If as many of the client's files wait as may.
        CallRefused, ConfigError
            Saying what is wrong in the client's words.
        """
        model_type = config.get("model_type", "pytorch")
        if model_type not in MODELS:
            model_type = "pytorch"  # any process reports the unknown type
        bounds = self._bounds(config, party)
        request = {"config": config, "party": party, "bounds": vars(bounds)}
        with self.usage.claim(client, examiner_s=bounds.cpu_s):
            async with self.queue.place(client or ""):
                answer = await self._ask(model_type, request)
        if "kind" in answer:
            raise _refusal(answer, config, self.root, files, party)
        return answer

    async def close(self) -> None:
        """End all processes."""
        for model_type in list(self.examiners):
            process = self.examiners.pop(model_type)
            process.close()
            await asyncio.wait([process.reading])

    def _bounds(self, config: dict[str, Any], party: int | None) -> examiner.Bounds:
        """What reading a request's files may take."""
        n_bytes, settings = _file_bytes(config, party), self.settings
        cpu_s = min(
            BASE_CPU_S + CPU_S_PER_BYTE * n_bytes,
            settings.max_examiner_s_per_file,
            settings.max_examiner_s_per_client,
            settings.max_examiner_s,
        )
        memory = min(
            settings.max_examiner_memory, limits.machine_memory() // self.n_files
        )
        return examiner.Bounds(round(cpu_s), WALL_FACTOR * round(cpu_s), memory)

    async def _ask(self, model_type: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; asked again where the process was killed."""
        for _ in range(N_TRIES):
            try:
                process = await self._examiner(model_type)
            except (OSError, TimeoutError):
                continue
            with contextlib.suppress(OSError):
                return await process.ask(request)
        text = f"What reads files of model_type {model_type} does not start."
        return {"kind": "NotStarted", "text": text}

    async def _examiner(self, model_type: str) -> "Examiner":
        """The running process of a model type; started if there is none."""
        async with self.locks[model_type]:
            running = self.examiners.get(model_type)
            if running is None or not running.is_alive:
                folder = self.root / FOLDER
                running = await Examiner.start(model_type, folder)
                self.examiners[model_type] = running
                self._end_when_idle(model_type, running)
            return running

    def _end_when_idle(self, model_type: str, process: "Examiner") -> None:
        """End a process that has nothing to do, once it is idle for long enough."""
        if not process.is_alive or self.examiners.get(model_type) is not process:
            return
        idle_s = time.monotonic() - process.used_at
        used = [one.used_at for one in self.examiners.values()]
        most_s = IDLE_S if process.used_at == max(used) else OTHERS_IDLE_S
        if not process.answers and idle_s >= most_s:
            del self.examiners[model_type]
            process.close()
            return
        look_again = functools.partial(self._end_when_idle, model_type, process)
        asyncio.get_running_loop().call_later(OTHERS_IDLE_S / 4, look_again)


class Examiner:
    """One running examiner process, and who waits for its answers."""

    def __init__(self, process: Process, folder: Path):
        self.process, self.folder = process, folder
        self.answers: dict[int, asyncio.Future[dict[str, Any]]] = {}  # by request
        self.n_requests = 0
        self.is_alive, self.used_at = True, time.monotonic()
        self.reading = asyncio.ensure_future(self._read_answers())

    @classmethod
    async def start(cls, model_type: str, folder: Path) -> "Examiner":
        """Start a process; it has imported its framework when this returns.

        Raises
        ------
        OSError, TimeoutError
            If it does not start.
        """
        command = [sys.executable, "-m", examiner.__name__, model_type, str(folder)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, limit=MAX_LINE
        )
        try:
            assert process.stdout is not None
            if not await asyncio.wait_for(process.stdout.readline(), START_S):
                raise ConnectionError("it has ended")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        return cls(process, folder)

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer; where cancelled, it is ended.

        Raises
        ------
        OSError
            If the process ends before it has answered.
        """
        id = self.n_requests = self.n_requests + 1
        answer = asyncio.get_running_loop().create_future()
        self.answers[id] = answer
        try:
            self._write(request | {"id": id})
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if self.is_alive:
                self._write({"end": id})
            # its place is free when its child has ended
            await asyncio.wait([answer, self.reading], return_when="FIRST_COMPLETED")
            raise
        finally:
            self.answers.pop(id, None)
            self.used_at = time.monotonic()

    def close(self) -> None:
        """Let the process end with all its children; `reading` ends after them."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _write(self, line: dict[str, Any]) -> None:
        """Send a line; it waits in memory, which requests of some kB hardly take."""
        assert self.process.stdin is not None
        if not self.is_alive:
            raise ConnectionError("it has ended")
        self.process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read_answers(self) -> None:
        assert self.process.stdout is not None
        try:
            while line := await self.process.stdout.readline():
                answer = json.loads(line)
                if waiting := self.answers.get(answer["id"]):
                    waiting.set_result(answer["answer"])
        finally:
            self.is_alive = False
            for waiting in self.answers.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError("it has ended"))
                    waiting.exception()  # nobody may wait for it any more
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(examiner.sweep, self.folder)


def files_at_once(settings: Settings) -> int:
    """How many files are read at a time: as cores and memory allow, at least two.

    With one place a client's slow file would hold up all others.
    """
    if settings.max_examiner_files is not None:
        return settings.max_examiner_files
    n_cores = len(os.sched_getaffinity(0))
    n_fitting = limits.machine_memory() // settings.max_examiner_memory
    return max(2, min(n_cores, n_fitting))


def _file_bytes(config: dict[str, Any], party: int | None) -> int:
    """Size of the files that checking a config, and a party of it, reads."""
    paths = [config.get("model_file")]
    if party is not None:
        paths.append(config["parties"][party]["data"])
    n_bytes = 0
    for path in paths:
        with contextlib.suppress(OSError):  # reading it will say so
            n_bytes += Path(path).stat().st_size if path else 0
    return n_bytes


def _refusal(
    answer: dict[str, Any],
    config: dict[str, Any],
    root: Path,
    files: Mapping[str, str],
    party: int | None,
) -> FedrayError:
    """The error of a failed check, in the client's words."""
    if "problems" in answer:
        return client_words.config_error(ConfigError(answer["problems"]), files, root)
    kind, text = answer["kind"], answer["text"]
    if kind == "DiskError":
        return disk_is_full()
    if kind in ("TooLarge", "Unreadable"):
        is_model = party is None
        file = config["model_file"] if is_model else config["parties"][party]["data"]
        text = f"{'model file' if is_model else 'data'} {file}: {text}"
    hint = HINTS.get(kind, "Correct it and send it again.")
    if kind == "ModelFileError":
        hint = MODEL_HINTS.get(config.get("model_type", "pytorch"), hint)
    text = client_words.translate(text, files, root)
    return CallRefused(STATUS.get(kind, 422), text, hint)
