"""Tensors of a run that neither train nor travel: kept once in its folder.

`frozen/weights.npz` holds them, `frozen/names.json` says which they are, and which
names tied tensors have; of an ensemble's member both are in `frozen-<member>`.
Checkpoints hold the rest.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedray import durable_files
from fedray import weights as arrays
from fedray.errors import RunFolderError
from fedray.weights import Weights

FOLDER, NAMES, ARRAYS = "frozen", "names.json", "weights.npz"
RESTORE_IT = "Restore it, or begin a new run: another folder with --run-dir"


@dataclass(frozen=True)
class FrozenRecord:
    """Which tensors of a model do not travel.

    order : names of all that the model has, in its order.
    tied : second names of tensors, and the first.
    fixed : names of those that neither train nor move.
    """

    order: tuple[str, ...]
    tied: Mapping[str, str]
    fixed: tuple[str, ...]

    def complete(self, weights: Weights) -> Weights:
        """All tensors of the model, from those that travel and those that do not."""
        return {name: weights[self.tied.get(name, name)] for name in self.order}


def write_frozen(
    run: Path, group: str | None, record: FrozenRecord, frozen: Weights
) -> None:
    """Write what a run keeps once; it is there whole or not at all.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    folder = _folder(run, group)
    durable_files.make_folder(folder)
    with durable_files.replace_file(folder / ARRAYS) as aside:
        arrays.save({name: frozen[name] for name in record.fixed}, aside)
    text = json.dumps(asdict(record), ensure_ascii=False)
    durable_files.write_text(folder / NAMES, text + "\n")


def read_record(run: Path, group: str | None) -> FrozenRecord | None:
    """Which tensors of a run's model do not travel; None where all do.

    group : with a model of its own, or whose model began as everyone's.

    Raises
    ------
    RunFolderError
        If it cannot be read.
    """
    file = _folder(run, group) / NAMES
    if group is not None and not file.exists():
        file = _folder(run, None) / NAMES
    try:
        plain = json.loads(file.read_text("utf-8"))
        order, fixed = tuple(plain["order"]), tuple(plain["fixed"])
        return FrozenRecord(order, dict(plain["tied"]), fixed)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _lost(run, file, error) from None


def read_frozen(run: Path, group: str | None) -> Weights:
    """Tensors that do not travel, of a run that has some.

    Raises
    ------
    RunFolderError
        If they cannot be read.
    """
    folder = _folder(run, group)
    if group is not None and not folder.is_dir():
        folder = _folder(run, None)
    try:
        return arrays.load(folder / ARRAYS)
    except Exception as error:  # a damaged zip raises of many kinds
        raise _lost(run, folder / ARRAYS, error) from None


def forget_frozen(run: Path) -> None:
    """Remove what an earlier start of a run kept that never had a round."""
    for folder in run.glob(f"{FOLDER}*"):
        (folder / NAMES).unlink(missing_ok=True)


def _folder(run: Path, group: str | None) -> Path:
    return run / (f"{FOLDER}-{group}" if group else FOLDER)


def _lost(run: Path, file: Path, error: Exception) -> RunFolderError:
    why = " ".join(str(error).split())[:300]
    what = f"its {file.parent.name}/{file.name}, which no checkpoint repeats"
    reason = f"cannot go on: {what}, is lost or damaged ({type(error).__name__}: {why})"
    return RunFolderError(str(run), reason, RESTORE_IT)
