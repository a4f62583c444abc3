"""The service's side of the examiner: one process a model type, asked one at a time."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from fedray.errors import CallRefused
from fedray.models import MODELS
from fedray.service import store as states
from fedray.service.sandbox import TIME_S

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
