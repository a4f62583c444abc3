"""What a party remembers between rounds, on its own node: its documents' vectors."""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedray.errors import DataError
from fedray.weights import Weights

DEFAULT = "~/.fedray/parties"


@dataclass(frozen=True)
class Memory:
    """Files `folder`/<party>/round-00003.npz of one run; each is whole or not there.

    A file is of the round that made it and stays while a round may be trained again:
    a killed aggregator goes back by up to `n_kept` - 1 rounds.
    """

    folder: Path
    n_kept: int

    def check(self) -> None:
        """Raise DataError where nothing can be remembered."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            needed = "a folder that can be written, on the party's own node (party_dir)"
            raise DataError(str(self.folder), str(error.strerror), needed) from None

    def recall(
        self, party: str, before: int, mark: str
    ) -> tuple[int, Weights | None, str]:
        """Newest arrays from before a round.

        Returns
        -------
        Their round (0: there are none), the arrays, and what was wrong with others.
        mark : of the data they belong to; those of other data do not count.
        """
        for round in reversed(self._rounds(party)):
            if round < before:
                arrays = self.read(self._file(party, round), mark)
                wrong = f"what it has of round {round} is damaged or of other documents"
                return (0, None, wrong) if arrays is None else (round, arrays, "")
        return 0, None, ""

    def read(self, file: Path, mark: str) -> Weights | None:
        """Arrays of a file; None if it is not there, damaged, or of another mark."""
        try:
            with np.load(file, allow_pickle=False) as opened:
                arrays = {name: opened[name] for name in opened.files}
            same = arrays.pop("mark").tobytes().decode() == mark
        except Exception:  # a damaged zip raises of many kinds
            return None
        return arrays if same else None

    def save(self, party: str, round: int, arrays: Weights, mark: str) -> None:
        """Write aside, rename, and drop what no round can need again."""
        file = self._file(party, round)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.write(file, arrays, mark)
        rounds = self._rounds(party)
        old = [other for other in rounds if other <= round - self.n_kept]
        newer = [other for other in rounds if other > round]  # of a life before
        for other in old[:-1] + newer:
            self._file(party, other).unlink(missing_ok=True)

    def write(self, file: Path, arrays: Weights, mark: str) -> None:
        """Write one file, whole or not at all."""
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with aside.open("wb") as opened:
                np.savez(opened, mark=np.frombuffer(mark.encode(), np.uint8), **arrays)
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)

    def try_write(self, file: Path, arrays: Weights, mark: str) -> None:
        """`write` what can be made again, if the disk lets it."""
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            self.write(file, arrays, mark)

    def _file(self, party: str, round: int) -> Path:
        return self.folder / party / f"round-{round:05d}.npz"

    def _rounds(self, party: str) -> list[int]:
        folder = self.folder / party
        if not folder.is_dir():
            return []
        names = [file.stem.removeprefix("round-") for file in folder.glob("round-*")]
        return sorted(int(name) for name in names if name.isdigit())
