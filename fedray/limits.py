"""Limits for untrusted files: decompressed size; memory and CPU time of their readers.

Some files are read by a child process. The parent starts it with `child_environment`;
the child calls `start_child`, `limit_memory` and `start_cpu_timer` before it opens the
file, and `extend_cpu_timer` as it reads.
"""

import contextlib
import ctypes
import os
import re
import resource
import signal
import sys
from pathlib import Path

MAX_INFLATION = 200  # times; deflate reaches 1,032 on zeros, arrays 20 and text 10
FREE_BYTES = 64 << 20  # allowed in any case: equal labels inflate 800 times
PARENT = "FEDRAY_PARENT"  # environment variable of a child: its parent's process id
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl
CGROUP_LIMITS = (  # of a container's memory
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def max_inflated_bytes(n_compressed: int, most: int) -> int:
    """Bytes that `n_compressed` bytes may decompress to; `most` in any case."""
    return min(most, max(FREE_BYTES, MAX_INFLATION * n_compressed))


def child_environment() -> dict[str, str]:
    """Environment variables for a child: this process's modules, no thread pools.

    HDF5 filter plugins are disabled: they are code that a file may name.
    """
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HDF5_PLUGIN_PRELOAD": "::",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        PARENT: str(os.getpid()),
    }


def start_child() -> None:
    """Called first by a child: it does not outlive the parent that started it."""
    if parent := os.environ.get(PARENT):
        end_with_parent(int(parent))


def limit_memory(n_bytes: int) -> None:
    """Limit the address space of this process; a lower limit that is set stays."""
    bounds = [n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]]
    lowest = min(bound for bound in bounds if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowest, lowest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def resident_bytes() -> int:
    """Memory that this process has now, with what it shares with others."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most memory that this process has had, with what it shares with others."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    """A number of kB of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (number,) = re.findall(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(number) << 10


def limit_growth(n_bytes: int) -> None:
    """Limit the private memory of this process to what it has now and `n_bytes`.

    What is taken beyond that raises MemoryError. Memory that is shared does not count:
    Ray's object store, libraries, files that are mapped to be read.
    """
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    bound = _status_bytes("VmData") + n_bytes
    if most == resource.RLIM_INFINITY or bound < most:
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def start_cpu_timer(seconds: float) -> None:
    """End this process by SIGPROF after `seconds` of CPU time from now."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def extend_cpu_timer(seconds: float) -> None:
    """Add `seconds` to a running timer; does nothing if none is running."""
    remaining = signal.getitimer(signal.ITIMER_PROF)[0]
    if remaining:
        signal.setitimer(signal.ITIMER_PROF, remaining + seconds)


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, in any way.

    parent : its process id; this process ends at once if that has ended already.
    """
    _process_control(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of this process's descendants whose own parent ends."""
    _process_control(PR_SET_CHILD_SUBREAPER, 1)


def _process_control(option: int, value: int) -> None:
    """Call prctl, which Linux has."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process is in."""
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            bounds.append(int(Path(path).read_text()))
    return min(bounds)
