"""Model files of scikit-learn estimators: .skops, which holds no code to run."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import skops.io as skops

from fedray import limits
from fedray.errors import ModelFileError
from fedray.models.untrusted import (
    BROKEN,
    READ_ERRORS,
    UnsafeFile,
    check_readable,
    model_file_errors,
)

MAX_BYTES = 4 << 30  # of a file, decompressed
MAX_MEMBERS = 10_000
MAX_SCHEMA = 64 << 20  # bytes of the description of objects
OPTIMIZERS = "sklearn.neural_network._stochastic_optimizers."
# beside what skops trusts: MLP's optimizers; the dtype that SimpleImputer remembers,
# which skops reads from an array without numbers
TRUSTED = [
    f"{OPTIMIZERS}AdamOptimizer",
    f"{OPTIMIZERS}SGDOptimizer",
    "numpy.dtype",
]
DUMP = "write it with skops.io.dump(estimator, path)"


def read(path: Path) -> Any:
    """Read what a .skops file holds; nothing in it is run.

    Raises
    ------
    ModelFileError
        If it is no such file, or holds types that are not known to be harmless.
    """
    with model_file_errors(path):
        check_readable(path)
        try:
            _check_members(path)
            with warnings.catch_warnings():  # of another version of scikit-learn
                warnings.simplefilter("ignore")
                unknown = sorted({*skops.get_untrusted_types(file=path)} - {*TRUSTED})
                if unknown:
                    names = ", ".join(name[:80] for name in unknown[:5])
                    raise UnsafeFile(
                        f"it holds {names}, which are not known to be harmless: leave "
                        "such parts out, or build them by `architecture`"
                    )
                return skops.load(path, trusted=TRUSTED)
        except (*READ_ERRORS, RecursionError, TypeError, AttributeError) as error:
            if path.suffix != ".skops":
                raise UnsafeFile(f"it is no .skops file: {DUMP}") from error
            reason = f"it is damaged or of another version of scikit-learn: {DUMP}"
            raise UnsafeFile(reason) from error
        except ImportError as error:
            raise UnsafeFile(
                f"it needs {error.name}: install that, or {DUMP}"
            ) from error


def _check_members(path: Path) -> None:
    """Bound what a file unpacks to before memory is taken."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = {member.filename for member in members}
        if "schema.json" not in names:
            raise UnsafeFile(f"it is a zip of another kind: {DUMP}")
        if len(members) > MAX_MEMBERS or len(names) != len(members):
            raise UnsafeFile(BROKEN)
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise UnsafeFile(f"it unpacks to more than {MAX_BYTES >> 30} GiB")
        for member in members:
            most = limits.max_inflated_bytes(member.compress_size, MAX_BYTES)
            is_schema = member.filename == "schema.json"
            if member.file_size > (min(most, MAX_SCHEMA) if is_schema else most):
                raise UnsafeFile(BROKEN)


def write(estimator: Any, path: Path) -> None:
    """Write a fitted estimator so that scikit-learn and skops alone read it.

    Raises
    ------
    ModelFileError
        If something in it cannot be written so that it can be read safely.
    """
    skops.dump(estimator, path)
    unknown = {*skops.get_untrusted_types(file=path)} - {*TRUSTED}
    if unknown:
        reason = f"{', '.join(sorted(unknown)[:5])} cannot be read back safely"
        raise ModelFileError(str(path), reason)
