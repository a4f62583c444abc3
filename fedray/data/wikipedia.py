"""Wikipedia data handler `wikipedia`: articles of a MediaWiki dump or JSON Lines."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fedray import limits
from fedray.data import dump, text_files
from fedray.data.text import Document, tokenize
from fedray.errors import DataError

LINE = 'objects {"title": ..., "text": ...}, one a line'
NEEDED = "a MediaWiki dump (.xml or .xml.bz2) or a .jsonl of title and text"
MAX_LINE_BYTES = 64 << 20  # of one article printed by the child process


class Wikipedia:
    """Articles tagged by their title.

    Parameters
    ----------
    path : str
        A MediaWiki dump (``…pages-articles….xml.bz2``, or the .xml), read by gensim:
        markup is removed, and articles of under 50 words, redirects and pages outside
        the main namespace are left out. Or lines of JSON (.jsonl), objects with `title`
        and `text`.

    A dump is read by a child process with limits on its memory and on the time for each
    article (`fedray.data.dump`).

    Raises
    ------
    DataError
        If it cannot be read, is hostile, or two articles have one title.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(path, "no file there", NEEDED)

    def get_data(self) -> Iterator[Document]:
        """Yield documents one by one."""
        return (
            self._read_jsonl() if text_files.is_jsonl(self.path) else self._read_dump()
        )

    def _read_jsonl(self) -> Iterator[Document]:
        source = str(self.path)
        for name, value in text_files.read_objects(self.path, LINE):
            title = text_files.get_text(value, "title", name, source)
            text = text_files.get_text(value, "text", name, source)
            if title is None or text is None:
                raise DataError(source, f"{name} without title or text", LINE)
            yield Document(title, tokenize(text))

    def _read_dump(self) -> Iterator[Document]:
        # -P: or files beside the script would hide modules of these names
        command = [sys.executable, "-P", dump.__file__, str(self.path)]
        child = subprocess.Popen(
            command,
            env=limits.child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None  # it is a pipe
        try:
            while line := child.stdout.readline(MAX_LINE_BYTES):
                title, text = json.loads(line)
                yield Document(title, tokenize(text))
            self._check_status(child.wait())
        finally:
            child.kill()
            child.wait()
            child.stdout.close()

    def _check_status(self, status: int) -> None:
        if not status:
            return
        got = f"a file that gensim cannot read (its reader ended with {status})"
        if status == -signal.SIGPROF:
            got = "an article that takes too long to clean: hostile, or not MediaWiki"
        if status == -signal.SIGXCPU:  # a limit that this process has too
            got = "a file that takes more CPU time to read than it may"
        raise DataError(str(self.path), got, NEEDED)
