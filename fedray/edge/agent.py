"""The edge's loop: enrol once, then check in, fetch, train, send, over and over."""

import contextlib
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

from fedray.edge.backoff import MAX_RETRY_AFTER_S, Backoff
from fedray.edge.bandwidth import Bandwidth
from fedray.edge.condition import Condition
from fedray.edge.errors import CallFailed, EdgeEnded, Unreachable
from fedray.edge.heartbeat import CONFLICT, EVERY_S, Heartbeat
from fedray.edge.http_client import HttpClient
from fedray.edge.policy import EdgePolicy
from fedray.edge.sending import Sending, send_result
from fedray.edge.sent_log import SentLog
from fedray.edge.service import Invited, Service
from fedray.edge.state import StateFolder, TaskFolder
from fedray.edge.work import PartyOptions, TaskFailed, TaskVoid, Work
from fedray.edges.plan import MAX_BYTES as MAX_PLAN
from fedray.edges.protocol import (
    MAX_EDGE_TEXT,
    MAX_WAIT_S,
    CheckIn,
    Enrol,
    Fail,
    Task,
    Verdict,
    hash_secret,
    read_invitation,
)
from fedray.report.formatting import format_bytes
from fedray.untrusted_text import escape_line

LOG = logging.getLogger("fedray")
T = TypeVar("T")
State = Literal["idle", "training", "sending"]
ONCE_FAILURES = 3  # of --once, after which it gives up
CLOSED = (404, 409)  # statuses of a task that is not open any more
VERDICTS = {
    "taken": "taken",
    "late": "came late, its round was closed",
    "refused": "refused",
}
OTHER_INSTANCE_PAUSE_S = 1.0, 3.0
OTHER_INSTANCE_S = 180.0  # until a service lets go of a process that was killed
REFUSED_S = 60.0  # before the next check-in after a task was given back
IDLE_S = 1.0  # between two check-ins where the service names no time


@dataclass(frozen=True)
class EdgeOptions:
    """What the command line says, but for the owner's policy.

    urls, ca : as `HttpClient` takes them.
    max_bytes_per_s : of all that leaves and comes; None: no limit.
    max_disk : bytes of weights and updates in the state folder; None: no limit.
    when : command that exits 0 while the edge may train.
    once : whether it ends after one update, or when there is nothing to do.
    heartbeat_s : between two check-ins while it works.
    """

    urls: tuple[str, ...]
    party: PartyOptions
    ca: Path | None = None
    max_bytes_per_s: float | None = None
    max_disk: int | None = None
    when: str = ""
    once: bool = False
    heartbeat_s: float = EVERY_S


class Agent:
    """One edge, in a state folder that it alone uses.

    Parameters
    ----------
    state : entered: `with state`.
    sleep : waits; tests wait less.
    """

    def __init__(
        self,
        options: EdgeOptions,
        state: StateFolder,
        policy: EdgePolicy,
        sleep: Callable[[float], object] = time.sleep,
    ):
        self.options, self.state, self.sleep = options, state, sleep
        self.instance, self.name = secrets.token_hex(16), ""
        self.token: str | None = None
        self.identity = state.identity()
        self.bandwidth = Bandwidth(options.max_bytes_per_s)
        self.condition = Condition(options.when)
        self.backoff = Backoff()
        self.sent_log = SentLog(state.path)
        self.service = self._make_service()
        on_progress = self._advance
        self.work = Work(state, options.party, policy, on_progress, self.instance)
        self.heartbeat: Heartbeat | None = None

    def run(self) -> None:
        """Work until the run has ended; with --once until one update has left.

        Raises
        ------
        EdgeEnded
            If no further call can succeed: the run has ended, the edge was revoked.
        Unreachable
            With --once, if no service answers.
        """
        if self.options.once and not self.condition.holds():
            LOG.info("nothing is done now, since --when does not exit 0")
            return
        try:
            self._enrol()
            is_done = self._send_finished()
            while not is_done:
                is_done = self._step()
        finally:
            self.service.http.close()

    def leave(self) -> None:
        """Leave the run for good: the service erases what it has of this edge."""
        if self.state.enrolment() is None:
            raise EdgeEnded("this edge has not enrolled: there is nothing to leave")
        self._authorise()
        what = "left: the service has erased this edge's token, uploads, invitation"
        if not self._retry(self.service.leave):
            what = "the service does not know this edge: it has left, or was revoked"
        self.state.forget()
        LOG.info("%s", what)

    def _enrol(self) -> None:
        """Enrol, unless that is done; identity and token are on disk before."""
        if self.state.enrolment() is None:
            text = self.state.invitation() or ""
            invitation = read_invitation(text)
            if invitation is None:
                needed = "give --invitation-file, as `fedray edges invite` prints it"
                raise EdgeEnded(f"this edge has not enrolled: {needed}")
            self.sent_log.run = invitation.run
            enrol = Enrol(
                invitation=text.strip(),
                public_key=self.identity.public_key,
                token_hash=hash_secret(self.identity.secret),
                version=version("fedray"),
            )
            self.state.enrol(self._retry(lambda: self.service.enrol(enrol)))
            LOG.info("enrolled in run %s", invitation.run[:8])
        self._authorise()
        LOG.info("party %s, calling %s", escape_line(self.name), self.service.http.url)

    def _authorise(self) -> None:
        enrolment = self.state.enrolment()
        assert enrolment is not None
        self.name, self.sent_log.run = enrolment.name, enrolment.run
        self.service.http.token = self.token = self.state.token(self.identity)

    def _make_service(self) -> Service:
        """Calls with connections of their own, for one thread."""
        urls, ca = self.options.urls, self.options.ca
        return Service(HttpClient(urls, ca, self.bandwidth, self.token), self.sent_log)

    def _step(self) -> bool:
        """Check in, and do the task that there is; whether the edge is to end."""
        self.condition.wait()
        invited = self._retry(self._check_in_idle)
        self.state.drop_tasks({invited.task.id} if invited.task else ())
        if invited.task is not None:
            is_done = self._do(invited.task)
            return self.options.once and is_done
        if self.options.once:
            LOG.info("there is nothing to do now")
            return True
        wait_s = IDLE_S if invited.retry_after_s is None else invited.retry_after_s
        wait_s = min(wait_s, MAX_RETRY_AFTER_S)
        self.sleep(wait_s * random.uniform(1.0, 1.1))
        return False

    def _check_in_idle(self) -> Invited:
        until, is_first = time.monotonic() + OTHER_INSTANCE_S, True
        while True:
            try:
                return self.service.check_in(self._check_in("idle", wait_s=MAX_WAIT_S))
            except CallFailed as error:
                if error.status != CONFLICT or time.monotonic() > until:
                    raise self._cannot_check_in(error) from None
                if is_first:
                    LOG.info("another process has this edge's identity; waiting for it")
                is_first = False
                self.sleep(random.uniform(*OTHER_INSTANCE_PAUSE_S))

    def _cannot_check_in(self, error: CallFailed) -> EdgeEnded:
        if error.status != CONFLICT:
            return EdgeEnded(f"the service refuses the check-in: {error}")
        what = "another process runs with this edge's identity (a copied state folder?)"
        return EdgeEnded(f"{what}: end it, or enrol this one by its own invitation")

    def _check_in(
        self,
        state: State,
        task: str | None = None,
        share: float = 0.0,
        wait_s: float = 0.0,
    ) -> CheckIn:
        return CheckIn(
            state=state, share=min(max(share, 0.0), 1.0), task=task,
            have=self.state.object_names(), wait_s=wait_s, instance=self.instance,
            version=version("fedray"),
        )  # fmt: skip

    def _do(self, task: Task) -> bool:
        """Do a task; whether an update was sent."""
        folder, is_sent = self.state.open_task(task), False
        is_again = folder.result() is not None
        try:
            with self._beating(task):
                if not is_again:
                    self._make(task, folder)
                is_sent = self._send(task, folder, is_again)
        except TaskFailed as error:
            LOG.error("%s: %s", describe_task(task), error)
            folder.drop()
            self._give_back(task, error)
        except CallFailed as error:
            LOG.error("%s: the service does not help, %s", describe_task(task), error)
            self.sleep(self.backoff.delay_s())
        folder.drop()
        return is_sent

    @contextlib.contextmanager
    def _beating(self, task: Task) -> Iterator[None]:
        """Check in meanwhile; a task that nobody waits for is given up quietly."""
        every_s = self.options.heartbeat_s
        heartbeat = Heartbeat(self._make_service, self._check_in, task.id, every_s)
        self.heartbeat = heartbeat
        try:
            with heartbeat:
                yield
        except TaskVoid:
            LOG.info("%s: given up, %s", describe_task(task), heartbeat.void)
        finally:
            self.heartbeat = None
        if heartbeat.ended is not None:
            raise heartbeat.ended

    def _make(self, task: Task, folder: TaskFolder) -> None:
        """Fetch what a task needs, and do it."""
        what = describe_task(task)
        frozen = self._fetch(task)
        started = time.monotonic()
        LOG.info("%s: begins", what)
        result = self.work.do(task, frozen, folder)
        seconds = time.monotonic() - started
        LOG.info("%s: done in %.1f s, %s to send", what, seconds,
                 format_bytes(result.size + len(result.report)))  # fmt: skip

    def _fetch(self, task: Task) -> str:
        """Get plan and weights; SHA-256 of the tensors that travel once, or empty."""
        if task.plan_bytes > MAX_PLAN:
            what = (
                f"the plan has {task.plan_bytes:,} bytes, at most {MAX_PLAN:,} are read"
            )
            raise TaskFailed("plan", what, what)
        self._get(task.plan, task.plan_bytes)
        content = (self.state.objects / task.plan).read_bytes()
        frozen = self.work.check_plan(content)
        sizes = {task.base: task.base_bytes, task.state: task.state_bytes}
        self.state.prune({task.plan, frozen, *sizes})
        if frozen and not (self.state.objects / frozen).exists():
            sizes[frozen] = self._retry(lambda: self.service.size_of(frozen))
        self.work.check_sizes(max(sizes.values()))
        needed = sum(sizes.values()) + max(task.max_bytes, task.base_bytes)
        self._require_disk(needed)
        for sha256, n_bytes in sizes.items():
            if sha256:
                self._get(sha256, n_bytes)
        return frozen

    def _require_disk(self, n_bytes: int) -> None:
        """See that what a task needs has room; old weights are gone by then."""
        limit, free = self.options.max_disk, self.state.free_bytes()
        for room, name in ((limit, "--max-disk allows"), (free, "the disk has")):
            if room is not None and n_bytes > room:
                what = f"needs {format_bytes(n_bytes)} of disk, {name} less"
                raise TaskFailed("disk", what, f"{what}: {format_bytes(room)}")

    def _get(self, sha256: str, n_bytes: int) -> None:
        path = self.state.objects / sha256
        if path.exists():
            return
        self._retry(lambda: self.service.fetch(sha256, n_bytes, path))
        LOG.info("fetched %s", format_bytes(n_bytes))

    def _send(self, task: Task, folder: TaskFolder, is_again: bool) -> bool:
        """Send a result until there is a verdict; whether it was an update's.

        Raises
        ------
        TaskFailed
            If the service does not take it, and would ask for the same again.
        """
        assert self.heartbeat is not None
        self.heartbeat.state, what = "sending", describe_task(task)
        attempts = itertools.count(int(is_again))

        def send() -> Verdict:
            how = Sending(next(attempts) > 0, self._advance)
            return send_result(self.service, self.identity, task, folder, how)

        try:
            verdict = self._retry(send)
            why = f": {escape_line(verdict.why)}" if verdict.why else ""
            LOG.info("%s: %s%s", what, VERDICTS[verdict.verdict], why)
            return folder.update.exists()
        except CallFailed as error:
            if error.status not in CLOSED:
                why = f"its result is not taken: {error}"
                raise TaskFailed("upload", why, why) from None
            LOG.info("%s: not waited for any more, %s", what, error)
            return False

    def _send_finished(self) -> bool:
        """Send what a process before this one had finished, and not heard of.

        Whether the edge is to end, as `_step` says it.
        """
        is_sent = False
        for task, _ in list(self.state.finished_tasks()):
            is_sent |= self._do(task)
        return self.options.once and is_sent

    def _give_back(self, task: Task, error: TaskFailed) -> None:
        message = escape_line(error.message)[:MAX_EDGE_TEXT]
        fail = Fail(kind=error.kind, message=message)
        self._retry(lambda: self.service.fail(task.id, fail))
        if self.options.once:
            raise EdgeEnded(f"{describe_task(task)}: given back, {error}")
        self.sleep(random.uniform(0.8, 1.2) * REFUSED_S)

    def _advance(self, share: float) -> None:
        """Note how far a training is; stop it where nobody waits for it."""
        heartbeat = self.heartbeat
        if heartbeat is None:
            return
        heartbeat.share = share
        self.condition.wait(lambda: bool(heartbeat.void))
        if heartbeat.void:
            raise TaskVoid

    def _retry(self, call: Callable[[], T]) -> T:
        """Make a call until a service answers it.

        Raises
        ------
        TaskVoid
            If nobody waits for the task any more.
        """
        while True:
            self.condition.wait()
            self._stop_if_void()
            try:
                answer = call()
                self.backoff.reset()
                return answer
            except Unreachable as error:
                wait_s = self.backoff.delay_s(error.retry_after_s)
                if self.options.once and self.backoff.n_failures >= ONCE_FAILURES:
                    raise
                LOG.warning("%s; again in %.0f s", error, wait_s)
                self._pause(wait_s)

    def _pause(self, wait_s: float) -> None:
        """Wait, but not for a task that nobody waits for."""
        until = time.monotonic() + wait_s
        while (rest := until - time.monotonic()) > 0:
            self.sleep(min(rest, 1.0))
            self._stop_if_void()

    def _stop_if_void(self) -> None:
        if self.heartbeat is not None and self.heartbeat.void:
            raise TaskVoid


def describe_task(task: Task) -> str:
    """A task in words: "round 3 (train)"."""
    where = f" of {escape_line(task.group)}" if task.group else ""
    if task.kind == "join":
        return f"joining{where}"
    return f"round {task.round}{where} ({task.kind})"
