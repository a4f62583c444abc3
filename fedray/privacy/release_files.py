"""Release files: the noised sum of each round, kept as long as the round's checkpoint.

A round that is run again after a crash takes its file, so that nothing is released
twice. Beside it, where noise is correlated over rounds, the noise of the last rounds.
"""

import contextlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedray import durable_files
from fedray import weights as arrays
from fedray.errors import LedgerError
from fedray.privacy.central import ReleaseLine
from fedray.weights import Weights

FOLDER, NOISE_FOLDER = "releases", "noise"
MODE = 0o600  # outcomes of parties lie in them, and noise
ABOUT = "/release"  # no tensor's name begins so


@dataclass(frozen=True, eq=False)
class Release:
    """A noised sum, and what is needed to close its round without asking anyone.

    line : as it stands in the ledger.
    total : integers, by tensor.
    record : the round's bookkeeping, for its operator alone.
    """

    line: ReleaseLine
    total: Weights
    record: dict[str, Any] = field(default_factory=dict)


class ReleaseFiles:
    """The releases of one global model.

    folder : the run's; group : whose model it is, None: of all.
    """

    def __init__(self, folder: Path, group: str | None = None):
        self.folder = folder / FOLDER / "rounds" / (group or "")
        self.noise_folder = folder / FOLDER / NOISE_FOLDER
        self._noise_of = f"group-{group}" if group else "all"

    def has(self, round: int) -> bool:
        """Whether the release of a round is there."""
        return self._path(round).exists()

    def read(self, round: int) -> Release | None:
        """The release of a round; None if it was not released, or its file is gone.

        Raises
        ------
        LedgerError
            If its file is damaged.
        """
        path = self._path(round)
        if not path.exists():
            return None
        try:
            total = arrays.load(path)
            about = json.loads(total.pop(ABOUT).tobytes())
            line = ReleaseLine(**about["line"])
            if line.round != round:
                raise ValueError(f"it is of round {line.round}")
            return Release(line, total, about["record"])
        except Exception as error:  # a damaged zip raises of many kinds
            reason = f"is damaged ({type(error).__name__})"
            remedy = "Delete it: its round is run again, and counts if it differs"
            raise LedgerError(str(path), reason, remedy) from None

    def write(self, release: Release) -> None:
        """Keep a release; on disk when this returns.

        Raises
        ------
        LedgerError
            If the disk refuses.
        """
        about = {"line": release.line._asdict(), "record": release.record}
        text = json.dumps(about).encode()
        total = {name: _narrow(array) for name, array in release.total.items()}
        total[ABOUT] = np.frombuffer(text, np.uint8)
        self._save(self._path(release.line.round), total)

    def read_noise(self, key_id: str, round: int) -> np.ndarray | None:
        """The noise that was added in a round under a key; None if it is gone.

        Raises
        ------
        LedgerError
            If its file is damaged.
        """
        path = self._noise_path(key_id, round)
        if not path.exists():
            return None
        try:
            return arrays.load(path)["noise"].astype(np.int64)
        except Exception as error:
            reason = f"is damaged ({type(error).__name__})"
            raise LedgerError(str(path), reason, "Delete it") from None

    def write_noise(self, key_id: str, round: int, noise: np.ndarray) -> None:
        """Keep the noise of a round for later ones, for the run's owner alone.

        Raises
        ------
        LedgerError
            If the disk refuses.
        """
        self._save(self._noise_path(key_id, round), {"noise": _narrow(noise)})

    def remove_old(self, saved_rounds: Collection[int], n_noise: int) -> None:
        """Delete releases before the newest checkpoint that has none of their round.

        n_noise : rounds before the oldest of these whose noise is still needed.
        """
        newest, oldest = max(saved_rounds, default=0), min(saved_rounds, default=0)
        for path in _files(self.folder):
            round = _round_of(path)
            if round <= newest and round not in saved_rounds:
                with contextlib.suppress(OSError):  # with the next round
                    path.unlink()
        for path in self.noise_folder.glob(f"*/{self._noise_of}/round-*.npz"):
            if _round_of(path) <= oldest - n_noise:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _save(self, path: Path, total: Weights) -> None:
        try:
            durable_files.make_folder(path.parent, 0o700)
            with durable_files.replace_file(path, MODE) as temporary:
                arrays.save(total, temporary)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            remedy = "Nothing was released. Mend that, then go on with --resume"
            raise LedgerError(str(path), reason, remedy) from None

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:05d}.npz"

    def _noise_path(self, key_id: str, round: int) -> Path:
        return self.noise_folder / key_id / self._noise_of / f"round-{round:05d}.npz"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("round-*.npz") if path.stem[6:].isdigit()]


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _narrow(array: np.ndarray) -> np.ndarray:
    """Integers in 4 bytes where they fit."""
    limits = np.iinfo(np.int32)
    if array.dtype != np.int64 or not array.size:
        return array
    fits = limits.min <= array.min() and array.max() <= limits.max
    return array.astype(np.int32) if fits else array
