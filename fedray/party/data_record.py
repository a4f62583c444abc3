"""A digest of a party's data, kept on its own node while a run lasts.

It says whether data that is loaded again, after a restart or for a resumed run, is what
the run began with. Only that leaves the node: of data with few possible values a digest
would give the values away.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from fedray import durable_files
from fedray.messages import CHANGED, FIRST, SAME


def compare_with_record(file: str, digest: Callable[[], str]) -> str:
    """Compare data with the digest in `file`; without one, the data's is kept there.

    file : empty: nothing is compared. Where it cannot be written nothing is kept, and
        the data counts as loaded for the first time.

    Returns
    -------
    SAME, CHANGED, or FIRST if there was no digest.
    """
    if not file:
        return SAME
    try:
        path = Path(file).expanduser()
    except RuntimeError:  # the user of this process has no home
        return FIRST
    now = digest()
    with contextlib.suppress(OSError, ValueError):
        return SAME if path.read_text(encoding="ascii").strip() == now else CHANGED
    with contextlib.suppress(OSError):
        durable_files.make_folder(path.parent, 0o700)
        durable_files.write_text(path, now + "\n", mode=0o600)
    return FIRST
