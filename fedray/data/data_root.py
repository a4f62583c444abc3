"""Confines a party's data path to one folder, the operator's data root."""

from pathlib import Path

from fedray.errors import DataError

NEEDED = "a path within the operator's data root, on the party's own node"


def resolve_in_root(path: str, root: str) -> str:
    """The absolute path of data in `root`, with links resolved before the check.

    Raises
    ------
    DataError
        If it leads out of `root`, or does not exist. The error names the path within
        `root` only.
    """
    try:
        folder = Path(root).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        needed = "the operator's data root on every node that holds data"
        raise DataError("root", "no such folder on this node", needed) from None
    source = path.removeprefix(str(root)).lstrip("/")[:200]
    try:
        resolved = (folder / path).resolve()
        resolved.relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        raise DataError(source, "a path that leads elsewhere", NEEDED) from None
    if not resolved.exists():
        raise DataError(source, "nothing there on this node", NEEDED)
    return str(resolved)
