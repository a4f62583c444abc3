"""What is in use of the service's limits: counted per client and in total.

`Usage.claim` counts what a call takes and raises `LimitReached` where a limit is
reached. Counts hold over all processes of the service on its machine: each writes what
it uses into a file of its own below the service's folder and holds a lock on that file
(flock), which the kernel frees when the process ends in any way. What lasts longer than
a process (federations, trainings, their bytes on disk) is not counted here but read
from the federations' folders.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import orjson

from fedray import durable_files
from fedray.errors import LimitReached
from fedray.service.settings import Settings

FOLDER = ".usage"  # below the service's folder
FILE_BYTES = 256 << 10  # of a process's file: 1,000 clients; reserved at its start
UNWRITTEN = "unwritten"  # bytes of claims of disk that are not on it yet
LOG = logging.getLogger("fedray")
Amounts = defaultdict[str, float]  # by resource
Every = tuple[Mapping[str, Mapping[str, float]], ...]  # by client and resource
DETAILS = {  # by resource: of one client, of all
    "calls": ("You have as many calls under way as a client may.", "calls under way"),
    "stop_calls": (
        "You have as many calls to stop under way as a client may.",
        "calls to stop under way",
    ),
    "bytes_in_flight": (
        "Your calls under way hold as much memory as a client's may.",
        "bodies and answers in memory",
    ),
    "disk": (
        "Your federations and uploads take as much disk as a client's may.",
        "data on its disk",
    ),
    "examiner_s": (
        "Your files that wait to be read may take as much time as a client's may.",
        "files that wait to be read",
    ),
}
HINTS = {
    "calls": "Wait until some of them are answered.",
    "stop_calls": "Wait until some of them are answered.",
    "bytes_in_flight": "Read the answers of your calls, then call again.",
    "disk": "Its operator can delete stopped federations.",
    "examiner_s": "Wait until some of them are answered.",
}


class Usage:
    """Counts what one service uses, together with its other processes.

    Parameters
    ----------
    settings : with the limits; ``max_<resource>_per_client`` and ``max_<resource>``.
    """

    def __init__(self, settings: Settings):
        self.settings, self.root = settings, settings.folder
        self.ledger = Ledger(self.root / FOLDER)

    def claim(self, client: str | None, **amounts: float) -> "Claim":
        """Count amounts as used by a client until the claim is released.

        Parameters
        ----------
        client : its id; None: the client of a service without keys.
        amounts : by resource: calls, stop_calls, bytes_in_flight, disk (bytes),
            examiner_s (seconds).

        Raises
        ------
        LimitReached
            If a limit does not allow it; nothing is counted then.
        """
        claim = Claim(self, client)
        claim.add(**amounts)
        return claim

    def amount(self, resource: str, client: str | None = None) -> float:
        """How much of a resource a client uses now, over all processes."""
        with self.ledger.open() as uses:
            return uses.of(client or "")[resource]

    def total(self, resource: str) -> float:
        """How much of a resource all clients use now, over all processes."""
        with self.ledger.open() as uses:
            return uses.total()[resource]

    def close(self) -> None:
        """Use nothing any more."""
        self.ledger.close()


class Claim:
    """Amounts that a client uses; a context manager that releases them."""

    def __init__(self, usage: Usage, client: str | None):
        self.usage, self.client = usage, client or ""
        self.is_checked = True  # False: nothing more is refused
        self.amounts: Amounts = defaultdict(float)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def add(self, **amounts: float) -> None:
        """Count more; an amount of disk is also unwritten, which the caller removes.

        Raises
        ------
        LimitReached
            If a limit does not allow it; nothing is counted then.
        """
        if amounts.get("disk"):
            amounts[UNWRITTEN] = amounts["disk"]
        with self.usage.ledger.open() as uses:
            if self.is_checked:
                self._check(uses, amounts)
            self._change(uses, amounts)

    def add_unchecked(self, **amounts: float) -> None:
        """Count more, whatever the limits are."""
        with self.usage.ledger.open() as uses:
            self._change(uses, amounts)

    def raise_to(self, **amounts: float) -> None:
        """Count as much more as is missing to these amounts; raises as `add`."""
        missing = {
            resource: amount - self.amounts[resource]
            for resource, amount in amounts.items()
            if amount > self.amounts[resource]
        }
        if missing:
            self.add(**missing)

    @contextlib.contextmanager
    def without(self, **amounts: float) -> Iterator[None]:
        """Count less while the block runs: a call that only waits holds nothing up."""
        self.remove(**amounts)
        try:
            yield
        finally:
            self.add_unchecked(**amounts)

    def remove(self, **amounts: float) -> None:
        """Count less."""
        held = self.amounts
        less = {name: -max(0.0, min(n, held[name])) for name, n in amounts.items()}
        with self.usage.ledger.open() as uses:
            self._change(uses, less)

    def reduce_to(self, **amounts: float) -> None:
        """Count these amounts only, where they are less."""
        held = self.amounts
        self.remove(**{name: held[name] - amount for name, amount in amounts.items()})

    def release(self) -> None:
        """Use nothing any more; a second time it does nothing."""
        if any(self.amounts.values()):
            self.remove(**self.amounts)

    def _check(self, uses: "Uses", amounts: Mapping[str, float]) -> None:
        settings, own, total = self.usage.settings, uses.of(self.client), uses.total()
        for resource, amount in amounts.items():
            for limit, used in (
                (f"max_{resource}_per_client", own),
                (f"max_{resource}", total),
            ):
                most = getattr(settings, limit, None)
                if most is not None and used[resource] + amount > most:
                    raise limit_reached(limit, resource)
        if n_bytes := amounts.get(UNWRITTEN):
            room = free_bytes(self.usage.root) - settings.min_free_disk
            if total[UNWRITTEN] + n_bytes > room:
                raise disk_is_full()
            if own[UNWRITTEN] and own[UNWRITTEN] + n_bytes > room / 2:
                raise disk_is_full()  # a client's uploads leave room for others'

    def _change(self, uses: "Uses", amounts: Mapping[str, float]) -> None:
        for resource, amount in amounts.items():
            self.amounts[resource] += amount
        uses.change(self.client, amounts)


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write to the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def disk_is_full() -> LimitReached:
    """The error of a call that would fill the disk."""
    detail = "The service's disk is nearly full."
    hint = "Its operator must make room; POST /stop what is done."
    return LimitReached("min_free_disk", detail, hint, 507, 60)


def limit_reached(limit: str, resource: str) -> LimitReached:
    """The error of a limit; that of all clients names nobody."""
    status, retry_after_s = (507, 60) if resource == "disk" else (429, 5)
    if limit.endswith("_per_client"):
        detail, hint = DETAILS[resource][0], HINTS[resource]
    else:
        detail = f"The service has as many {DETAILS[resource][1]} as it takes."
        hint = "Call again in a moment."
    return LimitReached(limit, detail, hint, status, retry_after_s)


class Uses:
    """Amounts by client while the ledger is open: this process's, and the others'."""

    def __init__(self, own: dict[str, Amounts], others: list[dict[str, dict]]):
        self.own, self.others = own, others
        self.is_changed = False

    def of(self, client: str) -> Amounts:
        """What a client uses over all processes, by resource."""
        every: Every = (self.own, *self.others)
        return _sum(uses[client] for uses in every if client in uses)

    def total(self) -> Amounts:
        """What all clients use over all processes, by resource."""
        every: Every = (self.own, *self.others)
        return _sum(amounts for uses in every for amounts in uses.values())

    def change(self, client: str, amounts: Mapping[str, float]) -> None:
        """Add to what this process uses for a client."""
        own = self.own.setdefault(client, defaultdict(float))
        for resource, amount in amounts.items():
            own[resource] += amount
            if own[resource] <= 0:
                del own[resource]
        if not own:
            del self.own[client]
        self.is_changed = True


def _sum(parts: Iterator[Mapping[str, float]]) -> Amounts:
    total: Amounts = defaultdict(float)
    for amounts in parts:
        for resource, amount in amounts.items():
            total[resource] += amount
    return total


class Ledger:
    """A folder with a file of each process: JSON of amounts by client and resource.

    Where the files cannot be written, this process counts by itself, and says so once.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.own: dict[str, Amounts] = {}
        self.thread_lock = threading.Lock()
        self.lock_file: int | None = None  # held while amounts are read and changed
        self.own_file: int | None = None  # locked as long as this process lives
        self.own_name = f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self.has_failed = False

    @contextlib.contextmanager
    def open(self) -> Iterator[Uses]:
        """What is in use; nothing else changes it meanwhile. Not to be nested."""
        with self.thread_lock, self._lock_between_processes() as is_shared:
            uses = Uses(self.own, self._read_others() if is_shared else [])
            yield uses
            if is_shared and uses.is_changed:
                self._write_own()

    def close(self) -> None:
        """Delete this process's file; it counts by itself from then on."""
        with self.thread_lock, self._lock_between_processes():
            (self.folder / self.own_name).unlink(missing_ok=True)
        for handle in (self.own_file, self.lock_file):
            if handle is not None:
                os.close(handle)
        self.own_file = self.lock_file = None
        self.has_failed = True

    @contextlib.contextmanager
    def _lock_between_processes(self) -> Iterator[bool]:
        """Hold the folder's lock; False where there is none."""
        if self.lock_file is None and not self.has_failed:
            self._create_files()
        if self.lock_file is None:
            yield False
            return
        fcntl.flock(self.lock_file, fcntl.LOCK_EX)
        try:
            yield True
        finally:
            fcntl.flock(self.lock_file, fcntl.LOCK_UN)

    def _create_files(self) -> None:
        """Make this process's file, of its whole size: a full disk cannot stop it."""
        try:
            durable_files.make_folder(self.folder, 0o700)
            flags = os.O_RDWR | os.O_CREAT
            lock_file = os.open(self.folder / "lock", flags, 0o600)
            fcntl.flock(lock_file, fcntl.LOCK_EX)  # before it can be read without one
            try:
                own_file = os.open(self.folder / self.own_name, flags, 0o600)
                fcntl.flock(own_file, fcntl.LOCK_EX)
                os.posix_fallocate(own_file, 0, FILE_BYTES)
                os.pwrite(own_file, b"{}\n", 0)
            finally:
                fcntl.flock(lock_file, fcntl.LOCK_UN)
        except OSError as error:
            self._fail(error)
            return
        self.lock_file, self.own_file = lock_file, own_file

    def _read_others(self) -> list[dict[str, dict[str, float]]]:
        """What the other living processes use; files of ended ones are deleted."""
        others = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".json") and entry.name != self.own_name:
                with contextlib.suppress(OSError, ValueError):
                    others.append(_read_if_alive(entry.path))
        return others

    def _write_own(self) -> None:
        assert self.own_file is not None
        try:
            os.pwrite(self.own_file, orjson.dumps(self.own) + b"\n", 0)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self.has_failed:
            self.has_failed = True
            what = "other processes of the service are not counted in its limits"
            LOG.error("%s: %s refuses: %s", what, self.folder, error.strerror)


def _read_if_alive(path: str) -> dict[str, Any]:
    """What a process uses; {} if it has ended, and its file is deleted."""
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return {}
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return orjson.loads(_first_line(handle))
    finally:
        os.close(handle)


def _first_line(handle: int) -> bytes:
    """What stands before the first line end; an older, longer text may follow it."""
    n_bytes, line = 4096, b""
    while b"\n" not in line and n_bytes <= FILE_BYTES:
        line, n_bytes = os.pread(handle, n_bytes, 0), 8 * n_bytes
    return line.partition(b"\n")[0]
