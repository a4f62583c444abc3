"""20 Newsgroups data handler `20_newsgroup`: posts, or any text files in groups."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fedray.data import text_files
from fedray.data.text import Document, tokenize
from fedray.errors import DataError

LINE = 'objects {"text": ..., "group": ..., "tag": ...}, one a line'
HEADER = re.compile(r"[!-9;-~]+:|[ \t]")  # a field, or its continuation
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
    in no group, hidden files and documents without a word are left out.

    Raises
    ------
    DataError
        If it cannot be read, is hostile (see `fedray.data.text_files`), or two
        documents have one tag.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        if not (self.path.is_dir() or self.path.is_file()):
            needed = "a folder, zip, tar or .jsonl on the party's own node"
            raise DataError(path, "nothing there", needed)

    def get_data(self) -> Iterator[Document]:
        """Yield documents one by one."""
        return (
            self._read_jsonl() if text_files.is_jsonl(self.path) else self._read_files()
        )

    def _read_files(self) -> Iterator[Document]:
        for name, data in text_files.read_files(self.path):
            parts = PurePosixPath(name).parts
            if len(parts) >= 2:
                text = _subject_and_body(_decode(data))
                yield Document("/".join(parts[-2:]), tokenize(text), parts[-2])

    def _read_jsonl(self) -> Iterator[Document]:
        source = str(self.path)
        for name, value in text_files.read_objects(self.path, LINE):
            text = text_files.get_text(value, "text", name, source)
            if text is None:
                raise DataError(source, f"{name} without text", LINE)
            tag = text_files.get_text(value, "tag", name, source)
            if tag is None:
                data = text.encode("utf-8", "surrogatepass")
                tag = hashlib.sha256(data).hexdigest()[:16]
            group = text_files.get_text(value, "group", name, source)
            yield Document(tag, tokenize(text), group)


def _decode(data: bytes) -> str:
    """Text of UTF-8, or else of Latin-1, as posts of 1993 are, which never fails."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _subject_and_body(message: str) -> str:
    """Subject and body of a message; the whole text if it has no message header."""
    head, blank, body = message.replace("\r\n", "\n").partition("\n\n")
    is_header = (
        blank and FIELDS.search(head) and all(map(HEADER.match, head.split("\n")))
    )
    if not is_header:
        return message
    subject = SUBJECT.search(head)
    return f"{subject[1] if subject else ''}\n{body}"
