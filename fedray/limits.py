"""Limits for untrusted files: decompressed size; memory and CPU time of their readers.

Some files are read by a child process. The parent starts it with `child_environment`;
the child calls `limit_memory` and `start_cpu_timer` before it opens the file, and
`extend_cpu_timer` as it reads.
"""

import os
import re
import resource
import signal
import sys
from pathlib import Path

MAX_INFLATION = 200  # times; deflate reaches 1,032 on zeros, arrays 20 and text 10
FREE_BYTES = 64 << 20  # allowed in any case: equal labels inflate 800 times


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
    }


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
