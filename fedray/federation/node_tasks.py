"""Asking parties something outside the rounds: a task on each one's own node."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from fedray import data
from fedray.aggregator import reason
from fedray.config import FederationConfig
from fedray.models import Blueprint
from fedray.party import GroupPlan
from fedray.placement import ActorPool

POLL_S = 0.2


def visit(
    plans: list[tuple[GroupPlan, ActorPool]],
    ask: Callable[..., Any],
    arguments: tuple[Any, ...],
    timeout_s: float,
    poll: Callable[[], None] = lambda: None,
) -> tuple[list[Any], dict[str, str]]:
    """Call ``ask(plan, *arguments)`` where each plan's data is.

    Returns
    -------
    Answers in the order of the plans, and for each party that gave none the reason.
    """
    task = ray.remote(ask)
    calls = {}
    for plan, pool in plans:
        options = pool.placement.options() | {"num_gpus": 0, "max_retries": 3}
        name = f"{ask.__name__}:{plan.name}"
        calls[task.options(name=name, **options).remote(plan, *arguments)] = plan.name
    answers, failed = {}, {}
    waiting, until = list(calls), time.monotonic() + timeout_s
    try:
        while waiting and time.monotonic() < until:
            done, waiting = ray.wait(waiting, timeout=POLL_S)
            for ref in done:
                try:
                    answers[ref] = ray.get(ref)
                except RayError as error:
                    failed[calls[ref]] = reason(error)
            poll()
    finally:
        for ref in waiting:
            ray.cancel(ref, force=True)
    late = f"did not answer within {timeout_s:g} s"
    failed |= {calls[ref]: late for ref in waiting}
    return [answers[ref] for ref in calls if ref in answers], failed


def plans_of(
    config: FederationConfig, blueprint: Blueprint, pools: list[ActorPool]
) -> Iterator[tuple[GroupPlan, ActorPool]]:
    """What a visitor of each pool needs to know; it is named as the first actor is."""
    for pool in pools:
        handler = data.named(config.handler_of(pool.parties.start))
        name = pool.actors[0].partition(".")[0] if config.partition else pool.actors[0]
        yield GroupPlan(name, pool.parties, config, blueprint, handler), pool
