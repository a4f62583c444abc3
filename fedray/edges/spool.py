"""The spool: files of a run's edges on their way, on the door's node; mode 0700.

objects/<sha256>: weights and plans for download, once whoever fetches them.
uploads/<task id>.part: what has arrived of a file; its size is the offset. The door's.
commits/<task id>: the whole file, and beside it <task id>.json, the commit of it.
A commit is on disk before it is answered, so that a group that was killed, or a run
that is resumed, goes on with it.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedray import durable_files
from fedray.edges import tensor_file
from fedray.edges.protocol import OBJECTS, SPOOL, UPLOADS
from fedray.weights import Weights

COMMITS, USED = "commits", "used"
GRACE_S = 60.0  # in which an object stays that no group has listed yet


@dataclass(frozen=True)
class CommitRecord:
    """A commit that counts, or is late, or refused; the first one of a task stands.

    report : as the edge signed it.
    verdict, why : what it was answered; `code` of a rejection.
    """

    task_id: str
    name: str
    round: int
    sha256: str
    size: int
    report: dict[str, Any]
    verdict: str
    why: str = ""
    code: str = ""


class Spool:
    """Files of one run's edges.

    folder : the run's, on this node.
    group : whose tasks it is for; several groups of a run share the files.
    """

    def __init__(self, folder: Path, group: str = "edges"):
        self.path, self.group = folder / SPOOL, group.replace("/", "-")
        for name in (OBJECTS, UPLOADS, COMMITS, USED):
            durable_files.make_folder(self.path / name, 0o700)
        self._addresses: dict[tuple[int, ...], tuple[str, int, Weights]] = {}

    def put_weights(self, weights: Weights) -> tuple[str, int]:
        """Write weights for download, unless they are there: SHA-256, bytes.

        Arrays of Ray's object store that many calls bring lie at one address; they are
        held here meanwhile, so that no others can lie there.
        """
        key = tuple(_address(array) for array in weights.values())
        sha, n_bytes, there = self._addresses.get(key, ("", 0, {}))
        if sha and list(there) == list(weights) and self._touch(sha):
            return sha, n_bytes
        aside = self.path / OBJECTS / f".{os.getpid()}-{id(weights)}.part"
        sha, n_bytes = tensor_file.write(aside, weights)
        os.replace(aside, self.object(sha))
        while len(self._addresses) > 2:  # of a round, to evaluate, and what is frozen
            self._addresses.pop(next(iter(self._addresses)))
        self._addresses[key] = sha, n_bytes, weights
        return sha, n_bytes

    def put_bytes(self, content: bytes) -> tuple[str, int]:
        """Write a plan for download: SHA-256, bytes."""
        sha = hashlib.sha256(content).hexdigest()
        if not self._touch(sha):
            durable_files.write_bytes(self.object(sha), content)
        return sha, len(content)

    def _touch(self, sha: str) -> bool:
        """Whether an object is there; it then counts as new."""
        try:
            os.utime(self.object(sha))
        except OSError:
            return False
        return True

    def object(self, sha: str) -> Path:
        """Where an object lies."""
        return self.path / OBJECTS / sha

    def keep_objects(self, shas: Collection[str]) -> None:
        """Remove objects that are neither these nor another group's."""
        durable_files.write_text(self.path / USED / self.group, "\n".join(shas))
        lists = (file.read_text("utf-8") for file in (self.path / USED).glob("[!.]*"))
        used = {sha for text in lists for sha in text.split()}
        before = time.time() - GRACE_S
        for file in (self.path / OBJECTS).iterdir():
            if file.name not in used:
                with contextlib.suppress(OSError):
                    if file.stat().st_mtime < before:
                        file.unlink()

    def file(self, task_id: str) -> Path:
        """The file of a task's commit."""
        return self.path / COMMITS / task_id

    def has_file(self, record: CommitRecord) -> bool:
        """Whether what was sent with a commit is still there."""
        return not record.size or self.file(record.task_id).exists()

    def keep_commit(self, record: CommitRecord, path: Path | None) -> None:
        """Move a complete upload here, and note its commit; on disk when this returns.

        path : of the upload; None: the commit has no file, or it is not kept.
        """
        if path is not None:
            durable_files.move(path, self.file(record.task_id))
        durable_files.write_text(self._note(record.task_id), json.dumps(asdict(record)))

    def commit(self, task_id: str) -> CommitRecord | None:
        """The commit of a task; None if there is none, or its note is damaged."""
        try:
            plain = json.loads(self._note(task_id).read_text(encoding="utf-8"))
            return CommitRecord(**plain)
        except (OSError, ValueError, TypeError):
            return None

    def remove_before(
        self, round: int, busy: Collection[str] = (), n_notes: int = 2
    ) -> None:
        """Remove files of rounds before this one; notes stay for some rounds more.

        A commit that is sent again is answered as before as long as its note is there.

        busy : tasks that are not to be touched.
        """
        for note in (self.path / COMMITS).glob("*.json"):
            if note.stem in busy:
                continue
            record = self.commit(note.stem)
            if record is None or record.round < round:
                _remove(self.file(note.stem))
            if record is None or record.round < round - n_notes:
                _remove(note)

    def remove_file(self, task_id: str) -> None:
        """Remove what was sent with a commit, once it is folded; its note stays."""
        _remove(self.file(task_id))

    def remove_commit(self, task_id: str) -> None:
        """Remove a commit that counts no more: its note first, then what was sent."""
        _remove(self._note(task_id))
        _remove(self.file(task_id))

    def erase(self, name: str, task_ids: Collection[str]) -> None:
        """Remove all that an edge has sent, as it leaves.

        task_ids : of its tasks that are open.
        """
        for task_id in task_ids:
            _remove(self.path / UPLOADS / f"{task_id}.part")
        for note in (self.path / COMMITS).glob("*.json"):
            record = self.commit(note.stem)
            if record is not None and record.name == name:
                self.remove_commit(note.stem)

    def empty(self) -> None:
        """Remove all files but uploads, which are the door's."""
        for name in (OBJECTS, COMMITS, USED):
            for file in (self.path / name).iterdir():
                _remove(file)

    def _note(self, task_id: str) -> Path:
        return self.path / COMMITS / f"{task_id}.json"


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
