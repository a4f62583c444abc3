"""A `fedray serve` of a benchmark's own, as long as a block lasts."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests


@contextlib.contextmanager
def running_service(
    root: Path, *options: str, log: int = subprocess.DEVNULL
) -> Iterator[tuple[str, int]]:
    """Its address and process id; it is up.

    Parameters
    ----------
    root : its folder.
    options : of ``fedray serve``, beside root and port.
    log : where its terminal goes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fedray", "serve", "--port", str(port)]
    process = subprocess.Popen([*command, "--root", str(root), *options], stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def _wait(url: str, process: subprocess.Popen) -> None:
    while process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/health", timeout=60).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the service does not start")
