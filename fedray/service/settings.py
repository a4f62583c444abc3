"""Settings of the service that only its operator can set; none comes over REST."""

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """Settings of one service. Paths are on the service's own node."""

    root: str = "~/.fedray/service"  # holds a folder for each federation
    api_keys: str | None = None  # file of `fedray keys`; None: loopback only
    data_root: str | None = None  # folder that `data_path` may point into, on any node
    allow_custom_handlers: bool = False  # True: whoever has a key may run code
    max_upload: int = 2 * GIB  # bytes of one call's body
    body_timeout_s: float = 20.0  # longest pause in a body; twice that to reach 16 kB/s
    max_open: int = 32  # federations of one client that are not stopped
    max_parties: int = 256  # of one federation: each is a process

    @classmethod
    def from_environment(cls) -> "Settings":
        """Settings of `fedray.service:app`: FEDRAY_ROOT, FEDRAY_API_KEYS, and so on."""
        variable = os.environ.get
        handlers = variable("FEDRAY_ALLOW_CUSTOM_HANDLERS", "").lower()
        return cls(
            root=variable("FEDRAY_ROOT") or cls.root,
            api_keys=variable("FEDRAY_API_KEYS"),
            data_root=variable("FEDRAY_DATA_ROOT"),
            allow_custom_handlers=handlers in ("1", "true", "yes"),
        )

    @property
    def folder(self) -> Path:
        """Folder of all federations."""
        return Path(self.root).expanduser().absolute()
