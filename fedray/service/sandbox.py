"""Reads strangers' files in a process that may die of them.

``python -m fedray.service.sandbox MODEL_TYPE`` imports that adapter once and then
forks a child for each question that comes on stdin: one line of JSON in, one out. A
child has bounded memory, time and files; whatever a file does to it, it does to it
alone.
"""

import asyncio
import contextlib
import json
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import Any

from fedray import data, models
from fedray.errors import CallRefused, FedrayError, PartyError
from fedray.federation import read_config
from fedray.messages import ActorLocation
from fedray.models import MODELS
from fedray.party import GroupPlan, PartyGroup, count_documents
from fedray.service import store as states

MEMORY = 4 << 30  # bytes of address space on top of what the adapter takes
TIME_S = 60.0
MAX_TEXT = 4_000  # characters
MAX_ANSWER = 60_000  # bytes: less than a pipe holds


def examine(question: dict[str, Any]) -> dict[str, Any]:
    """Read a federation's model and, if `party` says which, that party's data with it.

    Gives {} where all is well, else kind and text of what is wrong.
    """
    try:
        config = read_config(question["config"])
        blueprint, _ = models.named(config.model_type).read(config)
        party = question.get("party")
        if party is None:
            return {}
        only = range(party, party + 1)
        handler = data.named(config.handler_of(party))
        name = config.party_name(party)
        group = GroupPlan(name, only, config, blueprint, handler)
        if not blueprint.schema:  # made of words that all parties count together
            return {"n_train": count_documents(group), "n_test": 0}
        joined = PartyGroup(group, lambda: ActorLocation("service")).join()
        return {"n_train": int(joined.n_train.sum()), "n_test": joined.n_test}
    except PartyError as error:
        return {"kind": error.kind, "text": error.why}
    except FedrayError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    except MemoryError:
        text = f"it needs more than the {MEMORY >> 30} GiB that reading a file may take"
        return {"kind": "TooLarge", "text": text}


def main(model_type: str) -> None:
    """Answer questions until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is no answer
    failed = None
    try:
        models.named(model_type)
    except FedrayError as error:
        failed = {"kind": type(error).__name__, "text": str(error)}
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        answer = failed or _asked_aside(json.loads(line))
        print(json.dumps(answer), file=out, flush=True)


def _asked_aside(question: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for one question; what it does not answer in time is no answer."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_bounded()
        _answer(question, writer)
    os.close(writer)
    try:
        said = _read(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        return json.loads(said)
    except ValueError:
        text = f"it could not be read within {TIME_S:g} s and {MEMORY >> 30} GiB"
        return {"kind": "TooLarge", "text": text}


def _read(reader: int) -> bytes:
    said = b""
    while len(said) < MAX_ANSWER:
        if not select.select([reader], [], [], TIME_S)[0]:
            return b""
        part = os.read(reader, 65536)
        if not part:
            break
        said += part
    return said


def _be_bounded() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (int(TIME_S), int(TIME_S)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))  # unpacked, then gone
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(question: dict[str, Any], writer: int) -> None:
    """Answer into the pipe and leave, past every handler that the parent has set."""
    try:
        try:
            answer = examine(question)
        except Exception as error:
            answer = {"kind": "Unreadable", "text": type(error).__name__}
        if "text" in answer:
            answer["text"] = answer["text"][:MAX_TEXT]
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


START_S = 120.0  # importing a framework on a busy machine
KINDS = {"MissingExtra": 501, "TooLarge": 413}


class Examiners:
    """Starts an examiner when its type is first asked for, and again if it dies."""

    def __init__(self):
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.locks = {model_type: asyncio.Lock() for model_type in MODELS}

    async def warm(self, model_type: str = "pytorch") -> None:
        """Start one, so that the first caller need not wait for it."""
        async with self.locks[model_type]:
            await self._process(model_type)

    async def examine(
        self, config: dict[str, Any], folder: Path, party: int | None = None
    ) -> dict[str, Any]:
        """See that model, and data of `party`, can be used; counts of samples.

        Raises
        ------
        CallRefused
            Saying what is wrong, without the server's paths.
        """
        model_type = config.get("model_type", "pytorch")
        if model_type not in MODELS:
            model_type = "pytorch"  # whichever is asked says that there is no such one
        asked = self._asked(model_type, {"config": config, "party": party})
        answer = await asyncio.shield(asyncio.ensure_future(asked))
        if "kind" not in answer:
            return answer
        text = answer["text"].replace(f"{folder}/{states.UPLOADS}/", "")
        text = text.replace(f"{folder}/", "")
        raise CallRefused(KINDS.get(answer["kind"], 422), text[:4000], _hint(answer))

    async def close(self) -> None:
        """End all of them."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self.running.clear()

    async def _asked(self, model_type: str, question: dict) -> dict[str, Any]:
        """Ask to the end, also where the client has hung up meanwhile."""
        async with self.locks[model_type]:
            return await self._answer(model_type, question)

    async def _answer(self, model_type: str, question: dict) -> dict[str, Any]:
        try:
            process = await self._process(model_type)
            process.stdin.write(json.dumps(question).encode() + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), TIME_S + 30)
            return json.loads(line)
        except (TimeoutError, OSError, ValueError):
            await self._drop(model_type)
            text = "It could not be read in bounded time and memory."
            return {"kind": "TooLarge", "text": text}

    async def _process(self, model_type: str) -> asyncio.subprocess.Process:
        process = self.running.get(model_type)
        if process is None or process.returncode is not None:
            process = self.running[model_type] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fedray.service.sandbox", model_type,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            await asyncio.wait_for(process.stdout.readline(), START_S)
        return process

    async def _drop(self, model_type: str) -> None:
        process = self.running.pop(model_type, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _hint(answer: dict[str, Any]) -> str:
    if answer["kind"] == "ModelFileError":
        return "Over REST a model comes whole: torch.save(model, file)."
    if answer["kind"] == "DataError":
        return "Look at the data and at data_handler_class_name, then send it again."
    return "Mend it and send it again."


if __name__ == "__main__":
    main(sys.argv[1])
