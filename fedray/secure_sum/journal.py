"""Records appended to storage: a part of a record that a crash left is not read."""

import hashlib
from collections.abc import Iterator

from fedray.secure_sum.storage import Storage

CHECK = 8  # bytes of SHA-256 behind each record


class Journal:
    """Byte strings in the order in which they were appended."""

    def __init__(self, storage: Storage, name: str):
        self._storage, self._name = storage, name

    def append(self, *records: bytes) -> None:
        """Add records; on disk when this returns."""
        self._storage.append(self._name, b"".join(map(_frame, records)))

    def start(self, record: bytes) -> None:
        """Replace whatever is there by this first record."""
        self._storage.write(self._name, [_frame(record)])

    def read(self) -> list[bytes]:
        """All whole records; a torn one at the end is deleted: more can follow then."""
        data = self._storage.read(self._name) or b""
        records = list(_records(data))
        whole = b"".join(map(_frame, records))
        if whole != data and records:
            self._storage.write(self._name, [whole])
        return records


def _frame(record: bytes) -> bytes:
    check = hashlib.sha256(record).digest()[:CHECK]
    return len(record).to_bytes(4, "big") + record + check


def _records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big") + CHECK
        record = data[at + 4 : end - CHECK]
        if end > len(data) or data[at:end] != _frame(record):
            return
        yield record
        at = end
