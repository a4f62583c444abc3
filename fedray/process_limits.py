"""Memory and CPU time limits for child processes that read untrusted files.

The parent starts the child with `child_environment`; the child calls `limit_memory`
and `start_cpu_timer` before it opens the file, and `extend_cpu_timer` as it reads.
"""

import os
import resource
import signal
import sys


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
    limits = [n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]]
    lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowest, lowest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def start_cpu_timer(seconds: float) -> None:
    """End this process by SIGPROF after `seconds` of CPU time from now."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def extend_cpu_timer(seconds: float) -> None:
    """Add `seconds` to a running timer; does nothing if none is running."""
    remaining = signal.getitimer(signal.ITIMER_PROF)[0]
    if remaining:
        signal.setitimer(signal.ITIMER_PROF, remaining + seconds)
