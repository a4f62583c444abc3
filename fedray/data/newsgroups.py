"""Newsgroup posts, or any texts in groups: the handler `20_newsgroup`."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fedray.data import archive, jsonl
from fedray.data.text import Document, words_of
from fedray.errors import DataError

LINE = 'objects {"text": ..., "group": ..., "tag": ...}, one a line'
HEADER = re.compile(r"[!-9;-~]+:|[ \t]")  # a field, or the rest of one
SUBJECT = re.compile(r"^subject:(.*)$", re.IGNORECASE | re.MULTILINE)
FIELDS = re.compile(r"^(from|subject|path|newsgroups|message-id):", re.I | re.M)


class Newsgroups:
    """Documents tagged ``group/file``, or as each line of a .jsonl says.

    Parameters
    ----------
    path : str
        A folder, a zip or a tar (also .gz, .bz2) with a file for each post in a
        folder for each group, as 20news has them, however deep: the last two parts of
        a path are group and file. Or lines of JSON (.jsonl), objects with `text`, and
        if there are any `group` and `tag`; without a tag the text's own hash is one.

    Of a message its subject and its body are read, not the rest of its header. Files
    that lie in no group, hidden files and what has no word are left out.

    Raises
    ------
    DataError
        If it cannot be read, is hostile (see `fedray.data.archive`), or two documents
        have one tag.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        if not (self.path.is_dir() or self.path.is_file()):
            needed = "a folder, zip, tar or .jsonl on the party's own node"
            raise DataError(path, "nothing there", needed)

    def get_data(self) -> Iterator[Document]:
        """Give documents one by one."""
        if jsonl.are_in(self.path):
            return self._lines()
        return self._files()

    def _files(self) -> Iterator[Document]:
        for name, data in archive.files(self.path):
            parts = PurePosixPath(name).parts
            if len(parts) >= 2:
                tag = "/".join(parts[-2:])
                yield Document(tag, words_of(_body(_decoded(data))), parts[-2])

    def _lines(self) -> Iterator[Document]:
        source = str(self.path)
        for who, value in jsonl.objects(self.path, LINE):
            text = jsonl.text_of(value, "text", who, source)
            if text is None:
                raise DataError(source, f"{who} without text", LINE)
            tag = jsonl.text_of(value, "tag", who, source)
            if tag is None:
                data = text.encode("utf-8", "surrogatepass")
                tag = hashlib.sha256(data).hexdigest()[:16]
            group = jsonl.text_of(value, "group", who, source)
            yield Document(tag, words_of(text), group)


def _decoded(data: bytes) -> str:
    """UTF-8, or what posts of 1993 are in, where every byte means something."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _body(message: str) -> str:
    """Subject and body of a message; all of a text that is none."""
    head, blank, body = message.replace("\r\n", "\n").partition("\n\n")
    is_head = blank and FIELDS.search(head) and all(map(HEADER.match, head.split("\n")))
    if not is_head:
        return message
    subject = SUBJECT.search(head)
    return f"{subject[1] if subject else ''}\n{body}"
