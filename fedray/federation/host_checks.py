"""Checks of this machine before Ray is started on it: folders, token, memory.

Ray itself would fail late, or hang, and in words of its own. Nothing here imports Ray.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
DEFAULT_PARENT = Path("/tmp")
TAKE_FOLDER = "Set RAY_TMPDIR to a short folder of your own, such as /tmp/my-ray"


@dataclass(frozen=True)
class RayFolder:
    """Where Ray keeps its sessions: sockets, logs, objects that leave memory.

    cause : what decides it, for messages.
    is_own : whether it lies in a folder that only this user can enter. Ray opens its
        own folder to all users of the machine.
    """

    path: Path
    cause: str
    is_own: bool


def ray_folder(environ: Environ, pid: int) -> RayFolder:
    """Ray's folder on this machine: that of RAY_TMPDIR, else one in a private folder.

    pid : of the process that starts Ray, which is part of the paths of sockets.
    """
    if "RAY_TMPDIR" in environ:
        cause = f"RAY_TMPDIR={environ['RAY_TMPDIR']}"
        return RayFolder(Path(environ["RAY_TMPDIR"]) / "ray", cause, False)
    folder = private_folder_in(DEFAULT_PARENT) / "ray"
    cause = "neither RAY_TMPDIR nor TMPDIR is set"
    if "TMPDIR" in environ:
        own = private_folder_in(Path(environ["TMPDIR"])) / "ray"
        cause = f"TMPDIR={environ['TMPDIR']}"
        if not own.is_absolute() or _n_spare_bytes(own, pid) >= 0:
            folder = own
    return RayFolder(folder, cause, True)


def private_folder_in(parent: Path) -> Path:
    """This user's own folder in one that all users share."""
    return parent / f"fedray-{os.getuid()}"


def make_private_folder(folder: Path) -> Path:
    """Make a folder that only this user can enter, unless it is there.

    Raises
    ------
    OSError
        If it cannot be made, or what is there is no such folder: another user may have
        made it first, or a link to somewhere else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_own or status.st_mode & 0o077:
        raise PermissionError(13, "it is not a folder of this user alone", str(folder))
    return folder


def prepare_ray_folder(environ: Environ, pid: int) -> RayFolder:
    """Check that Ray can make its sockets and logs in its folder; makes a private one.

    Raises
    ------
    ClusterError
        If the path is not absolute or too long, or the folder cannot be written, is on
        a full disk, or is another user's.
    """
    folder = ray_folder(environ, pid)
    if not folder.path.is_absolute():
        what = f"Ray's temporary folder must be an absolute path ({folder.cause})"
        raise ClusterError(what, TAKE_FOLDER)
    n_spare = _n_spare_bytes(folder.path, pid)
    if n_spare < 0:
        n_bytes = len(os.fsencode(folder.path.parent))
        what = (
            f"the path of Ray's temporary folder is too long for sockets: "
            f"{folder.cause} has {n_bytes} bytes, at most {n_bytes + n_spare} are "
            "possible"
        )
        raise ClusterError(what, TAKE_FOLDER)
    _check_writable(folder.path, folder.cause)
    if folder.is_own:
        try:
            make_private_folder(folder.path.parent)
        except OSError as error:
            why = error.strerror or str(error)
            what = f"Ray cannot have {folder.path.parent} for its own: {why}"
            raise ClusterError(what, TAKE_FOLDER) from None
    return folder


def _n_spare_bytes(folder: Path, pid: int) -> int:
    """Bytes by which the longest path of a socket in Ray's folder could be longer."""
    socket = folder / f"{SESSION}{pid}" / SOCKET
    return MAX_SOCKET_PATH - len(os.fsencode(socket))


def is_open_to_others(path: Path) -> bool:
    """Whether other users can read a file or enter a folder, by all modes above it."""
    try:
        path = path.resolve(strict=True)
        is_folder = path.is_dir()
        modes = [folder.stat().st_mode for folder in path.parents]
        own = path.stat().st_mode
    except OSError:
        return False
    can_enter = all(mode & 0o011 for mode in modes)
    return can_enter and bool(own & (0o011 if is_folder else 0o044))


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
    return make_private_folder(private_folder_in(Path(tempfile.gettempdir())))


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


def token_path(environ: Environ, home: Path | None) -> Path | None:
    """File in which Ray finds its token; None where it needs none, or has no file."""
    if environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if environ.get("RAY_AUTH_TOKEN"):
        return None
    if path := environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path)
    return home and home / ".ray" / "auth_token"


def token_file(file: Path | None = None) -> Path:
    """File of Ray's token; made if there is none.

    file : default: that of a user without a home.

    Raises
    ------
    ClusterError
        If it cannot be written.
    """
    try:
        file = file or state_folder() / "auth_token"
        _make_token(file)
    except OSError as error:
        why = f"{error.strerror or error} ({error.filename})"
        what = f"Ray's token can be kept neither in ~/.ray nor elsewhere: {why}"
        remedy = "Set HOME to a folder that you can write"
        raise ClusterError(what, remedy) from None
    return file


def _make_token(file: Path) -> None:
    """Write a new token, unless there is one; only its owner can read it.

    Ray would write it as the umask says, readable by all as a rule.
    """
    if not file.exists() or not file.stat().st_size:
        durable_files.make_folder(file.parent, 0o700)
        durable_files.write_text(file, secrets.token_hex(32), mode=0o600)


def exposure_notes(environ: Environ, home: Path | None, folder: Path) -> Iterator[str]:
    """What other users of this machine can read of a cluster, and how to mend it.

    folder : Ray's, which it opens to everybody who can enter the one above.
    """
    file = token_path(environ, home)
    if file is not None and is_open_to_others(file):
        yield (
            f"other users of this machine can read {file}, the token with which anyone "
            f"runs code on your clusters: chmod 600 {file}"
        )
    if is_open_to_others(folder.parent):
        yield (
            f"other users of this machine can read Ray's logs in {folder}, which Ray "
            "opens to everybody: let Ray have a folder within one that only you can "
            "enter (RAY_TMPDIR, or ray start --temp-dir)"
        )


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
