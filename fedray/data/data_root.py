"""Data that must lie in one folder of its node, whatever its path says."""

from pathlib import Path

from fedray.errors import DataError


def inside(path: str, root: str) -> str:
    """The true path of data in `root`; links are followed before it is looked at.

    Raises
    ------
    DataError
        If it leads out of `root`, or there is nothing. It names the path within
        `root` only.
    """
    try:
        folder = Path(root).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        needed = "the operator's data root on every node that holds data"
        raise DataError("root", "no such folder on this node", needed) from None
    told = path.removeprefix(str(root)).lstrip("/")[:200]
    try:
        found = (folder / path).resolve()
        found.relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        raise DataError(told, "a path that leads elsewhere", _NEEDED) from None
    if not found.exists():
        raise DataError(told, "nothing there on this node", _NEEDED)
    return str(found)


_NEEDED = "a path within the operator's data root, on the party's own node"
