"""Checks of this machine before Ray is started on it: folders, token, memory.

Ray itself would fail late, or hang, and in words of its own. Nothing here imports Ray.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedray import durable_files
from fedray.errors import ClusterError

Environ = Mapping[str, str]
MAX_SOCKET_PATH = 107  # bytes, of Linux
SESSION = "session_2026-01-01_00-00-00_000000_"  # and the process id
SOCKET = "sockets/plasma_store"  # the longest name
MIN_FREE_BYTES = 16 << 20  # for the logs of a short run
RESERVED_BYTES = 7 << 30  # address space of Ray and torch beside the object store
AUTH_MODES = ("token", "disabled")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
MIN_THREADS = 256  # of Ray and the smallest federation
SHARED_MEMORY = Path("/dev/shm")
TAKE_FOLDER = "Set RAY_TMPDIR to a short folder of your own, such as /tmp/my-ray"


def temp_folder(environ: Environ) -> tuple[Path, str]:
    """Folder of Ray's sessions and sockets, and what decides it, for messages."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if variable in environ:
            return Path(environ[variable]) / "ray", f"{variable}={environ[variable]}"
    return Path("/tmp/ray"), "neither RAY_TMPDIR nor TMPDIR is set"


def check_temp_folder(environ: Environ, pid: int) -> None:
    """Check that Ray can make its sockets and logs where it wants them.

    Raises
    ------
    ClusterError
        If the path is not absolute or too long, or the folder cannot be written or is
        on a full disk.
    """
    folder, cause = temp_folder(environ)
    if not folder.is_absolute():
        what = f"Ray's temporary folder must be an absolute path ({cause})"
        raise ClusterError(what, TAKE_FOLDER)
    socket = folder / f"{SESSION}{pid}" / SOCKET
    n_bytes = len(os.fsencode(socket))
    if n_bytes > MAX_SOCKET_PATH:
        n_most = len(os.fsencode(folder.parent)) - (n_bytes - MAX_SOCKET_PATH)
        what = (
            f"the path of Ray's temporary folder is too long for sockets: {cause} has "
            f"{len(os.fsencode(folder.parent))} bytes, at most {n_most} are possible"
        )
        raise ClusterError(what, TAKE_FOLDER)
    _check_writable(folder, cause)


def _check_writable(folder: Path, cause: str) -> None:
    """Raise ClusterError unless the folder is writable, or can be made."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    about = f"Ray's temporary folder {folder} cannot be written ({cause})"
    if not nearest.is_dir():
        raise ClusterError(f"{about}: {nearest} is no folder", TAKE_FOLDER)
    if not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"{nearest} belongs to {_owner(nearest)}"
        raise ClusterError(f"{about}: {reason}", TAKE_FOLDER)
    n_free = shutil.disk_usage(nearest).free
    if n_free < MIN_FREE_BYTES:
        reason = f"its disk has {n_free / 1e6:.1f} MB free"
        remedy = "Make room there, or set RAY_TMPDIR to a short folder on another disk"
        raise ClusterError(f"{about}: {reason}", remedy)


def _owner(path: Path) -> str:
    try:
        return f"user {path.owner()}"
    except (KeyError, OSError):  # no such name
        return f"user id {path.stat().st_uid}"


def home_folder() -> Path | None:
    """This user's home; None for a user without one, as containers may have."""
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and no entry in passwd
        return None


def state_folder() -> Path:
    """Folder of what fedray notes for this user: ``~/.fedray``, or one in /tmp.

    Raises
    ------
    OSError
        If neither can be written, or the one in /tmp is another user's.
    """
    home = home_folder()
    if home is not None:
        folder = home / ".fedray"
        if _is_writable(folder if folder.exists() else home):
            return folder
    folder = Path(tempfile.gettempdir()) / f"fedray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(13, "it is not a folder of this user alone", str(folder))
    return folder


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def has_token_place(environ: Environ, home: Path | None) -> bool:
    """Whether Ray finds its token, or can make one at home."""
    is_needed = environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    if not is_needed or any(map(environ.get, TOKEN_VARIABLES)):
        return True
    if home is None:
        return False
    file = home / ".ray" / "auth_token"
    if file.exists():
        return os.access(file, os.R_OK)
    return _is_writable(file.parent if file.parent.exists() else home)


def token_file() -> Path:
    """File of a token for a user without a home; made if there is none.

    Raises
    ------
    ClusterError
        If it cannot be written.
    """
    try:
        file = state_folder() / "auth_token"
        if not file.exists():
            durable_files.write_text(file, secrets.token_hex(32), mode=0o600)
    except OSError as error:
        why = f"{error.strerror or error} ({error.filename})"
        what = f"Ray's token can be kept neither in ~/.ray nor elsewhere: {why}"
        remedy = "Set HOME to a folder that you can write"
        raise ClusterError(what, remedy) from None
    return file


def check_token(environ: Environ) -> None:
    """Check what the environment says about token authentication.

    Raises
    ------
    ClusterError
        If RAY_AUTH_MODE is unknown, for which Ray takes no token at all, or
        RAY_AUTH_TOKEN_PATH names no file that can be read, or an empty one.
    """
    mode = environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() not in AUTH_MODES:
        what = f"RAY_AUTH_MODE is {mode!r}; it can be {' or '.join(AUTH_MODES)}"
        raise ClusterError(what, "Unset it: fedray's own clusters want a token")
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    if not path or environ.get("RAY_AUTH_TOKEN"):
        return
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        what = f"the token of RAY_AUTH_TOKEN_PATH={path} cannot be read: {reason}"
        raise ClusterError(what, "Look at the path, or unset it") from None
    if not text:
        what = f"the token of RAY_AUTH_TOKEN_PATH={path} is empty"
        raise ClusterError(what, "`ray get-auth-token --generate` makes one")


def check_address_space(limit: int, n_store_bytes: int) -> None:
    """Check that `ulimit -v` leaves room for Ray's object store, which is mapped whole.

    limit : bytes of address space that a process may have; negative: no limit.

    Raises
    ------
    ClusterError
        If it does not: Ray's processes would crash or hang.
    """
    needed = n_store_bytes + RESERVED_BYTES
    if 0 <= limit < needed:
        what = (
            f"this shell limits the address space of processes to {limit >> 30} GiB "
            f"(ulimit -v), and Ray needs about {needed >> 30} GiB here"
        )
        raise ClusterError(what, "Lift the limit: `ulimit -v unlimited`")


def check_thread_limit(limit: int) -> None:
    """Check that `ulimit -u` leaves room for Ray's threads.

    limit : threads that the user may have; negative: no limit.

    Raises
    ------
    ClusterError
        If it does not: Ray's processes would hang.
    """
    if 0 <= limit < MIN_THREADS:
        what = (
            f"this shell limits the user to {limit} processes and threads (ulimit -u), "
            f"and Ray needs {MIN_THREADS} and more"
        )
        raise ClusterError(what, "Raise the limit: `ulimit -u 4096`")


def check_shared_memory(folder: Path, n_store_bytes: int) -> Iterator[str]:
    """Check where Ray's object store will lie; yields a note if that is a slow place.

    Raises
    ------
    ClusterError
        If there is no shared memory.
    """
    if not _is_writable(folder):
        what = f"{folder}, which Ray needs, is missing or cannot be written"
        raise ClusterError(what, "In a container, mount it (docker run --shm-size=8g)")
    n_free = shutil.disk_usage(folder).free
    if n_free < n_store_bytes:
        yield (
            f"{folder} has {n_free >> 20} MiB free, and Ray's object store "
            f"{n_store_bytes >> 20} MiB: it lies on a slower disk, in Ray's temporary "
            "folder (docker run --shm-size=8g, or more)"
        )
