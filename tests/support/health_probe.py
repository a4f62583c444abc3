"""Asks a service for /health several times a second, and prints how long each took.

``python health_probe.py PORT`` prints a line of JSON for each call: `at` (seconds, of
the monotonic clock), `seconds` until the whole answer was read, `status` (0: none), and
`slowdown`: how much longer some milliseconds of computing took just then than they
take with a core to oneself. On a busy machine every process waits for a core, and a
limit of seconds is to be multiplied by it.
"""

import http.client
import itertools
import json
import sys
import time

EVERY_S = 0.2
N_STEPS = 500_000  # more than a process is given at once on a busy core
TIMEOUT_S = 120.0
ADDRESSES = ("127.0.0.1", "127.0.0.3")  # the attacks', and one of its own


def ask(port: int, source: str) -> tuple[float, int]:
    """Seconds and status of one call, on a connection of its own."""
    started = time.monotonic()
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, TIMEOUT_S, source_address=(source, 0)
    )
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        status = answer.status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    return time.monotonic() - started, status


def slowdown() -> float:
    """Seconds that a little work takes, in seconds of its processor time."""
    started, began = time.monotonic(), time.thread_time()
    for _ in range(N_STEPS):
        pass
    worked = time.thread_time() - began
    return max(1.0, (time.monotonic() - started) / max(worked, 1e-6))


def main(port: int) -> None:
    """Probe until the process is ended."""
    for source in itertools.cycle(ADDRESSES):
        at = time.monotonic()
        seconds, status = ask(port, source)
        line = {"at": at, "seconds": seconds, "status": status}
        print(json.dumps(line | {"slowdown": slowdown()}), flush=True)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main(int(sys.argv[1]))
