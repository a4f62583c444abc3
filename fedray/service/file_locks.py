"""Files that a living process holds: locks (flock), which the kernel frees at its end.

So a file that nobody holds, an upload or a request, is what a killed process left.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def hold(handle: int) -> int:
    """Hold an open file, beside others who do; a handle, which lets go when closed."""
    own = os.dup(handle)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(own, fcntl.LOCK_SH)
    return own


def is_held(path: Path) -> bool:
    """Whether somebody holds the file; False if there is none."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Hold a file alone, which is made if need be; False if somebody else does."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
