"""Run by a raylet in place of Ray's setup_worker.py: lets worker_server.py fork it.

Imports nothing of Ray, which would take longer than all the rest. Where no server
answers, or the worker is to have another Python or other modules, Ray's own script
runs.
"""

import importlib.util
import json
import os
import socket
import sys
import time
from pathlib import Path

PATIENCE_S = 30  # less than that of a raylet
CONTEXT = "--serialized-runtime-env-context="


def main() -> None:
    """Have the worker forked, or become Ray's script."""
    contexts = [word for word in sys.argv if word.startswith(CONTEXT)]
    context = json.loads(contexts[0].removeprefix(CONTEXT)) if contexts else {}
    is_plain = not context.get("command_prefix")
    is_plain &= context.get("py_executable", sys.executable) == sys.executable
    if is_plain and is_forked(context.get("env_vars") or {}):
        return
    ray = Path(importlib.util.find_spec("ray").origin).parent
    script = str(ray / "_private" / "workers" / "setup_worker.py")
    os.execv(sys.executable, [sys.executable, script, *sys.argv[1:]])


def is_forked(env_vars: dict[str, str]) -> bool:
    """Ask the server; it has the worker's command, environment and open files."""
    env = {**os.environ, **env_vars}
    if env.get("PYTHONPATH", "") != env.get("WORKER_SERVER_PYTHONPATH", ""):
        return False  # the worker is to import other modules
    address = Path(os.environ.get("WORKER_SERVER", "/nowhere/there"))
    until = time.monotonic() + PATIENCE_S
    while not address.exists():  # it may still be starting
        if not address.parent.exists() or time.monotonic() > until:
            return False
        time.sleep(0.02)
    words = [
        word for word in sys.argv[1:] if not word.startswith((CONTEXT, "--language="))
    ]
    request = {"argv": words, "env": env, "cwd": os.getcwd()}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.settimeout(PATIENCE_S)
            server.connect(str(address))
            socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
            return server.recv(1) == b"1"
    except OSError:
        return False


if __name__ == "__main__":
    main()
