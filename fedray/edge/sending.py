"""Sends a finished task's update in chunks, from where the last attempt broke off."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fedray.edge.bandwidth import Bandwidth
from fedray.edge.errors import CallFailed, Unreachable
from fedray.edge.service import Service
from fedray.edge.state import Identity, TaskFolder
from fedray.edges.protocol import CHUNK, Commit, Task, Verdict

CHUNK_S = 20.0  # seconds that a chunk may take under --max-bandwidth
LEAST_CHUNK = 16 << 10
MAX_MISSING = 5  # times that a service may say that bytes are missing after all


class Sending(NamedTuple):
    """How a result is sent.

    is_again : whether it was tried before: it may be there whole, and committed.
    on_progress : takes the share of the update that the service has.
    """

    is_again: bool
    on_progress: Callable[[float], None]


def chunk_size(bandwidth: Bandwidth) -> int:
    """Bytes of a chunk: fewer where they leave slowly, so that less is sent again."""
    if bandwidth.bytes_per_s is None:
        return CHUNK
    return max(LEAST_CHUNK, min(CHUNK, int(bandwidth.bytes_per_s * CHUNK_S)))


def send_result(
    service: Service,
    identity: Identity,
    task: Task,
    folder: TaskFolder,
    how: Sending,
) -> Verdict:
    """Send an update's bytes that the service has not got, and commit the task.

    The same again is no harm: bytes are sent once, and a commit counts once.

    Raises
    ------
    Unreachable, EdgeEnded
        As `Service` raises them; nothing is lost then.
    CallFailed
        If the service does not take it: it will not take it later either.
    """
    result = folder.result()
    assert result is not None, "it is finished"
    unsigned = Commit.model_construct(
        size=result.size, sha256=result.sha256, report=result.report, signature=""
    )
    signature = identity.sign(unsigned.signed_bytes(task.id))
    commit = Commit(**{**unsigned.model_dump(), "signature": signature})
    offset: int | None = None
    for i in range(MAX_MISSING):
        if result.size and not (how.is_again and i == 0):
            _send_bytes(service, task, folder.update, (offset, how.on_progress))
        verdict = service.commit(task.id, commit)
        if isinstance(verdict, Verdict):
            return verdict
        offset = verdict
    raise CallFailed(409, "the service loses what is sent to it")


def _send_bytes(
    service: Service,
    task: Task,
    update: Path,
    start: tuple[int | None, Callable[[float], None]],
) -> None:
    """Send the bytes from an offset on; None: the service is asked for it."""
    offset, on_progress = start
    size, n_bytes = chunk_size(service.http.bandwidth), update.stat().st_size
    if offset is None:
        offset = service.offset(task.id)
    with update.open("rb") as file:
        while offset < n_bytes:
            on_progress(offset / n_bytes)
            file.seek(offset)
            now = service.send_chunk(task.id, offset, file.read(size))
            if now == offset:
                raise Unreachable(f"{service.http.url} takes no bytes of the update")
            offset = now
