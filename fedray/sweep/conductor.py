"""Runs the runs of a sweep, side by side, in one connection to Ray."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from fedray import federation, models, placement
from fedray.checkpoint import RunFolder
from fedray.errors import (
    ClusterError,
    FedrayError,
    PlacementError,
    Stopped,
    describe_error,
)
from fedray.federation import (
    RunOptions,
    SharedActors,
    StopAfterRound,
    can_share,
    run_by,
)
from fedray.messages import Progress
from fedray.observers import Guard
from fedray.sweep.plan import SweepRun
from fedray.sweep.progress import RUNNING, STOPPED, WAITING, SweepProgress
from fedray.sweep.record import DONE, FAILED, End, SweepRecord, SweepStopped

POLL_S = 0.2
LOG = logging.getLogger("fedray")
SweepWatch = Callable[[SweepProgress], None]
GO_ON = "The same command goes on"


class Conductor:
    """Runs what is left of a sweep; a run that fails does not end the others.

    n_jobs : runs side by side; None: as cores and GPUs allow.
    watch : called a few times a second in the calling thread.
    """

    def __init__(
        self,
        record: SweepRecord,
        progress: SweepProgress,
        n_jobs: int | None,
        watch: SweepWatch,
    ):
        self.record, self.progress, self.n_jobs = record, progress, n_jobs
        self.watch = Guard("progress of the sweep").call, watch
        self._is_stopping = False
        self._lost: ClusterError | None = None
        self._shared: SharedActors | None = None

    def run(self, runs: Sequence[SweepRun]) -> None:
        """Run them all; call it while connected to Ray.

        Raises
        ------
        SweepStopped
            If it was interrupted: the rounds under way are over and kept.
        ClusterError
            If Ray was lost.
        OSError
            If the sweep's record cannot be written.
        """
        configs = [run.config for run in runs]
        is_shared = all(map(can_share, configs))
        n = runs_side_by_side(configs, is_shared, self.n_jobs)
        self.progress.n_side_by_side = n
        if is_shared:
            self._shared = SharedActors(n)
            self._shared.prepare(configs[0])
        # one more, whose model is read or written while others have their rounds
        n_threads = n + is_shared
        with ThreadPoolExecutor(n_threads) as executor:
            try:
                self._run_all(runs, executor, n_threads)
            except BaseException:
                self.progress.is_ending = self._is_stopping = True
                raise
        if self._shared:
            self._shared.end()
        self._show()
        if self._lost:
            raise self._lost
        if self.progress.is_ending:
            n_done, n_runs = self.progress.count()[DONE], len(self.progress.runs)
            raise SweepStopped(n_done, n_runs, str(self.progress.folder))

    def _run_all(
        self, runs: Sequence[SweepRun], executor: ThreadPoolExecutor, n_threads: int
    ) -> None:
        waiting, running = deque(runs), dict[Future[End | None], SweepRun]()
        while running or (waiting and not self._has_end):
            while waiting and len(running) < n_threads and not self._has_end:
                run = waiting.popleft()
                running[executor.submit(self._run_one, run)] = run
            try:
                self._step(running)
            except KeyboardInterrupt:
                self._interrupt()

    @property
    def _has_end(self) -> bool:
        """Whether no other run begins."""
        return self.progress.is_ending or self._lost is not None

    def _step(self, running: dict[Future[End | None], SweepRun]) -> None:
        """Wait a little, and note what has ended."""
        ended, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
        for future in ended:
            run, end = running.pop(future), future.result()
            if end is not None:
                self.record.add(run.name, end)
                self.progress.end(run.name, end)
        self._show()

    def _show(self) -> None:
        call, watch = self.watch
        call(watch, self.progress)

    def _interrupt(self) -> None:
        """Once: end with the rounds under way; twice: give them up."""
        self._is_stopping = self.progress.is_ending
        self.progress.is_ending = True

    def _run_one(self, run: SweepRun) -> End | None:
        """Run one to its end; None if it was stopped, or Ray was lost."""
        own, started = self.progress.runs[run.name], time.monotonic()
        own.state = RUNNING
        try:
            self._train(run)
            return End(DONE)
        except (Stopped, KeyboardInterrupt):
            own.state = STOPPED
            return None
        except Exception as error:
            own.state = WAITING
            if lost := self._lost_cluster(error):
                self._lost = lost
                return None
            return End(FAILED, self._reason(run, error))
        finally:
            own.seconds = time.monotonic() - started

    def _train(self, run: SweepRun) -> None:
        folder = self.record.file.parent / run.name
        is_told = threading.Event()

        def watch(progress: Progress) -> None:
            self.progress.take(run.name, progress)
            if self._is_stopping:
                raise KeyboardInterrupt
            if self._has_end and not is_told.is_set():
                is_told.set()
                raise StopAfterRound

        conduct = self._shared.run if self._shared else federation.run_actors
        options = RunOptions(folder, resume=True)
        result = run_by(conduct, run.config, options, watch)
        self.progress.runs[run.name].take(result.history)

    def _lost_cluster(self, error: Exception) -> ClusterError | None:
        """The error of a sweep whose Ray was lost, which is no run's own failure."""
        lost = federation.lost_cluster()
        if not lost:
            return None
        LOG.debug("a run ended as Ray was lost: %s", error)
        return ClusterError(f"Ray was lost: {lost}", GO_ON)

    def _reason(self, run: SweepRun, error: Exception) -> str:
        """Why a run has failed, which its folder has, too."""
        if isinstance(error, FedrayError | OSError):
            return describe_error(error)
        LOG.debug("%s failed", run.name, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        folder = RunFolder(self.record.file.parent / run.name)
        Guard("failure.txt").call(folder.write_failure, reason)
        return reason


def runs_side_by_side(
    configs: Iterable[Any], is_shared: bool, n_wanted: int | None
) -> int:
    """How many runs may have their rounds at a time.

    As many as the cores and GPUs that they would reserve hold; of lent actors, which
    share cores, one more: a run alone leaves cores idle between its rounds.
    """
    configs = list(configs)
    nodes = placement.nodes()
    n_cpus = sum(node.n_cpus for node in nodes)
    n_gpus = sum(node.n_gpus for node in nodes)
    most = float(len(configs))
    for config in configs:
        try:
            pools = placement.place_federation(config, nodes)
        except PlacementError:  # the run's own failure, or a node that is to join
            continue
        actors = [pool.placement for pool in pools for _ in pool.actors]
        cpus, gpus = sum(a.n_cpus for a in actors), sum(a.n_gpus for a in actors)
        by_cpus = n_cpus / cpus if cpus else n_cpus
        by_gpus = n_gpus / gpus if gpus else math.inf
        one_more = is_shared and not gpus
        most = min(most, max(1, int(min(by_cpus + 1e-6, by_gpus + 1e-6))) + one_more)
    if n_wanted is not None:
        # actors of their own reserve whole cores: more would wait for these in vain
        most = n_wanted if is_shared else min(most, n_wanted)
    return max(1, int(min(most, len(configs))))


def preload(runs: Sequence[SweepRun]) -> None:
    """Import the frameworks of the runs' models, while Ray starts."""
    for model_type in {run.config.model_type for run in runs}:
        if model_type in models.MODELS:
            Guard(model_type, LOG.debug).call(models.named, model_type)
