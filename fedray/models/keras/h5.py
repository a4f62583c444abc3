"""What HDF5 files hold: got out of a stranger's by a process apart, and put in ours."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedray.models.hdf5 import ARRAYS, TEXTS
from fedray.models.untrusted import BROKEN, FAULTS, Refused
from fedray.weights import Form, Weights

WAIT_S = 120  # however busy the machine
STATE_OF = ("optimizer", "optimizer_weights")  # what training remembered: not read


@dataclass(frozen=True)
class Content:
    """Arrays and texts of an HDF5 file.

    arrays : by path, as "/layers/dense/vars/0".
    texts : of groups, by path and name of the attribute.
    """

    arrays: Weights
    texts: dict[str, dict[str, str | list[str]]]

    def forms(self) -> Counter[Form]:
        """How many arrays there are of each shape and dtype, optimizers' left out."""
        return Counter(
            Form(array.shape, array.dtype.name)
            for name, array in self.arrays.items()
            if name.split("/")[1] not in STATE_OF
        )

    def text(self, name: str) -> str | None:
        """A text of the whole file; None if it has none."""
        value = self.texts.get("/", {}).get(name)
        if value is not None and not isinstance(value, str):
            raise Refused(BROKEN)
        return value

    def write(self, path: Path) -> None:
        """Write the same again: a file that nobody else made."""
        import h5py

        with h5py.File(path, "w") as file:
            for name, texts in self.texts.items():
                group = file.require_group(name)
                for key, value in texts.items():
                    told = (
                        value
                        if isinstance(value, str)
                        else np.array([v.encode() for v in value], "S")
                    )
                    group.attrs[key] = told
            for name, array in self.arrays.items():
                if name.split("/")[1] not in STATE_OF:
                    file[name] = array


def extract(path: Path) -> Content:
    """Read an HDF5 file in a process of its own.

    Raises
    ------
    Refused
        If there is anything in it that Keras does not write, or it breaks that process.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedray.models.hdf5", str(path), folder]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=WAIT_S,
                env=_environment(),
                check=True,
            )
            reason = json.loads(done.stdout)
            if reason:
                raise Refused(reason)
            return _content(Path(folder))
        except (*FAULTS, subprocess.SubprocessError) as error:
            raise Refused(BROKEN) from error


def _content(folder: Path) -> Content:
    with np.load(folder / ARRAYS, allow_pickle=False) as file:
        arrays = {name.removeprefix("a:"): file[name] for name in file.files}
    texts = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
    return Content(arrays, texts)


def _environment() -> dict[str, str]:
    """The same modules as here; no plugins for HDF5; no pool of threads."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HDF5_PLUGIN_PRELOAD": "::",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _told(value: str | list[str]) -> str | np.ndarray:
    if isinstance(value, str):
        return value
    return np.array([part.encode() for part in value], "S")
