"""Runs on a cluster: in a background thread, actors killed, outcomes compared."""

import os
import signal
import threading
import time

import ray
from support.comparison import assert_close
from support.waiting import PATIENCE_S

import fedray
from fedray.checkpoint import RunFolder
from fedray.config import parse, read_yaml
from fedray.errors import Stopped

MLP_BYTES = 4 * (784 * 16 + 16 + 16 * 10 + 10)
LONG = 100_000  # rounds: these runs are stopped


class BackgroundRun:
    """A federation that runs in a thread until it is told to stop."""

    def __init__(self, settings, folder, **words):
        self.folder, self.name = folder, folder.name
        self.round, self.begun, self.notes, self.error = 0, 0, [], None
        self.is_enough = threading.Event()
        words = {"run_dir": folder, "watch": self._watch, "rounds": LONG} | words
        self.thread = threading.Thread(target=self._run, args=(settings, words))
        self.thread.start()

    def _run(self, settings, words):
        try:
            self.result = fedray.run(settings, **words)
        except fedray.FedrayError as error:
            self.error = error

    def _watch(self, progress):
        self.notes += [note for note in progress.notes if note not in self.notes]
        self.round = max([self.round, *(report.round for report in progress.reports)])
        self.begun = progress.round
        if self.is_enough.is_set():
            raise KeyboardInterrupt

    def wait_for_round(self, round, is_begun=False):
        """Wait until a round is done, or begun."""
        patience = time.monotonic() + PATIENCE_S
        while (self.begun if is_begun else self.round) < round:
            assert self.thread.is_alive(), self.error
            assert time.monotonic() < patience, f"still in round {self.round}"
            time.sleep(0.02)

    def wait_for_note(self, note):
        """Wait until its progress has a note with this text; the round then done."""
        patience = time.monotonic() + PATIENCE_S
        while not any(note in told for told in self.notes):
            assert self.thread.is_alive(), self.error
            assert time.monotonic() < patience, self.notes
            time.sleep(0.02)
        return self.round

    def stop(self):
        """Stop it; its history."""
        self.is_enough.set()
        self.thread.join(PATIENCE_S)
        assert isinstance(self.error, Stopped), self.error
        return RunFolder(self.folder).history()


def assert_repeats(folder, again):
    """The config that a run leaves behind gives the same run."""
    run = RunFolder(folder)
    parties, rounds = (
        parse(read_yaml(folder / "config.yaml"))[0].parties,
        run.last_saved_round(),
    )
    ends = [party.left for party in parties if party.left and party.left > rounds]
    assert not ends, "a test that stops so early shows nothing"
    result = fedray.run(folder / "config.yaml", run_dir=again, rounds=rounds)
    for group in run.groups():
        kept = RunFolder(folder, group=group).newest_checkpoint()[0]
        if group is None or kept.round == rounds:  # a group may be a round ahead
            assert_close(result.weights(group), kept.weights, 0)
    return result.history


def outcomes(report) -> list[str]:
    return sorted(party.outcome.split(":")[0] for party in report.parties)


def kill_once(name: str, when, **options):
    """A watch that SIGKILLs an actor's process when `when(progress)` first holds."""
    done = []

    def watch(progress):
        if done or not when(progress):
            return
        done.append(kill(name, **options))

    watch.done = done
    return watch


def kill(name: str, **options) -> int:
    """SIGKILL an actor's process; its pid."""
    call = ray.get_actor(name).__ray_call__.options(**options)
    pid = ray.get(call.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    return pid
