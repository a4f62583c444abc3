"""sent.jsonl: a line for each thing that left this edge, before its first byte does."""

import errno
import hashlib
import json
import os
import time
from pathlib import Path

SENT = "sent.jsonl"


class SentLog:
    """Appends lines: when, run, kind, bytes and SHA-256 of a body that is sent.

    A body that is sent again, after a connection broke, has a line for each time.
    """

    def __init__(self, folder: Path, run: str = ""):
        self.path, self.run = folder / SENT, run

    def add(self, kind: str, body: bytes) -> None:
        """Add a line; handed to the system when this returns.

        Raises
        ------
        OSError
            If it cannot be written: then nothing is sent.
        """
        line = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "run": self.run,
            "kind": kind,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(self.path, flags, 0o600)
        text = json.dumps(line).encode() + b"\n"
        try:
            if os.write(handle, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(handle)
