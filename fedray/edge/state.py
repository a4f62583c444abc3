"""The state folder of an edge: identity, token, tasks, weights, list of what left.

All of it is readable by its owner alone, and on disk before anything follows from it,
so that a process that was killed goes on where it was. One process uses a folder.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from fedray import durable_files
from fedray.edge.errors import EdgeStateError
from fedray.edges.protocol import (
    MAX_HAVE,
    Enrolment,
    Task,
    hash_secret,
    make_secret,
    read_invitation,
    write_token,
)
from fedray.errors import EdgeMessageError
from fedray.privacy.keys import write_secret

HOME = Path("~/.fedray/edge")
IDENTITY, TOKEN, ENROLMENT = "identity.key", "token", "enrolment.json"
INVITATION = "invitation"  # until it has enrolled
ENROLLED_BY = "invitation.sha256"
TASKS, OBJECTS, PARTY = "tasks", "objects", "party"
TASK, UPDATE, RESULT = "task.json", "update.safetensors", "result.json"
LOCK = "lock"
SHA256 = re.compile(r"[0-9a-f]{64}")
KEY_BYTES = 32
MAX_TEXT = 4 << 20  # of a file of JSON


class Identity(NamedTuple):
    """What an edge is known by: its Ed25519 key, and the secret part of its token."""

    key: Any  # Ed25519PrivateKey
    secret: str

    def __repr__(self) -> str:
        return "Identity(...)"

    @property
    def public_key(self) -> str:
        """Hex."""
        return str(self.key.public_key().public_bytes_raw().hex())

    def sign(self, data: bytes) -> str:
        """Ed25519 signature, hex."""
        return str(self.key.sign(data).hex())


class Result(NamedTuple):
    """What a task has come to: its report, and the file of its update.

    size, sha256 : of the file; 0 and the SHA-256 of nothing where there is none.
    report : JSON text.
    """

    size: int
    sha256: str
    report: str


class StateFolder:
    """Files of one edge; made on first use, for this user alone."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    @property
    def party(self) -> Path:
        """What the party keeps of its runs: its own layers, ledger, whole errors."""
        return self.path / PARTY

    @property
    def objects(self) -> Path:
        """Weights and plans, by SHA-256."""
        return self.path / OBJECTS

    def __enter__(self) -> Self:
        """Make the folder, and keep other processes out of it.

        Raises
        ------
        EdgeStateError
            If another process uses it, or others may read it.
        OSError
            If it cannot be made.
        """
        durable_files.make_folder(self.path, 0o700)
        if self.path.stat().st_mode & 0o077:
            needed = f"its owner alone may read it: chmod -R go= {self.path}"
            raise EdgeStateError(str(self.path), f"others may read it; {needed}")
        self._make_folders()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._lock = os.open(self.path / LOCK, flags, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            remedy = "end it first, or give this one --state-dir and an invitation"
            what = f"another fedray edge uses it; {remedy} of its own"
            raise EdgeStateError(str(self.path), what) from None
        durable_files.remove_leftovers(self.path)
        return self

    def _make_folders(self) -> None:
        for name in (TASKS, OBJECTS, PARTY):
            durable_files.make_folder(self.path / name, 0o700)

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def identity(self) -> Identity:
        """Key and secret; made, and on disk, where there are none yet.

        Raises
        ------
        MissingExtra
            If the package cryptography is not installed.
        EdgeStateError
            If one is damaged.
        """
        from fedray.privacy.keys import require_cryptography

        require_cryptography()
        from cryptography.hazmat.primitives.asymmetric import ed25519

        key = self._secret(IDENTITY, lambda: os.urandom(KEY_BYTES))
        if len(key) != KEY_BYTES:
            raise self._damaged(IDENTITY)
        secret = self._secret(TOKEN, lambda: make_secret().encode())
        private = ed25519.Ed25519PrivateKey.from_private_bytes(key)
        return Identity(private, secret.decode("ascii", "replace"))

    def _secret(self, name: str, make: Any) -> bytes:
        path = self.path / name
        if not path.exists():
            write_secret(path, make())
        return path.read_bytes()

    def _damaged(self, name: str) -> EdgeStateError:
        remedy = "restore it, or enrol anew with another --state-dir and invitation"
        return EdgeStateError(str(self.path / name), f"it is damaged; {remedy}")

    def accept(self, invitation: str | None) -> None:
        """Keep an invitation until it has enrolled this edge.

        One that is not that by which it has enrolled enrols it anew, with another key:
        so does an edge come back that was shut out.

        Raises
        ------
        EdgeStateError
            If this edge has enrolled in another run.
        """
        parts = read_invitation(invitation or "")
        enrolment = self.enrolment()
        if invitation is None or parts is None:
            return
        if enrolment is None:
            write_secret(self.path / INVITATION, invitation.encode())
        elif enrolment.run == parts.run:
            if self._enrolled_by() != hash_secret(parts.secret):
                self.forget()
                self._make_folders()
                write_secret(self.path / INVITATION, invitation.encode())
        else:
            remedy = "give another --state-dir"
            what = f"it has enrolled in another run than the invitation's; {remedy}"
            raise EdgeStateError(str(self.path), what)

    def invitation(self) -> str | None:
        """The invitation that has not enrolled this edge yet."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / INVITATION).read_text("utf-8")
        return None

    def enrolment(self) -> Enrolment | None:
        """What the service answered when this edge enrolled; None: it has not."""
        with contextlib.suppress(FileNotFoundError):
            try:
                return Enrolment.parse((self.path / ENROLMENT).read_bytes())
            except EdgeMessageError:
                raise self._damaged(ENROLMENT) from None
        return None

    def enrol(self, enrolment: Enrolment) -> None:
        """Keep the answer; the invitation is not needed any more, but for its hash."""
        text = enrolment.to_json().decode()
        if parts := read_invitation(self.invitation() or ""):
            hashed = hash_secret(parts.secret)
            durable_files.write_text(self.path / ENROLLED_BY, hashed, 0o600)
        durable_files.write_text(self.path / ENROLMENT, text, 0o600)
        (self.path / INVITATION).unlink(missing_ok=True)

    def _enrolled_by(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.path / ENROLLED_BY).read_text("ascii")
        return ""

    def token(self, identity: Identity) -> str:
        """What each call is authorised by."""
        enrolment = self.enrolment()
        assert enrolment is not None, "it has enrolled"
        return write_token(enrolment.run, enrolment.edge, identity.secret)

    def forget(self) -> None:
        """Erase all that belongs to the run that this edge has left; not what left."""
        for name in (ENROLMENT, ENROLLED_BY, INVITATION, TOKEN, IDENTITY):
            (self.path / name).unlink(missing_ok=True)
        for name in (TASKS, OBJECTS):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def object_names(self) -> list[str]:
        """SHA-256 of the whole objects that are here."""
        names = sorted(path.name for path in self.objects.iterdir())
        return [name for name in names if SHA256.fullmatch(name)][:MAX_HAVE]

    def prune(self, keep: Collection[str | None]) -> None:
        """Delete objects, and parts of them, that are none of these."""
        for path in self.objects.iterdir():
            if path.stem not in keep:
                path.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Bytes that the disk has for this folder's user."""
        return shutil.disk_usage(self.path).free

    def open_task(self, task: Task) -> "TaskFolder":
        """The folder of a task, which is on disk then."""
        folder = TaskFolder(self.path / TASKS / task.id)
        durable_files.make_folder(folder.path, 0o700)
        text = task.to_json().decode()
        if not (folder.path / TASK).exists():
            durable_files.write_text(folder.path / TASK, text, 0o600)
        return folder

    def finished_tasks(self) -> Iterator[tuple[Task, "TaskFolder"]]:
        """Tasks that have a result which no verdict has come for, oldest first."""
        paths = (self.path / TASKS).iterdir()
        for path in sorted(paths, key=lambda one: one.stat().st_mtime):
            folder = TaskFolder(path)
            task = folder.task()
            if task is not None and folder.result() is not None:
                yield task, folder

    def drop_tasks(self, keep: Collection[str] = ()) -> None:
        """Delete what lies here of other tasks than these."""
        for path in (self.path / TASKS).iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)


class TaskFolder:
    """Files of one task: what was asked, then its update and report, once whole."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def update(self) -> Path:
        """The file that is sent; there once it is whole."""
        return self.path / UPDATE

    def task(self) -> Task | None:
        """What was asked; None where that is not readable."""
        with contextlib.suppress(OSError, EdgeMessageError):
            return Task.parse((self.path / TASK).read_bytes())
        return None

    def result(self) -> Result | None:
        """What it has come to; None: it is not done, or its file is not whole."""
        try:
            plain = json.loads((self.path / RESULT).read_text("utf-8"))
            result = Result(plain["size"], plain["sha256"], plain["report"])
            size = self.update.stat().st_size if result.size else 0
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result if size == result.size else None

    def finish(self, result: Result) -> None:
        """Keep a result; its file is whole, and on disk."""
        text = json.dumps(result._asdict())
        durable_files.write_text(self.path / RESULT, text, 0o600)

    def drop(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.path, ignore_errors=True)


def default_folder(invitation: str | None) -> Path:
    """The folder of an invitation in the user's home, or the only one there.

    Raises
    ------
    EdgeStateError
        If there are several, or none.
    """
    home = HOME.expanduser()
    if invitation is not None and read_invitation(invitation):
        digest = hashlib.sha256(invitation.strip().encode()).hexdigest()
        return home / digest[:16]
    folders = sorted(home.iterdir()) if home.is_dir() else []
    if len(folders) == 1:
        return folders[0]
    shown = ", ".join(map(str, folders)) or "none"
    remedy = "give --invitation-file, or --state-dir of an edge that has enrolled"
    raise EdgeStateError(str(home), f"it has {len(folders)} edges ({shown}); {remedy}")
