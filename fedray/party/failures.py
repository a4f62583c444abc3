"""Failures of a party: they travel without data; the rest is kept on its own node.

The whole error is written to errors.log in `party_dir`, and what user code prints or
warns to output.log: Ray's logs are for all who may see the cluster.
"""

import contextlib
import functools
import io
import logging
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from fedray import durable_files, user_code
from fedray.config import ERRORS_LOG, FederationConfig
from fedray.errors import PartyError
from fedray.user_code import is_raised_by_fedray, last_step, module_line

LOG = logging.getLogger("fedray")
OUTPUT_LOG = "output.log"
WORKER_LOG = "worker-"  # with which names of Ray's files begin
READING = "reading"  # the stage in which nothing but samples is handled
MAX_LOG = 4 << 20  # bytes of a file; then it is begun anew, and one old file is kept
MAX_ENTRY = 64 << 10  # characters


class Plan(Protocol):
    """Whose failures they are: an actor's name, its run and its config."""

    @property
    def name(self) -> str: ...

    @property
    def run(self) -> str: ...

    @property
    def config(self) -> FederationConfig: ...


@contextlib.contextmanager
def sanitize_errors(plan: Plan, stage: str, node: str = "") -> Iterator[None]:
    """Turn any error into a PartyError without samples; keep the rest on this node.

    node : Ray id of this node.
    """
    _close_worker_logs()
    try:
        output = _open_output(plan.config.party_folder)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
            output.flush()
    except BaseException as error:
        is_done = isinstance(error, PartyError) and is_raised_by_fedray(
            last_step(error)
        )
        if is_done or not (isinstance(error, Exception) or _is_by_user(error)):
            raise  # Ray ends or cancels a call
        party_error = _to_party_error(error, plan, stage, node)
        _log(party_error, plan)
        raise party_error from None


def _log(error: PartyError, plan: Plan) -> None:
    """A line in Ray's log, which all may read who see the cluster."""
    if not plan.config.hides_parties:
        LOG.error("%s", error.summary)
    elif not plan.config.hides_choice:
        LOG.error(
            "party %s, %s: failed; %s has why", plan.name, error.stage, ERRORS_LOG
        )


@functools.cache
def _close_worker_logs() -> None:
    """Let only this user read what the process writes to its file descriptors 1 and 2.

    In a worker of Ray these are files, which Ray makes readable by all.
    """
    for number in (1, 2):
        with contextlib.suppress(OSError):
            file = Path(os.readlink(f"/proc/self/fd/{number}"))
            if file.name.startswith(WORKER_LOG):
                os.fchmod(number, 0o600)


def _to_party_error(
    error: BaseException, plan: Plan, stage: str, node: str
) -> PartyError:
    """What travels of an error, once the whole of it is written down.

    Nothing is raised here: it would show the error itself.
    """
    try:
        paths, is_reading = _config_paths(plan.config), stage == READING
        failure = user_code.describe(error, is_reading, node, paths)
        log = _keep(error, plan, stage)
        return PartyError(plan.name, stage, *failure, log)
    except Exception:  # a class of user code may raise in whatever it is asked for
        return PartyError(plan.name, stage, "Exception", "", "")


def _is_by_user(error: BaseException) -> bool:
    """Whether user code ends its process or raises what no other code catches."""
    if isinstance(error, KeyboardInterrupt):
        return False
    is_ray = module_line(last_step(error)).startswith("ray.")
    return bool(user_code.code_lines(error)) and not is_ray


def _config_paths(config: FederationConfig) -> user_code.Paths:
    """Paths that a config names, each with the folder above it that is not told."""
    parties = [(party.data, party.data_root or "") for party in config.parties]
    sources = config.test_data, config.partition and config.partition.source
    return parties + [(source, "") for source in sources if source]


def _keep(error: BaseException, plan: Plan, stage: str) -> str:
    """Write the whole error to this node's errors.log; the file, or why it was not."""
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    text = "".join(traceback.format_exception(error))
    if len(text) > MAX_ENTRY:
        text = f"{text[: MAX_ENTRY // 2]}\n[…]\n{text[-MAX_ENTRY // 2 :]}"
    entry = f"{when} run {plan.run or '-'}, party {plan.name}, {stage}\n{text}\n"
    return append(plan.config.party_folder, ERRORS_LOG, entry)


def append(folder: Path | None, name: str, text: str) -> str:
    """Add text to a file that only its owner can read; its path, empty on an error."""
    try:
        handle = _open(folder, name)
        try:
            os.write(handle, text.encode("utf-8", "backslashreplace"))
        finally:
            os.close(handle)
    except OSError:
        return ""
    return str(folder and folder / name)


def _open(folder: Path | None, name: str) -> int:
    """Open a file of the party's own to add to it, a new one if it is large."""
    if folder is None:
        raise FileNotFoundError("this user has no home folder, and party_dir is unset")
    file = folder / name
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    durable_files.make_folder(folder, 0o700)
    if file.exists() and file.stat().st_size > MAX_LOG:
        file.replace(file.with_suffix(".old"))
    handle = os.open(file, flags, 0o600)
    os.fchmod(handle, 0o600)
    return handle


class _OutputFile(io.RawIOBase):
    """`OUTPUT_LOG` in a folder, which is made when something is written."""

    def __init__(self, folder: Path | None):
        self.folder, self.handle = folder, -1

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def fileno(self) -> int:
        """A handle of the file, as subprocesses need it."""
        if self.handle < 0:
            self.handle = _open(self.folder, OUTPUT_LOG)
        return self.handle

    def write(self, data: Any) -> int:
        """Add bytes; what the disk refuses is lost."""
        with contextlib.suppress(OSError):
            os.write(self.fileno(), data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
        super().close()


def _open_output(folder: Path | None) -> io.TextIOWrapper:
    """A stream like `sys.stdout` whose text goes to the party's own file."""
    buffer = io.BufferedWriter(_OutputFile(folder))
    return io.TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=True)
