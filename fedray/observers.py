"""Observers of a run: terminal, tracker, metrics, report, callbacks.

What only watches a run cannot end it, nor hold it up: each observer is called through a
`Guard`, and what may be slow through a `BackgroundObserver`, in a thread of its own.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

LOG = logging.getLogger("fedray")
PATIENCE_S = 20.0  # for one call of an observer, once the run has ended
MAX_REASON = 500  # characters
T = TypeVar("T")
R = TypeVar("R")
END = object()


class Guard:
    """Calls an observer of a run; that it fails is said once, and nothing else happens.

    Parameters
    ----------
    name : of the observer, as the message has it.
    warn : takes the message.
    """

    def __init__(self, name: str, warn: Callable[[str], None] = LOG.warning):
        self.name, self.warn, self.has_failed = name, warn, False

    def call(
        self, function: Callable[..., R], *arguments: Any, **named: Any
    ) -> R | None:
        """What the function returns; None where it fails.

        KeyboardInterrupt and other exceptions that are no Exception pass.
        """
        try:
            return function(*arguments, **named)
        except Exception as error:
            kind = type(error).__name__
            self.fail(f"{kind}: {error}"[:MAX_REASON].removesuffix(": "))
            return None

    def fail(self, reason: str) -> None:
        """Say why the observer does not work, if it is the first time."""
        if not self.has_failed:
            self.has_failed = True
            self.warn(f"{self.name} failed, and the run goes on without it: {reason}")


class BackgroundObserver(Generic[T]):
    """Calls an observer in a thread of its own; used as a context around the run.

    A run that ends waits for what is still to be handed over, but not for a call that
    takes longer than `patience_s`.

    Parameters
    ----------
    guard : through which it is opened and called.
    open : context that gives the function to call; an error that ends the run is raised
        in it.
    """

    def __init__(
        self,
        guard: Guard,
        open: Callable[[], AbstractContextManager[Callable[[T], None]]],
        patience_s: float | None = None,
    ):
        self.guard, self.open = guard, open
        self.patience_s = PATIENCE_S if patience_s is None else patience_s
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.busy_since: float | None = None  # of the call under way
        self.thread = threading.Thread(
            target=guard.call, args=(self._work,), name=guard.name, daemon=True
        )

    def __call__(self, item: T) -> None:
        """Have the observer called with an item, after those before it."""
        if self.thread.is_alive():
            self.items.put(item)
            if self._waits_since(0):
                self.guard.fail(f"no answer in {self.patience_s:g} s")

    def __enter__(self) -> "BackgroundObserver[T]":
        self.busy_since = time.monotonic()
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.items.put(END if error is None else error)
        ended_at = time.monotonic()
        while self.thread.is_alive():
            self.thread.join(0.05)
            if self._waits_since(ended_at):
                self.guard.fail(f"no answer in {self.patience_s:g} s")
            is_over = time.monotonic() - ended_at > self.patience_s
            if is_over and self.guard.has_failed:
                return

    def _waits_since(self, moment: float) -> bool:
        """Whether the call under way has taken too long, counted from a moment on."""
        since = self.busy_since
        return since is not None and (
            time.monotonic() - max(since, moment) > self.patience_s
        )

    def _work(self) -> None:
        item: Any = None
        try:
            with self.open() as observe:
                while (item := self._next()) is not END:
                    if isinstance(item, BaseException):
                        raise item
                    self.guard.call(observe, item)
                self.busy_since = time.monotonic()
        except BaseException as error:
            if error is not item:
                raise

    def _next(self) -> Any:
        self.busy_since = None
        item = self.items.get()
        self.busy_since = time.monotonic()
        return item
