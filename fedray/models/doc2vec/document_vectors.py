"""Document vectors of a party, saved between rounds on the party's own node."""

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedray import durable_files
from fedray.errors import DataError
from fedray.weights import Weights

DEFAULT_FOLDER = "~/.fedray/parties"
FINGERPRINT = "mark"  # name of its array in a file


@dataclass(frozen=True)
class DocumentVectorStore:
    """Files `folder`/<party>/round-00003.npz of one run, each written atomically.

    A file holds the arrays after a round. It is kept while a later round may be trained
    again: a killed aggregator goes back by up to `n_kept` - 1 rounds. Each file has a
    fingerprint of the data that its arrays belong to; files of other data are not read.
    """

    folder: Path
    n_kept: int

    def check(self) -> None:
        """Raise DataError if the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            needed = "a folder that can be written, on the party's own node (party_dir)"
            raise DataError(str(self.folder), str(error.strerror), needed) from None

    def load_before(
        self, party: str, round: int, fingerprint: str
    ) -> tuple[int, Weights | None, str]:
        """Load a party's newest arrays from before a round.

        Returns
        -------
        The round that made them (0 if there are none), the arrays, and the reason why
        the newest file could not be used.
        """
        for made_in in reversed(self._rounds(party)):
            if made_in < round:
                arrays = self.read(self._file(party, made_in), fingerprint)
                if arrays is not None:
                    return made_in, arrays, ""
                reason = f"what it has of round {made_in} is damaged or of other"
                return 0, None, f"{reason} documents"
        return 0, None, ""

    def read(self, file: Path, fingerprint: str) -> Weights | None:
        """Arrays of a file; None if it is missing, damaged, or of other data."""
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            is_same = arrays.pop(FINGERPRINT).tobytes().decode() == fingerprint
        except Exception:  # a damaged zip raises of many kinds
            return None
        return arrays if is_same else None

    def save(self, party: str, round: int, arrays: Weights, fingerprint: str) -> None:
        """Write the arrays after a round; delete files that no round can need again."""
        file = self._file(party, round)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.write(file, arrays, fingerprint)
        rounds = self._rounds(party)
        old = [other for other in rounds if other <= round - self.n_kept]
        newer = [other for other in rounds if other > round]  # before a restart
        for other in old[:-1] + newer:
            self._file(party, other).unlink(missing_ok=True)

    def write(self, file: Path, arrays: Weights, fingerprint: str) -> None:
        """Write one file atomically."""
        data = np.frombuffer(fingerprint.encode(), np.uint8)
        members: dict[str, Any] = {FINGERPRINT: data, **arrays}
        with durable_files.replace_file(file) as path, path.open("wb") as opened:
            np.savez(opened, **members)

    def try_write(self, file: Path, arrays: Weights, fingerprint: str) -> None:
        """Write a file that can be computed again; nothing happens on a disk error."""
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            self.write(file, arrays, fingerprint)

    def _file(self, party: str, round: int) -> Path:
        return self.folder / party / f"round-{round:05d}.npz"

    def _rounds(self, party: str) -> list[int]:
        folder = self.folder / party
        if not folder.is_dir():
            return []
        names = [file.stem.removeprefix("round-") for file in folder.glob("round-*")]
        return sorted(int(name) for name in names if name.isdigit())
