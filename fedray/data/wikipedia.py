"""Articles of a MediaWiki: the handler `wikipedia`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fedray.data import dump, jsonl
from fedray.data.text import Document, words_of
from fedray.errors import DataError

LINE = 'objects {"title": ..., "text": ...}, one a line'
NEEDED = "a MediaWiki dump (.xml or .xml.bz2) or a .jsonl of title and text"
MAX_LINE = 64 << 20  # bytes of one article on its way from the reader


class Wikipedia:
    """Articles tagged by their title.

    Parameters
    ----------
    path : str
        A MediaWiki dump (``…pages-articles….xml.bz2``, or the .xml), read by gensim:
        markup goes, and articles of under 50 words, redirects and pages outside the
        main namespace are left out. Or lines of JSON (.jsonl), objects with `title`
        and `text`.

    A dump is read in a process of its own, bounded in memory and in time for every
    article, since gensim's cleaning takes as long as a hostile text makes it.

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
        """Give documents one by one."""
        if jsonl.are_in(self.path):
            return self._lines()
        return self._dump()

    def _lines(self) -> Iterator[Document]:
        source = str(self.path)
        for who, value in jsonl.objects(self.path, LINE):
            title = jsonl.text_of(value, "title", who, source)
            text = jsonl.text_of(value, "text", who, source)
            if title is None or text is None:
                raise DataError(source, f"{who} without title or text", LINE)
            yield Document(title, words_of(text))

    def _dump(self) -> Iterator[Document]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        # -P: or files beside the reader would hide modules of these names
        words = [sys.executable, "-P", dump.__file__, str(self.path)]
        reader = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            while line := reader.stdout.readline(MAX_LINE):
                title, text = json.loads(line)
                yield Document(title, words_of(text))
            self._check(reader.wait())
        finally:
            reader.kill()
            reader.wait()
            reader.stdout.close()

    def _check(self, status: int) -> None:
        if not status:
            return
        got = f"a file that gensim cannot read (its reader ended with {status})"
        if status == -signal.SIGPROF:
            got = "an article that takes too long to clean: hostile, or not MediaWiki"
        raise DataError(str(self.path), got, NEEDED)
