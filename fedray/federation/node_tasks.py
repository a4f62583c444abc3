"""Tasks on the nodes of parties, outside the rounds: vocabulary, queries, checks."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from fedray import data
from fedray.aggregator import reason
from fedray.config import FederationConfig
from fedray.errors import describe_late
from fedray.models import Blueprint
from fedray.party import GroupPlan
from fedray.placement import ActorPool

POLL_S = 0.2

T = TypeVar("T")


class RemoteFunction(Protocol):
    """A function of Ray with its options."""

    def remote(self, *arguments: Any) -> ObjectRef:
        """Submit a call."""
        ...


@dataclass(frozen=True)
class NodeTask:
    """One call of a remote function, pinned to a node by the function's options."""

    name: str  # of the party that it is about
    node_id: str
    function: RemoteFunction
    arguments: tuple[Any, ...]


def run_on_nodes(
    tasks: Sequence[NodeTask],
    timeout_s: float,
    n_per_node: int | None = None,
    poll: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run tasks, at most `n_per_node` at a time on a node; cancel those that are late.

    `poll` is called several times a second meanwhile.

    Returns
    -------
    Answers by task name, and for each task without an answer the reason; both in the
    order of the tasks.
    """
    waiting, calls = list(tasks), dict[ObjectRef, NodeTask]()
    answers, failures = dict[str, Any](), dict[str, str]()
    until = time.monotonic() + timeout_s
    try:
        while (waiting or calls) and time.monotonic() < until:
            waiting = _submit(waiting, calls, n_per_node)
            done, _ = ray.wait(list(calls), timeout=POLL_S)
            for answer_ref in done:
                name = calls.pop(answer_ref).name
                try:
                    answers[name] = ray.get(answer_ref)
                except RayError as error:
                    failures[name] = reason(error)
            poll()
    finally:
        for answer_ref in calls:
            ray.cancel(answer_ref, force=True)
    late = describe_late(timeout_s)
    failures |= {task.name: late for task in [*calls.values(), *waiting]}
    return in_order_of(tasks, answers), in_order_of(tasks, failures)


def in_order_of(tasks: Sequence[NodeTask], values: Mapping[str, T]) -> dict[str, T]:
    """Values of some tasks by their names, in the order of the tasks."""
    names = [task.name for task in tasks]
    return {name: values[name] for name in names if name in values}


def _submit(
    waiting: list[NodeTask], calls: dict[ObjectRef, NodeTask], n_per_node: int | None
) -> list[NodeTask]:
    """Start what nodes have room for; the tasks that go on waiting."""
    n_running = Counter(task.node_id for task in calls.values())
    later = []
    for task in waiting:
        if n_per_node is not None and n_running[task.node_id] >= n_per_node:
            later.append(task)
            continue
        n_running[task.node_id] += 1
        calls[task.function.remote(*task.arguments)] = task
    return later


def party_tasks(
    config: FederationConfig,
    blueprint: Blueprint,
    pools: list[ActorPool],
    function: Callable[..., Any],
    arguments: tuple[Any, ...] = (),
) -> list[NodeTask]:
    """Tasks that call ``function(plan, *arguments)`` where each pool's data is.

    A task is named after the pool's first actor.
    """
    remote = ray.remote(function)
    tasks = []
    for pool in pools:
        first = pool.parties.start
        handler = data.named(config.handler_of(first), config.source_of(first))
        name = pool.actors[0].partition(".")[0] if config.partition else pool.actors[0]
        plan = GroupPlan(name, pool.parties, config, blueprint, handler)
        options = pool.placement.options() | {"num_gpus": 0, "max_retries": 3}
        pinned = remote.options(name=f"{function.__name__}:{name}", **options)
        node_id = pool.placement.node_id
        tasks.append(NodeTask(name, node_id, pinned, (plan, *arguments)))
    return tasks
