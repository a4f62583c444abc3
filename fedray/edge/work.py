"""Does what a task asks for, by the same code as a party in the cluster.

A task's result is whole and on disk when this returns; the same task again gives the
same bits.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedray import durable_files
from fedray.edge.errors import PolicyError
from fedray.edge.policy import EdgePolicy
from fedray.edge.state import SHA256, Result, StateFolder, TaskFolder
from fedray.edges import answers, tensor_file
from fedray.edges.plan import (
    EdgeParty,
    EdgePlanError,
    describe_plan,
    frozen_object,
    read_plan,
)
from fedray.edges.protocol import Task
from fedray.errors import FedrayError, PartyError
from fedray.fusion import State
from fedray.messages import ActorLocation, Update
from fedray.party import PartyGroup
from fedray.weights import Weights

COUNTED = "counted"  # in SCAFFOLD's state: by place, which rounds are in it
OWN = np.array([0])  # the place of the one party that an edge has
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
MEMORY_ERRORS = ("MemoryError", "OutOfMemoryError")
MAX_MESSAGE = 1_500  # characters of a failure that leave


class TaskVoid(KeyboardInterrupt):
    """Ends a training whose result nobody waits for; no user code catches it."""


@dataclass(frozen=True)
class PartyOptions:
    """What the owner of an edge names on the command line.

    data, data_handler, data_args : as a config has them.
    code : file.py:name of the architecture or the model class, if the run has one.
    is_class : whether `code` is a model class, which takes data of any form.
    device : cpu or cuda.
    """

    data: str
    data_handler: str
    data_args: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    is_class: bool = False
    device: str = "cpu"


class TaskFailed(FedrayError):
    """A task cannot be done here; `message` is what the service is told of it."""

    def __init__(self, kind: str, message: str, reason: str):
        super().__init__(kind, message, reason)
        self.kind, self.message, self.reason = kind, message, reason

    def __str__(self) -> str:
        return self.reason


class Work:
    """Model and data of an edge, which stay in memory from task to task.

    Parameters
    ----------
    name : of the party.
    on_progress : takes the share of a training that is done; may raise TaskVoid.
    instance : of this process.
    """

    def __init__(
        self,
        state: StateFolder,
        options: PartyOptions,
        policy: EdgePolicy,
        on_progress: Callable[[float], None],
        instance: str,
    ):
        self.state, self.options, self.policy = state, options, policy
        self.on_progress, self.instance = on_progress, instance
        self.group: PartyGroup | None = None
        self._plan = ""  # SHA-256 of what `group` was made by

    def check_plan(self, content: bytes) -> str:
        """See whether the owner allows a plan; SHA-256 of a further object, or empty.

        Raises
        ------
        TaskFailed
        """
        try:
            self.policy.check_plan(describe_plan(content))
            frozen = frozen_object(content)
        except PolicyError as error:
            raise TaskFailed("refused", str(error), str(error)) from None
        except EdgePlanError as error:
            raise TaskFailed("plan", str(error), str(error)) from None
        except Exception as error:  # who wrote it may be hostile
            what = f"the plan cannot be read ({type(error).__name__})"
            raise TaskFailed("plan", what, what) from None
        if frozen and not SHA256.fullmatch(frozen):
            what = "the plan names no object by its SHA-256"
            raise TaskFailed("plan", what, what)
        return frozen

    def check_sizes(self, n_bytes: int) -> None:
        """See whether the owner allows an object of so many bytes to be fetched.

        Raises
        ------
        TaskFailed
        """
        try:
            self.policy.check_bytes(n_bytes - tensor_file.MAX_HEADER)
        except PolicyError as error:
            raise TaskFailed("refused", str(error), str(error)) from None

    def do(self, task: Task, frozen: str, folder: TaskFolder) -> Result:
        """Do a task whose objects are here; the result is on disk when this returns.

        frozen : SHA-256 of the tensors that travel once; empty: there are none.

        Raises
        ------
        TaskFailed
            Saying what the service may know of it.
        TaskVoid
        """
        try:
            group = self._open(task)
            plain, update = self._answer(task, group, frozen)
            result = self._write(task, plain, update, folder)
        except PolicyError as error:
            raise TaskFailed("refused", str(error), str(error)) from None
        except PartyError as error:
            kind = "memory" if error.kind in MEMORY_ERRORS else "training"
            message = self._without_paths(error.summary)[:MAX_MESSAGE]
            raise TaskFailed(kind, message, str(error)) from None
        except MemoryError:
            what = "there is too little memory for it"
            raise TaskFailed("memory", what, what) from None
        except Exception as error:  # what it says may name a file here
            kind = type(error).__name__
            message = f"{kind}; the log of this edge says more"
            reason = (
                str(error) if isinstance(error, FedrayError) else f"{kind}: {error}"
            )
            raise TaskFailed("other", message, reason) from None
        folder.finish(result)
        return result

    def _without_paths(self, text: str) -> str:
        """A text without this machine's paths, which are its owner's alone."""
        code = self.options.code.rpartition(":")[0]
        for path in (self.options.data, code, str(self.state.path)):
            text = text.replace(path, Path(path).name) if path else text
        return text

    def _open(self, task: Task) -> PartyGroup:
        """The party of the task's plan; made anew where the plan is another."""
        if self.group is not None and self._plan == task.plan:
            return self.group
        self.group = None
        content = (self.state.objects / task.plan).read_bytes()
        own = self.options
        party = EdgeParty(
            task.name, own.data, own.data_handler, own.data_args, own.code,
            str(self.state.party),
        )  # fmt: skip
        plan = read_plan(content, party)
        location = ActorLocation(f"edge:{task.name}"[:64], own.device, self.instance)
        group = PartyGroup(
            plan, lambda: location, lambda run, name, share: self.on_progress(share)
        )
        n_samples = int(group.local_data.n_train[0])
        noise = group.private.noise(group.local_data)
        settings = describe_plan(content).settings
        self.policy.check_training(settings, n_samples, noise)
        self.group, self._plan = group, task.plan
        return group

    def _answer(
        self, task: Task, group: PartyGroup, frozen: str
    ) -> tuple[dict[str, Any], Update | None]:
        payload = self._weights(task.base)
        state = read_state(self._weights(task.state), task.party)
        if task.kind == "join":
            call: list[Any] = ["join", payload or None]
        elif task.kind == "evaluate":
            call = ["evaluate", payload, (0, 1), None, task.round]
        else:  # train, or update: what it has trained since the last fusion
            call = [task.kind, task.round, OWN, payload, state or None, task.since]
        if task.learning_rate is not None:
            call = ["with_learning_rate", task.learning_rate, *call]
        if frozen:
            call = ["with_frozen", self._weights(frozen), *call]
        method, *arguments = call
        answer = getattr(group, method)(*arguments)
        if task.kind == "join":
            return answers.write_info(answer), None
        if task.kind == "evaluate":
            return answers.write_score(answer), None
        report, *updates = answer if isinstance(answer, tuple) else (answer,)
        return answers.write_report(report), updates[0] if updates else None

    def _weights(self, sha256: str | None) -> Weights:
        """Arrays of an object that is here: views of its file."""
        if not sha256:
            return {}
        return tensor_file.read(self.state.objects / sha256).weights

    def _write(
        self,
        task: Task,
        plain: dict[str, Any],
        update: Update | None,
        folder: TaskFolder,
    ) -> Result:
        report = json.dumps(plain, separators=(",", ":"))
        if update is None:
            return Result(0, NOTHING, report)
        metadata = {
            "run": task.run, "round": str(task.round), "party": str(task.party),
            "base": task.base or "", "n_samples": str(update.n_samples),
        }  # fmt: skip
        with durable_files.replace_file(folder.update, 0o600) as aside:
            sha256, n_bytes = tensor_file.write(aside, update.weights, metadata)
        return Result(n_bytes, sha256, report)


def read_state(flat: Weights, place: int) -> State:
    """The rule's state of one party, from arrays named ``entry/name``.

    place : of the party in the run; here it is at place 0.
    """
    state: State = {}
    for path, array in flat.items():
        entry, _, name = path.partition("/")
        state.setdefault(entry, {})[name] = array
    if (counted := state.get(COUNTED)) is not None:
        state[COUNTED] = {k: rounds[place : place + 1] for k, rounds in counted.items()}
    return state
