"""The privacy ledger: an append-only record of releases, from which epsilon follows.

One line of JSON for each event. Every line is linked to all before it by SHA-256, and
an HMAC of the link is part of the line: whoever has no key can neither change nor
reorder lines, nor drop any but the last ones; those are missed by an `Anchor` that was
taken later, such as a checkpoint's. A line is on disk before anything that is derived
from its release leaves the process.

Kinds of lines: `start` (a run, or a data set's ledger, begins to use a key),
`settings` (what is fixed from the first release on), `release`, and `torn` (a line that
was cut off by a crash, which counts as a release).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedray import durable_files
from fedray.errors import LedgerError
from fedray.privacy.keys import SecretKey, canonical, encode_context

RUN_LEDGER = "privacy.jsonl"  # in a run's folder
START, SETTINGS, RELEASE, TORN = "start", "settings", "release", "torn"
RESTORE = "Restore it from a copy made after the last round; nothing was changed"
Line = dict[str, Any]


class Anchor(NamedTuple):
    """How long a ledger was, and the link of its last line.

    A ledger that has an anchor as one of its own has not lost or changed a line before.
    """

    n_lines: int
    link: str


class Ledger:
    """Reads and extends one ledger.

    Parameters
    ----------
    path : its file, which need not exist yet.
    key : of whoever writes; None: only read, lines are checked against anchors alone.

    Raises
    ------
    LedgerError
        If a line was changed, reordered or is missing, or `key` is not the one under
        which the last lines were written.
    """

    def __init__(self, path: Path, key: SecretKey | None = None):
        self.path, self.key = path, key
        self.lines: list[Line] = []
        self.torn = b""  # of a last line that was cut off
        self._links = [hashlib.sha256(b"fedray privacy ledger 1").hexdigest()]
        self._authenticated: list[str] = []
        self._size = 0  # of the file, in bytes
        self._read()
        if key is not None:
            self._verify(key)

    @property
    def anchor(self) -> Anchor:
        """Of all lines that are there now."""
        return Anchor(len(self.lines), self._links[-1])

    @property
    def start(self) -> Line:
        """The last `start` line: whose key is in use; {} in an empty ledger."""
        return next((x for x in reversed(self.lines) if x["kind"] == START), {})

    @property
    def releases(self) -> list[Line]:
        """Lines that count as a release, oldest first; of a torn one only the kind."""
        lines = [line for line in self.lines if line["kind"] in (RELEASE, TORN)]
        is_cut = self.torn and self.lines  # or it was a `start`, before any release
        return [*lines, {"kind": TORN}] if is_cut else lines

    def settings(self, **fields: Any) -> Line:
        """The last `settings` line that has these fields; {} if there is none."""
        for line in reversed(self.lines):
            if line["kind"] == SETTINGS and fields.items() <= line.items():
                return line
        return {}

    def require(self, anchor: Anchor, whose: str) -> None:
        """See that no line from before an anchor is missing or changed.

        Raises
        ------
        LedgerError
            whose : who took the anchor, "the checkpoint of round 3".
        """
        if len(self.lines) < anchor.n_lines:
            reason = f"has {len(self.lines)} lines, {whose} knows {anchor.n_lines}"
            raise LedgerError(str(self.path), reason, RESTORE)
        if self._links[anchor.n_lines] != anchor.link:
            reason = (
                f"one of its first {anchor.n_lines} lines is not what {whose} knows"
            )
            raise LedgerError(str(self.path), reason, RESTORE)

    def begin(self, key: SecretKey, **fields: Any) -> None:
        """Append a `start` line: from it on, lines are written under this key."""
        self.key = key
        self.append(START, key=key.id, **fields)

    def append(self, kind: str, **fields: Any) -> None:
        """Append a line, as `extend` does; fields : plain values."""
        self.extend([{"kind": kind, **fields}])

    def extend(self, lines: Sequence[Line]) -> None:
        """Append lines, which are on disk when this returns, by one flush.

        Raises
        ------
        LedgerError
            If another process has written since, or the disk refuses; nothing of the
            lines stays then.
        """
        if self.key is None:
            raise ValueError("a ledger that was opened without its key is only read")
        if self.torn:
            self._seal()
        links, macs, text = [self._links[-1]], [], []
        for line in lines:
            links.append(_link(links[-1], line))
            macs.append(self.key.authenticate(links[-1]))
            text.append(_render(line, macs[-1]))
        whole = b"".join(text)
        try:
            _append(self.path, whole, self._size)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            remedy = "Nothing was released. Mend that, then go on with --resume"
            raise LedgerError(str(self.path), reason, remedy) from None
        self._size += len(whole)
        for line, link, mac in zip(lines, links[1:], macs, strict=True):
            self._take(line, link, mac)

    def refresh(self) -> list[Line]:
        """Read and check the lines that other processes have appended since; these.

        A line that they were killed over is `torn` then.
        """
        n_before = len(self.lines)
        self._read()
        if self.key is not None:
            self._verify(self.key, n_before)
        return self.lines[n_before:]

    def completes(self, kind: str, **fields: Any) -> bool:
        """Whether the torn line is the beginning of this one, cut off by a crash."""
        if self.key is None or not self.torn:
            return False
        line = {"kind": kind, **fields}
        mac = self.key.authenticate(_link(self._links[-1], line))
        return _render(line, mac).startswith(self.torn)

    def drop_torn(self) -> None:
        """Cut a torn line away, for `append` to write it whole."""
        self._replace(b"")

    def text(self) -> bytes:
        """The whole file, as it should be."""
        pairs = zip(self.lines, self._authenticated, strict=True)
        return b"".join(_render(line, mac) for line, mac in pairs) + self.torn

    def _seal(self) -> None:
        """Put a line that counts as a release in the place of one that was torn."""
        if not self.lines or self.key is None:
            self.drop_torn()  # of a `start`: nothing was released before
            return
        line: Line = {"kind": TORN, "n_bytes": len(self.torn)}
        link = _link(self._links[-1], line)
        mac = self.key.authenticate(link)
        self._replace(_render(line, mac))
        self._take(line, link, mac)

    def _replace(self, last: bytes) -> None:
        """Write the file anew, with this in the place of a torn line."""
        text = self.text()
        whole = text[: len(text) - len(self.torn)] + last
        try:
            mode = self.path.stat().st_mode & 0o777
            with durable_files.replace_file(self.path, mode) as temporary:
                temporary.write_bytes(whole)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            raise LedgerError(str(self.path), reason) from None
        self.torn, self._size = b"", len(whole)

    def _take(self, line: Line, link: str, mac: str) -> None:
        self.lines.append(line)
        self._links.append(link)
        self._authenticated.append(mac)

    def _read(self) -> None:
        """Take the whole lines that follow those that are known."""
        start = self._size - len(self.torn)
        try:
            with self.path.open("rb") as file:
                n_bytes = file.seek(0, os.SEEK_END)
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            text, n_bytes = b"", 0
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise LedgerError(str(self.path), reason) from None
        if n_bytes < start:
            raise self._altered("lines are missing that were there before")
        end = text.rfind(b"\n") + 1
        self._size, self.torn = start + len(text), text[end:]
        raws = text[:end].splitlines(keepends=True)
        for number, raw in enumerate(raws, len(self.lines) + 1):
            line, mac = self._parse(raw, number)
            self._take(line, _link(self._links[-1], line), mac)
        if self.lines and self.lines[0]["kind"] != START:
            raise self._altered("line 1 does not begin a ledger: one is missing")

    def _parse(self, raw: bytes, number: int) -> tuple[Line, str]:
        """A line's fields and its HMAC, if it is as it was written."""
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            line = dict(json.loads(raw))
            mac = line.pop("mac")
            if isinstance(line["kind"], str) and _render(line, mac) == raw:
                return line, mac
        raise self._altered(f"line {number} was changed")

    def _verify(self, key: SecretKey, n_before: int = 0) -> None:
        """Check the lines under this key; earlier ones are linked to them.

        n_before : first lines that have been checked before.
        """
        if not self.lines:
            return
        if self.start.get("key") != key.id:
            reason = f"its key is {self.start.get('key')}, the one beside it {key.id}"
            remedy = (
                "Restore the key that belongs to it; if that is lost, delete the other"
            )
            raise LedgerError(str(self.path), reason, remedy)
        first = max(i for i, x in enumerate(self.lines) if x["kind"] == START)
        for i in range(max(first, n_before), len(self.lines)):
            if self._authenticated[i] != key.authenticate(self._links[i + 1]):
                what = f"up to line {i + 1}" if i == first else f"line {i + 1}"
                reason = f"{what} is not what was written, or a line before is missing"
                raise self._altered(reason)

    def _altered(self, reason: str) -> LedgerError:
        return LedgerError(str(self.path), f"has been altered: {reason}", RESTORE)


def _link(before: str, line: Mapping[str, Any]) -> str:
    return hashlib.sha256(encode_context(before, canonical(line))).hexdigest()


def _render(line: Mapping[str, Any], mac: str) -> bytes:
    text = json.dumps({**line, "mac": mac}, separators=(", ", ": "), allow_nan=False)
    return text.encode("ascii") + b"\n"


def _append(path: Path, line: bytes, n_before: int) -> None:
    """Append to a file of so many bytes and flush; where that fails, nothing stays."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    with (
        durable_files.name_errors(path),
        open(path, "ab", buffering=0, opener=opener) as opened,
    ):
        if opened.seek(0, os.SEEK_END) != n_before:
            raise OSError(0, "another process has written to it")
        try:
            while line:
                line = line[opened.write(line) :]
            os.fsync(opened.fileno())
            if not n_before:
                durable_files.flush(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                opened.truncate(n_before)
            raise
