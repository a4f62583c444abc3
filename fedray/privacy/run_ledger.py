"""The ledger, key and release files in a run's folder: opened, moved on, ended.

A folder belongs to the run whose ledger names it, by device and inode: of a copy, the
ledger would not know what is released in the other. A copy goes on as a run of its own,
with an id and a key of its own, and the ledger that it had.
"""

import os
import shutil
from pathlib import Path

from fedray.errors import LedgerError
from fedray.privacy.central import ReleaseLine
from fedray.privacy.keys import (
    RUN_KEY,
    SECRET_BYTES,
    SecretKey,
    new_run_id,
    read_secret,
    write_secret,
)
from fedray.privacy.ledger import RESTORE, RUN_LEDGER, START, Ledger
from fedray.privacy.release_files import FOLDER, NOISE_FOLDER

AS_NEW_RUN = "--as-new-run"
COPIED = (
    "Go on in the folder where the run began. If that is gone, or this copy is to be a "
    f"run of its own: --resume {AS_NEW_RUN}, with another id and key; its ledger stays "
    "and what both release adds up"
)


class RunLedger:
    """The privacy ledger of a run, with the run's key; both are made when needed.

    folder : the run's.
    run_id : of a run that has no ledger yet; 128 bits of it are random.

    Raises
    ------
    LedgerError
        If ledger or key were altered, do not belong together, or lie in a copy of the
        run's folder.
    """

    def __init__(self, folder: Path, run_id: str):
        require_own_folder(folder)
        self.folder, self._run_id = folder, run_id
        self._secret = read_secret(folder / RUN_KEY)
        key = None if self._secret is None else SecretKey(self._secret)
        self.ledger = Ledger(folder / RUN_LEDGER, key)
        if not self.ledger.lines and any((folder / FOLDER).rglob("round-*.npz")):
            reason = f"is gone or empty, and {FOLDER}/ has releases"
            raise LedgerError(str(self.ledger.path), reason, RESTORE)

    @property
    def run_id(self) -> str:
        """The id under which what is released is bound and counted."""
        return str(self.ledger.start.get("run", self._run_id))

    def has_made(self, line: ReleaseLine) -> bool:
        """Whether a release is one of this run, or of the run whose copy it is."""
        starts = (x for x in self.ledger.lines if x["kind"] == START)
        return any(line.key == x["key"] and line.run == x["run"] for x in starts)

    def key(self) -> SecretKey:
        """The run's key; a new one where there is none, which the ledger says first.

        Raises
        ------
        LedgerError
            If the disk refuses.
        """
        if self.ledger.key is None or not self.ledger.lines:
            self._begin(self._secret or os.urandom(SECRET_BYTES))
        assert self.ledger.key is not None
        return self.ledger.key

    def renew_key(self) -> None:
        """Go on with a new key, under which all noise is new.

        Raises
        ------
        LedgerError
            If the disk refuses.
        """
        self._begin(os.urandom(SECRET_BYTES))

    def _begin(self, secret: bytes) -> None:
        _begin(self.ledger, self.folder, self.run_id, secret)
        self._secret = secret


def has_ledger(folder: Path) -> bool:
    """Whether anything was released in a run's folder, or was about to be."""
    return (folder / RUN_LEDGER).exists()


def require_own_folder(folder: Path) -> None:
    """See that a run's folder is the one in which its ledger was begun.

    Raises
    ------
    LedgerError
        If it is a copy, or the ledger was altered.
    """
    start = Ledger(folder / RUN_LEDGER).start
    if start and start.get("folder") != _identity(folder):
        reason = "is in a copy of the run's folder, or one that was moved"
        raise LedgerError(str(folder / RUN_LEDGER), reason, COPIED)


def become_new_run(folder: Path) -> str:
    """Let a copy of a run's folder be a run of its own; its id.

    Raises
    ------
    LedgerError
        If there is no ledger, it was altered, or the disk refuses.
    """
    ledger = Ledger(folder / RUN_LEDGER)
    if not ledger.lines:
        reason = "is not there: only a run with privacy needs an id of its own"
        remedy = f"Go on without {AS_NEW_RUN}"
        raise LedgerError(str(ledger.path), reason, remedy)
    if (secret := read_secret(folder / RUN_KEY)) is not None:
        Ledger(ledger.path, SecretKey(secret))  # nothing was altered until now
    run_id = new_run_id()
    _begin(ledger, folder, run_id, os.urandom(SECRET_BYTES))
    shutil.rmtree(folder / FOLDER / NOISE_FOLDER, ignore_errors=True)
    return run_id


def end_secrets(folder: Path) -> None:
    """Delete the key of a run that is done, and the noise that it kept.

    Who had them could subtract the noise from what was released.

    Raises
    ------
    LedgerError
        If the key cannot be deleted.
    """
    shutil.rmtree(folder / FOLDER / NOISE_FOLDER, ignore_errors=True)
    try:
        (folder / RUN_KEY).unlink(missing_ok=True)
    except OSError as error:
        reason = f"cannot be deleted: {error.strerror}; all rounds are done"
        remedy = "Who has it can take the noise off. Mend that, then --resume"
        raise LedgerError(str(folder / RUN_KEY), reason, remedy) from None


def _begin(ledger: Ledger, folder: Path, run_id: str, secret: bytes) -> None:
    """Write that a key is in use from here on, then the key.

    In this order: a key that the ledger does not know would be refused, one that is
    lost before it made any noise does no harm.
    """
    ledger.begin(SecretKey(secret), run=run_id, folder=_identity(folder))
    try:
        write_secret(folder / RUN_KEY, secret)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise LedgerError(str(folder / RUN_KEY), reason) from None


def _identity(folder: Path) -> str:
    entry = folder.stat()
    return f"{entry.st_dev}:{entry.st_ino}"
