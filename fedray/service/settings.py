"""How an operator sets up the service; nothing of it can be set over REST."""

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """What one service is started with. Paths are on the service's own node."""

    root: str = "~/.fedray/service"  # a folder for each federation in it
    api_keys: str | None = None  # file of `fedray keys`; None: loopback only
    data_root: str | None = None  # where `data_path` may point to, on every node
    allow_custom_handlers: bool = False  # True: whoever has a key may run code
    max_upload: int = 2 * GIB  # bytes of one call's body
    patience_s: float = 20.0  # a body may pause so long, and be slow twice as long
    max_open: int = 64  # federations that are not stopped
    max_parties: int = 256  # of one federation: each is a process

    @classmethod
    def from_environment(cls) -> "Settings":
        """Settings of `fedray.service:app`: FEDRAY_ROOT, FEDRAY_API_KEYS, and so on."""
        given = os.environ.get
        allowed = given("FEDRAY_ALLOW_CUSTOM_HANDLERS", "").lower()
        return cls(
            root=given("FEDRAY_ROOT") or cls.root,
            api_keys=given("FEDRAY_API_KEYS"),
            data_root=given("FEDRAY_DATA_ROOT"),
            allow_custom_handlers=allowed in ("1", "true", "yes"),
        )

    @property
    def folder(self) -> Path:
        """Folder of all federations."""
        return Path(self.root).expanduser().absolute()
