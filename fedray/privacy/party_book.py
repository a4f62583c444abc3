"""A party's own books: its secret, and the ledger of all that its data has spent.

They lie in `party_dir`/privacy and stay there over all runs. Whoever runs a federation
cannot read or raise anything in them; the party refuses without them.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedray import durable_files
from fedray.errors import LedgerError
from fedray.privacy.central_records import CentralRecords
from fedray.privacy.data_accounts import Accounts, Limit, Training, data_set_of
from fedray.privacy.keys import SecretKey, make_secret, read_secret
from fedray.privacy.ledger import Anchor, Ledger, Line

FOLDER, LOCK, BOOKS = "privacy", "lock", "books"  # within party_dir, and that folder
SECRET, LEDGER, END = "secret.key", "ledger.jsonl", "end.json"  # within the books
LOST = {SECRET: "the party's secret", LEDGER: "its ledger", END: "the ledger's end"}
MADE = b"books are here\n"  # in the lock file, once they are
TRAINING, FIRST_LIMIT, OWNER_LIMIT = "training", "first_limit", "owner_limit"
RESET, CENTRAL = "reset", "central"


class PartyBook:
    """Reads and extends the books of one `party_dir`.

    Parameters
    ----------
    party_dir : folder of the parties of one owner on this node.
    """

    def __init__(self, party_dir: Path):
        self.party_dir, self.folder = party_dir, party_dir / FOLDER
        self.books = self.folder / BOOKS
        self.accounts, self.central = Accounts(), CentralRecords()
        self._ledger: Ledger | None = None
        self._added: list[Line] = []
        self._end = Anchor(0, "")
        self._inode = 0

    @property
    def key(self) -> SecretKey:
        """The party's secret; only once the books are open."""
        key = None if self._ledger is None else self._ledger.key
        assert key is not None
        return key

    @property
    def is_open(self) -> bool:
        """Whether there are books, and they have been read."""
        return self._ledger is not None

    @property
    def lines(self) -> list[Line]:
        """All lines of the ledger, oldest first."""
        return self._ledger.lines if self._ledger else []

    @property
    def exists(self) -> bool:
        """Whether there are books, or were some.

        Raises
        ------
        LedgerError
            If this user may not look.
        """
        try:
            return self.books.exists() or bool((self.folder / LOCK).stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise LedgerError(str(self.folder), reason) from None

    @contextlib.contextmanager
    def locked(self, may_make: bool = True) -> Iterator[bool]:
        """Keep other processes out, with the books as they are now.

        Yields whether there are any.

        may_make : make them where there are none.

        Raises
        ------
        LedgerError
            If a part of them is lost or was altered: only the owner may begin anew.
        """
        if not may_make and not self.exists:
            yield False
            return
        with self._lock():
            if not self.exists:
                self.make()
            with self._say_remedy():
                self.read()
            self._settle()
            try:
                yield True
                self.flush()
            finally:
                if self._added:  # they were counted, but not written
                    self._added, self._ledger = [], None

    def add(self, kind: str, **fields: Any) -> None:
        """Count a line, within `locked`; `flush` writes all that were added."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"kind": kind, **fields, "at": at}
        self._added.append(line)
        self._take(line)

    def flush(self) -> None:
        """Write the lines that were added; they are on disk when this returns.

        Raises
        ------
        LedgerError
            If the disk refuses: nothing may be trained then.
        """
        added, self._added = self._added, []
        ledger = self._ledger
        if not added or ledger is None:
            return
        self._ledger = None  # all is read anew unless this succeeds
        ledger.extend(added)
        self._write_end(ledger.anchor, ledger.key)
        self._ledger = ledger

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            durable_files.make_folder(self.folder, 0o700)
            handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            needed = "party_dir has to be a folder on the party's own node that it may"
            raise LedgerError(str(self.folder), reason, f"{needed} write") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:  # of file systems without locks
                reason = f"cannot be locked: {error.strerror}"
                needed = "party_dir has to be where files can be locked (flock)"
                raise LedgerError(str(self.folder), reason, needed) from None
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _say_remedy(self) -> Iterator[None]:
        """Let errors say what the owner can do; all is read anew after one."""
        try:
            yield
        except LedgerError as error:
            self._ledger = None
            if "cannot be" in error.reason or error.remedy.startswith("chmod"):
                raise  # they are not lost
            restore = f"Restore {self.books} as it was last"
            anew = f"fedray privacy reset {self.party_dir}"
            remedy = f"{restore}; or, as the owner of the data, begin anew: {anew}"
            raise LedgerError(error.path, error.reason, remedy) from None

    def make(self) -> None:
        """Make all files at once, under the lock: one that is missing later is lost."""
        aside = self.folder / f".new.{secrets.token_hex(4)}.part"
        try:
            aside.mkdir(mode=0o700)
            key = SecretKey(make_secret(aside / SECRET))
            ledger = Ledger(aside / LEDGER)
            ledger.begin(key)
            _write_end(aside / END, ledger.anchor, key)
            durable_files.move(aside, self.books)
            self._note_made()
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            reason = f"cannot be written: {error.strerror}"
            raise LedgerError(str(self.folder), reason) from None

    def _note_made(self) -> None:
        """Let the lock file say that there are books: all may be lost together."""
        (self.folder / LOCK).write_bytes(MADE)
        durable_files.flush(self.folder / LOCK)

    def read(self) -> None:
        """Read what is new, under the lock, and see that nothing is missing."""
        for name, what in LOST.items():
            if not (self.books / name).exists():
                raise LedgerError(str(self.books), f"{what} is lost ({name})")
        inode = (self.books / LEDGER).stat().st_ino
        if self._ledger is None or inode != self._inode:
            secret = read_secret(self.books / SECRET)
            assert secret is not None
            self._ledger = Ledger(self.books / LEDGER, SecretKey(secret))
            self.accounts, self.central = Accounts(), CentralRecords()
            new = self._ledger.lines
        else:
            new = self._ledger.refresh()
        for line in new:
            self._take(line)
        end = _read_end(self.books / END, self.key)
        self._ledger.require(end, END)
        self._end = end

    def _settle(self) -> None:
        """Bring to an end what a crash has interrupted."""
        ledger = self._ledger
        assert ledger is not None
        if ledger.torn:  # it is flushed before anything is trained: nothing was
            ledger.drop_torn()
        self._inode = (self.books / LEDGER).stat().st_ino
        if ledger.anchor != self._end:
            self._write_end(ledger.anchor, ledger.key)
        if not (self.folder / LOCK).stat().st_size:
            self._note_made()

    def _write_end(self, anchor: Anchor, key: SecretKey | None) -> None:
        assert key is not None
        try:
            _write_end(self.books / END, anchor, key)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            raise LedgerError(str(self.books / END), reason) from None

    def _take(self, line: Line) -> None:
        """Count a line of the ledger."""
        kind, accounts = line["kind"], self.accounts
        if kind == TRAINING:
            fields = {name: line[name] for name in Training._fields}
            accounts.add(data_set_of(line), Training(**fields))
        elif kind == FIRST_LIMIT:
            account = accounts.of(data_set_of(line))
            account.first = account.first or Limit(line["epsilon"], line["delta"])
        elif kind == OWNER_LIMIT:
            accounts.owner_epsilon = line["epsilon"]
        elif kind == RESET:
            accounts.forget(line["keys"])
        elif kind == CENTRAL:
            self.central.add(line)


def forget_all(party_dir: Path) -> None:
    """Begin the account of every data set anew; the ledger says so.

    Raises
    ------
    LedgerError
        If the books cannot be used: `begin_anew` can then.
    """
    book = PartyBook(party_dir)
    with book.locked():
        book.add(RESET, keys=book.accounts.keys)


def begin_anew(party_dir: Path, problem: str) -> None:
    """Put damaged books aside and make new ones, whose first line says so.

    problem : what is wrong with the old ones.

    Raises
    ------
    LedgerError
        If the disk refuses.
    """
    book = PartyBook(party_dir)
    with book._lock():
        before = book.folder / f"before-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        try:
            if book.books.exists():
                durable_files.move(book.books, before)
        except OSError as error:
            reason = f"cannot be moved: {error.strerror}"
            raise LedgerError(str(book.books), reason) from None
        book.make()
        book.read()
        book._settle()
        book.add(RESET, keys=[], problem=problem)
        book.flush()


def _write_end(path: Path, anchor: Anchor, key: SecretKey) -> None:
    line = {"lines": anchor.n_lines, "link": anchor.link}
    mac = key.tag("end", anchor.n_lines, anchor.link)
    durable_files.write_text(path, json.dumps({**line, "mac": mac}) + "\n", 0o600)


def _read_end(path: Path, key: SecretKey) -> Anchor:
    """How far the ledger went when it was last written."""
    try:
        line: Any = json.loads(path.read_text("utf-8"))
        anchor = Anchor(line["lines"], line["link"])
        is_own = line["mac"] == key.tag("end", anchor.n_lines, anchor.link)
    except OSError as error:
        raise LedgerError(str(path), f"cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        is_own = False
    if not is_own:
        raise LedgerError(str(path), "has been altered, or is of another secret")
    return anchor
