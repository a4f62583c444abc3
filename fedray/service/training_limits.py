"""What ends a training that takes more than it may: time, or memory."""

import time
from dataclasses import replace
from pathlib import Path

import ray

from fedray import placement, policy
from fedray.checkpoint import RunFolder
from fedray.errors import OutOfMemory
from fedray.messages import Progress
from fedray.service import store

START_S = 120.0  # for starting processes on a busy machine, on top
GRACE_S = 10.0  # for the round under way; more if others took longer
NO_ROUND = (
    "Its time here ({limit_s:g} s, max_training_s) was over before a round was done."
)


class TimeLimit:
    """Says when a training's time is over and the round under way does not end.

    A run ends by itself after the round in which its time is over (`max_training_s`).
    This is for a round that hangs, and for what comes before round 1 and after the
    last. The round under way may take as long as the longest before it.

    limit_s : seconds; None: no limit.
    """

    def __init__(self, limit_s: float | None):
        self.limit_s = limit_s
        self.is_over = False
        self._rounds_s, self._grace_s = 0.0, START_S
        self._since_s = time.monotonic()  # of the round under way

    def check(self, progress: Progress) -> bool:
        """Whether the training is to be given up now.

        progress : with the rounds done since the last call.
        """
        now_s = time.monotonic()
        if progress.reports and not self._rounds_s:
            self._grace_s = GRACE_S
        for report in progress.reports:
            self._rounds_s += report.seconds
            self._grace_s = max(self._grace_s, report.seconds)
            self._since_s = now_s
        if self.limit_s is not None:
            rest_s = max(0.0, self.limit_s - self._rounds_s)
            over_s = now_s - self._since_s - rest_s
            self.is_over = over_s > self._grace_s
        return self.is_over


def record_time_limit(folder: Path, limit_s: float) -> str:
    """Note in a run's history that it stopped with its time; empty without a round.

    A reason for which it had stopped before stays.
    """
    run = RunFolder(folder)
    checkpoint, _ = run.newest_checkpoint()
    if checkpoint is None:
        return ""
    reason = checkpoint.report.stop_reason or policy.describe_time_limit(limit_s)
    report = replace(checkpoint.report, stop_reason=reason)
    run.rewind(replace(checkpoint, report=report))
    return reason


def count_memory_deaths(folder: Path) -> None:
    """Count whether the calling actor was restarted since it was killed for its memory.

    Raises
    ------
    OutOfMemory
        If it was so twice since its training began.
    """
    context, kills = ray.get_runtime_context(), placement.count_kernel_kills()
    died = False
    with store.changing(folder) as state:
        if context.was_current_actor_reconstructed:
            ended = placement.ended_processes(context.current_actor._actor_id)
            last = list(ended.values())[-1:]
            has_killed = kills > state.kernel_kills
            died = any(placement.died_of_memory(one, has_killed) for one in last)
        state.memory_deaths += died
        state.kernel_kills = kills
    if state.memory_deaths >= placement.MAX_DEATHS:
        why = placement.describe_deaths(state.memory_deaths)
        raise OutOfMemory("the training's process", why)
