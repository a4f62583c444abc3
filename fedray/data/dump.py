"""Reads a MediaWiki dump through gensim, in a process of its own that may be killed.

Run by `fedray.data.wikipedia` as a script: prints ``[title, text]`` for every article.
"""

import bz2
import json
import resource
import signal
import sys
from pathlib import Path
from typing import IO

ARTICLE_S = 0.8  # of this process, to clean one; and a second for every
CHARACTERS = 500_000  # of it, four times what the slowest honest ones need; and
BYTES = 1 << 20  # read, until an article is whole
MAX_MEMORY = 4 << 30
MAX_BYTES = 1 << 40  # of a whole dump; Wikipedia's largest has 100 GB
MAX_INFLATION = 200  # times
FREE_BYTES = 64 << 20  # below this no inflation hurts
MIN_WORDS = 50  # as gensim's own WikiCorpus


class Counted:
    """A dump that ends in an error where it inflates past its bounds."""

    def __init__(self, inner: IO[bytes], n_there: int):
        self.inner, self.n_read = inner, 0
        self.n_most = min(MAX_BYTES, max(FREE_BYTES, MAX_INFLATION * n_there))

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes."""
        given = self.inner.read(size)
        _allow(len(given) / BYTES)
        self.n_read += len(given)
        if self.n_read > self.n_most:
            raise ValueError("inflates past its bounds")
        return given


def main(path: Path) -> None:
    """Print every article; killed by its own timer if one takes too long."""
    limits = [resource.getrlimit(resource.RLIMIT_AS)[1], MAX_MEMORY]
    most = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    from gensim.corpora import wikicorpus

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, ARTICLE_S)
    with open(path, "rb") as file:
        is_packed = file.read(3) == b"BZh"
    with bz2.open(path) if is_packed else open(path, "rb") as file:
        source = Counted(file, path.stat().st_size)
        for title, text, _ in wikicorpus.extract_pages(source, ("0",)):
            _allow(len(text) / CHARACTERS)
            cleaned = wikicorpus.filter_wiki(text)
            if not _is_left_out(title, cleaned, wikicorpus):
                print(json.dumps([title, cleaned]), flush=True)
            signal.setitimer(signal.ITIMER_PROF, ARTICLE_S)


def _allow(seconds: float) -> None:
    """Let this process run so much longer until its timer ends it."""
    left = signal.getitimer(signal.ITIMER_PROF)[0]
    signal.setitimer(signal.ITIMER_PROF, left + seconds)


def _is_left_out(title: str, text: str, wikicorpus: object) -> bool:
    ignored = tuple(f"{name}:" for name in wikicorpus.IGNORED_NAMESPACES)
    few = len(wikicorpus.tokenize(text, 2, 15, True)) < MIN_WORDS
    return few or title.startswith(ignored)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
