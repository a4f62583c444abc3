"""Child process that reads an untrusted MediaWiki dump with gensim, under limits.

Run by `fedray.data.wikipedia` as a script; prints ``[title, text]`` for every article.
gensim's cleaning takes as long as a hostile text makes it: a timer of CPU time, reset
for every article, ends the process.
"""

import bz2
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import IO

from fedray import limits

# CPU time to clean one article: a start, and a second for each of these
ARTICLE_CPU_S = 0.8
CHARACTERS_PER_S = 500_000  # of its text, four times what the slowest honest ones need
BYTES_PER_S = 1 << 20  # read from the dump until the article is complete
MAX_MEMORY_BYTES = 4 << 30  # of address space
MAX_BYTES = 1 << 40  # of a whole dump; Wikipedia's largest has 100 GB
MIN_WORDS = 50  # as in gensim's own WikiCorpus


class DumpStream:
    """The dump's XML; raises ValueError when it decompresses to too many bytes."""

    def __init__(self, inner: IO[bytes], n_compressed: int):
        self.inner, self.n_read = inner, 0
        self.n_most = limits.max_inflated_bytes(n_compressed, MAX_BYTES)

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes."""
        chunk = self.inner.read(size)
        limits.extend_cpu_timer(len(chunk) / BYTES_PER_S)
        self.n_read += len(chunk)
        if self.n_read > self.n_most:
            raise ValueError("inflates past its bounds")
        return chunk


def main(path: Path) -> None:
    """Print every article; ended by SIGPROF if one takes too long."""
    limits.start_child()
    limits.limit_memory(MAX_MEMORY_BYTES)
    from gensim.corpora import wikicorpus

    limits.start_cpu_timer(ARTICLE_CPU_S)
    with open(path, "rb") as file:
        is_bzip2 = file.read(3) == b"BZh"
    with bz2.open(path) if is_bzip2 else open(path, "rb") as file:
        stream = DumpStream(file, path.stat().st_size)
        for title, text, _ in wikicorpus.extract_pages(stream, ("0",)):
            limits.extend_cpu_timer(len(text) / CHARACTERS_PER_S)
            cleaned = wikicorpus.filter_wiki(text)
            if not _is_left_out(title, cleaned, wikicorpus):
                print(json.dumps([title, cleaned]), flush=True)
            limits.start_cpu_timer(ARTICLE_CPU_S)


def _is_left_out(title: str, text: str, wikicorpus: ModuleType) -> bool:
    ignored = tuple(f"{name}:" for name in wikicorpus.IGNORED_NAMESPACES)
    is_short = len(wikicorpus.tokenize(text, 2, 15, True)) < MIN_WORDS
    return is_short or title.startswith(ignored)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
