"""Disk of the service: space is reserved for an upload before it is written.

What clients use is read from their federations' folders; what is under way is counted
by `Usage`. Space that is reserved and not written yet is not there for anyone else.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from fedray.service import store
from fedray.service.settings import Settings
from fedray.service.store import STOPPED
from fedray.service.usage import Claim, limit_reached


class Disk:
    """The service's disk, with the sizes of the federations' folders.

    Sizes of stopped federations, which do not change, are read once.
    """

    def __init__(self, settings: Settings):
        self.settings, self.root = settings, settings.folder
        self.sizes: dict[str, tuple[int, str, int]] = {}  # see _size

    def upload_folder(self) -> Path:
        """Where uploads under way lie."""
        return store.upload_folder(self.root)

    async def reserve(self, claim: Claim, n_bytes: int) -> None:
        """Let a call's claim have so many bytes of disk.

        Raises
        ------
        LimitReached
            If its client may not have them, or the disk has not; it has what it had.
        """
        before = claim.amounts["disk"]
        claim.raise_to(disk=n_bytes)
        try:
            await self._check(claim)
        except BaseException:
            added = claim.amounts["disk"] - before
            claim.remove(disk=added, unwritten=added)
            raise

    async def _check(self, claim: Claim) -> None:
        """Raise LimitReached if what is stored and what is under way is too much."""
        own, total = self.settings.max_disk_per_client, self.settings.max_disk
        # first what is under way, then what is stored: nothing is missed between
        under_way = claim.usage.amount("disk", claim.client)
        stored = await asyncio.to_thread(self.stored_bytes, claim.client)
        if stored + under_way > own:
            raise limit_reached("max_disk_per_client", "disk")
        if total is not None:
            under_way = claim.usage.total("disk")
            stored = await asyncio.to_thread(self.stored_bytes)
            if stored + under_way > total:
                raise limit_reached("max_disk", "disk")

    def stored_bytes(self, client: str | None = None) -> int:
        """Bytes of the folders of a client's federations; None: of all clients'."""
        n_bytes = 0
        for folder in store.federation_folders(self.root):
            with contextlib.suppress(OSError, ValueError, TypeError):
                n_bytes += self._stored(folder, client)
        return n_bytes

    def _stored(self, folder: Path, client: str | None) -> int:
        changed_ns = (folder / store.FILE).stat().st_mtime_ns
        if self.sizes.get(folder.name, (0,))[0] != changed_ns:
            state = store.read(folder)
            is_final = state.state == STOPPED
            size = folder_bytes(folder) if is_final else -1
            self.sizes[folder.name] = changed_ns, state.owner or "", size
        _, owner, size = self.sizes[folder.name]
        if client is not None and owner != client:
            return 0
        return folder_bytes(folder) if size < 0 else size


def folder_bytes(folder: Path | str) -> int:
    """Bytes of all files below a folder, without those that vanish meanwhile."""
    n_bytes = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    n_bytes += folder_bytes(entry.path)
                else:
                    n_bytes += entry.stat(follow_symlinks=False).st_size
    return n_bytes
