"""Sandbox for uploaded files: they are read in child processes with bounded resources.

`Sandbox` is the service's side: it keeps one process for each model type.
``python -m fedray.service.sandbox MODEL_TYPE`` is that process: it imports the model
adapter once and forks a child for each request on stdin, one line of JSON in, one out.
A child's memory, time and file sizes are limited, so a hostile file harms nothing else.
"""

import asyncio
import contextlib
import json
import os
import resource
import select
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray import data, limits, models
from fedray.errors import CallRefused, ConfigError, FedrayError, PartyError
from fedray.federation import ModelBytes, read_config
from fedray.messages import ActorLocation
from fedray.models import MODELS
from fedray.party import (
    GroupPlan,
    PartyGroup,
    count_documents,
    count_statistics,
    survey_parties,
)
from fedray.service import client_words
from fedray.weights import encoding

MEMORY = 4 << 30  # bytes of address space on top of what the adapter takes
TIME_S = 60.0
START_S = 120.0  # for importing a framework on a busy machine
N_TRIED = 16  # samples in the training step that is tried, which must take seconds
MAX_TEXT = 4_000  # characters
MAX_ANSWER = 60_000  # bytes: less than a pipe holds
STATUS = {"MissingExtra": 501, "TooLarge": 413}  # of an error's kind; others are 422
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
}


class Sandbox:
    """Checks uploaded files in a process for each model type, one request at a time.

    A process is started when its type is first needed, and again if it dies.
    """

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.locks = {model_type: asyncio.Lock() for model_type in MODELS}

    async def warm_up(self, model_type: str = "pytorch") -> None:
        """Start a process, so that the first call need not wait for it."""
        async with self.locks[model_type]:
            await self._process(model_type)

    async def check(
        self,
        config: dict[str, Any],
        root: Path,
        files: Mapping[str, str],
        party: int | None = None,
    ) -> dict[str, Any]:
        """Check that the model file, and the data of `party`, can be used.

        Parameters
        ----------
        config : plain data of a whole config.
        root : the service's folder, which no error text tells.
        files : what the client calls its files, by their names here.
        party : place in the config.

        Returns
        -------
        n_train and n_test of the party where they are known; `schemas.MEMORY_FIELDS`.

        Raises
        ------
        CallRefused, ConfigError
            Saying what is wrong in the client's words.
        """
        model_type = config.get("model_type", "pytorch")
        if model_type not in MODELS:
            model_type = "pytorch"  # any process reports the unknown type
        asking = self._ask(model_type, {"config": config, "party": party})
        answer = await asyncio.shield(asyncio.ensure_future(asking))
        if "kind" in answer:
            raise _refusal(answer, config, root, files, party)
        return answer

    async def close(self) -> None:
        """End all processes."""
        for model_type in list(self.processes):
            await self._end(model_type)

    async def _ask(self, model_type: str, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and read its answer, even if the client hangs up meanwhile."""
        async with self.locks[model_type]:
            try:
                process = await self._process(model_type)
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
                line = await asyncio.wait_for(process.stdout.readline(), TIME_S + 30)
                return json.loads(line)
            except (TimeoutError, OSError, ValueError):
                await self._end(model_type)
                text = "it could not be read in bounded time and memory"
                return {"kind": "TooLarge", "text": text}

    async def _process(self, model_type: str) -> Process:
        """The running process of a model type; started if there is none."""
        process = self.processes.get(model_type)
        if process is None or process.returncode is not None:
            module = "fedray.service.sandbox"
            process = self.processes[model_type] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, model_type, stdin=PIPE, stdout=PIPE
            )
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readline(), START_S)
        return process

    async def _end(self, model_type: str) -> None:
        process = self.processes.pop(model_type, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


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
    if kind in ("TooLarge", "Unreadable"):
        is_model = party is None
        file = config["model_file"] if is_model else config["parties"][party]["data"]
        text = f"{'model file' if is_model else 'data'} {file}: {text}"
    hint = HINTS.get(kind, "Correct it and send it again.")
    if kind == "ModelFileError":
        hint = MODEL_HINTS.get(config.get("model_type", "pytorch"), hint)
    text = client_words.translate(text, files, root)
    return CallRefused(STATUS.get(kind, 422), text, hint)


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
    except MemoryError:
        text = f"it needs more than the {MEMORY >> 30} GiB that reading a file may take"
        return {"kind": "TooLarge", "text": text}


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


def main(model_type: str) -> None:
    """Answer requests until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a framework's prints must not mix with answers
    failure = None
    try:
        models.named(model_type)
    except FedrayError as error:
        failure = {"kind": type(error).__name__, "text": str(error)}
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        answer = failure or _examine_in_child(json.loads(line))
        print(json.dumps(answer), file=out, flush=True)


def _examine_in_child(request: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for one request; without an answer in time the file is too large."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _limit_resources()
        _answer_and_exit(request, writer)
    os.close(writer)
    try:
        answer = _read_answer(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        return json.loads(answer)
    except ValueError:
        text = f"it could not be read within {TIME_S:g} s and {MEMORY >> 30} GiB"
        return {"kind": "TooLarge", "text": text}


def _read_answer(reader: int) -> bytes:
    """Everything that the child writes; empty if it pauses longer than `TIME_S`."""
    answer = b""
    while len(answer) < MAX_ANSWER:
        if not select.select([reader], [], [], TIME_S)[0]:
            return b""
        chunk = os.read(reader, 65536)
        if not chunk:
            break
        answer += chunk
    return answer


def _limit_resources() -> None:
    """Limit this process's memory, CPU time and file sizes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits.limit_memory(pages * resource.getpagesize() + MEMORY)
    resource.setrlimit(resource.RLIMIT_CPU, (int(TIME_S), int(TIME_S)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))  # files unpacked aside


def _answer_and_exit(request: dict[str, Any], writer: int) -> None:
    """Write the answer to the pipe and exit past all handlers that the parent set."""
    try:
        try:
            answer = examine(request)
        except Exception as error:
            text = f"it cannot be read ({type(error).__name__})"
            answer = {"kind": "Unreadable", "text": text}
        if "text" in answer:
            answer["text"] = answer["text"][:MAX_TEXT]
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
