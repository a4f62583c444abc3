"""The zip of a PyTorch file, checked before memory is taken for what it claims."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedray.models.pytorch.pickle_reader import ADVICE, Storage
from fedray.models.untrusted import BROKEN, FAULTS, Bounded, Refused, check_members

MAX_PICKLE_BYTES = 16 << 20
CHUNK = 1 << 20  # bytes of a member read at a time
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # begins files older than 1.6


class Archive:
    """The members of one torch.save file."""

    def __init__(self, zipped: zipfile.ZipFile, n_bytes: int):
        self.zipped, self.n_bytes = zipped, n_bytes
        self.members = {info.filename: info for info in zipped.infolist()}
        self.root = _root(list(self.members))
        check_members(zipped.infolist(), n_bytes, "torch.save")
        self._raw: dict[str, np.ndarray] = {}
        order = self.members.get(f"{self.root}byteorder")
        if order and self._bytes(order).tobytes() != b"little":
            raise Refused(
                "its numbers are big-endian: save it again on a little-endian machine"
            )

    def pickle(self) -> bytes:
        """Bytes of the pickle that describes the model."""
        info = self.members[f"{self.root}data.pkl"]
        if info.file_size > MAX_PICKLE_BYTES:
            raise Refused(
                f"its pickle has {info.file_size} bytes, at most {MAX_PICKLE_BYTES} "
                f"are read: {ADVICE}"
            )
        return self._bytes(info).tobytes()

    def numbers(self, storage: Storage) -> np.ndarray:
        """All numbers of one storage, flat; read once however often they are asked."""
        info = self.members.get(f"{self.root}data/{storage.key}")
        dtype = np.dtype(storage.dtype)
        if info is None or info.file_size != storage.n * dtype.itemsize:
            raise Refused(BROKEN)
        if storage.key not in self._raw:
            self._raw[storage.key] = self._bytes(info)
        return self._raw[storage.key].view(dtype.newbyteorder("<"))

    def _bytes(self, info: zipfile.ZipInfo) -> np.ndarray:
        """Read one member; zipfile compares its CRC at the end."""
        raw = np.empty(info.file_size, np.uint8)
        view, n_read = memoryview(raw), 0
        with self.zipped.open(info) as member:
            while part := member.read(CHUNK):
                view[n_read : n_read + len(part)] = part
                n_read += len(part)
        if n_read != info.file_size:
            raise Refused(BROKEN)
        return raw


def _root(names: list[str]) -> str:
    """The one folder that torch.save puts everything in, with its slash."""
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused(
            "it is a zip but not one of torch.save: save the model with torch.save"
        )
    root = pickles[0].removesuffix("data.pkl")
    if any(n == f"{root}constants.pkl" or n.startswith(f"{root}code/") for n in names):
        raise Refused(
            "it is a TorchScript archive, which is code, and code in a file is never "
            f"run: {ADVICE}"
        )
    return root


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive at `path`; every fault of the file inside becomes `Refused`."""
    try:
        with path.open("rb") as file:
            _check_start(file.read(len(LEGACY)))
            with zipfile.ZipFile(Bounded(file)) as zipped:
                yield Archive(zipped, path.stat().st_size)
    except FAULTS as error:
        raise Refused(BROKEN) from error


def _check_start(start: bytes) -> None:
    if start == LEGACY:
        raise Refused(
            "it is of the format before torch 1.6: save it again with torch.save of "
            "torch 1.6 or newer"
        )
    if start[:1] == b"\x80":
        raise Refused(
            "it is a bare pickle, which is code, and code in a file is never run: save "
            "the model with torch.save of torch 1.6 or newer"
        )
    if not start.startswith(b"PK\x03\x04"):
        raise Refused(
            "it is neither of torch.save (a zip) nor a .safetensors file, or it is cut "
            "short: save the model with torch.save"
        )
