"""20 Newsgroups data handler `20_newsgroup`: posts, or any text files in groups."""

import contextlib
import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import Path, PurePosixPath

from fedray.data import text_files
from fedray.data.text import Document, tokenize
from fedray.errors import DataError

# bytes that texts hardly have: nearly half of UTF-16's, a tenth of a picture's
CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
MAX_CONTROLS = 0.05  # share of a text
LINE = 'objects {"text": ..., "group": ..., "tag": ...}, one a line'
HEADER = re.compile(r"[!-9;-~]+:|[ \t]")  # a field, or its continuation
SUBJECT = re.compile(r"^subject:(.*)(\n[ \t].*)*$", re.IGNORECASE | re.MULTILINE)
FIELDS = re.compile(r"^(from|subject|path|newsgroups|message-id):", re.I | re.M)
MIME = re.compile(r"^(mime-version|content-(type|transfer-encoding)):", re.I | re.M)
RAW = ("", "7bit", "8bit", "binary")  # transfer encodings that change nothing
UNRELIABLE = ("us-ascii", "ascii", "utf-8", "iso-8859-1", "latin-1")  # charsets
HIDDEN = re.compile(r"<(/?)(?:script|style)\b[^<>]*>", re.IGNORECASE)
TAG = re.compile(r"<[^<>]*>")


class Newsgroups:
    """Documents tagged ``group/file``, or as each line of a .jsonl says.

    Parameters
    ----------
    path : str
        A folder, a zip or a tar (also .gz, .bz2) with a file for each post in a
        folder for each group, as 20news has them, however deep: the last two parts of
        a path are group and file. Or lines of JSON (.jsonl), objects with `text`, and
        if there are any `group` and `tag`; without a tag the text's own hash is one,
        with a number if there are several of that text.

    Of a message its subject and its body are read, not the rest of its header; of a
    mail of parts (MIME) the first text, decoded. Files in no group, hidden files and
    documents without a word are left out.

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
                words = tokenize(self._read_post(name, data))
                yield Document("/".join(parts[-2:]), words, parts[-2])

    def _read_post(self, name: str, data: bytes) -> str:
        """What is read of one file.

        Raises
        ------
        DataError
            If it is no text, or a mail nested too deep.
        """
        encoding = text_files.marked_encoding(data)
        if encoding:
            data = data.decode(encoding, "replace").encode("utf-8", "replace")
        n_controls = len(data) - len(data.translate(None, CONTROLS))
        if n_controls > len(data) * MAX_CONTROLS:
            got = f"{name[-80:]!r}, which is no text, or UTF-16 without a mark"
            raise DataError(str(self.path), got, "text files, in UTF-8 or Latin-1")
        try:
            return _subject_and_body(data, _decode(data))
        except RecursionError:
            got = f"{name[-80:]!r}, a mail of parts within parts without end"
            raise DataError(str(self.path), got, "mails of a few parts") from None

    def _read_jsonl(self) -> Iterator[Document]:
        source, n_alike = str(self.path), Counter[str]()
        for name, value in text_files.read_objects(self.path, LINE):
            text = text_files.get_text(value, "text", name, source)
            if text is None:
                raise DataError(source, f"{name} without text", LINE)
            tag = text_files.get_text(value, "tag", name, source)
            if tag is None:
                data = text.encode("utf-8", "surrogatepass")
                tag = hashlib.sha256(data).hexdigest()[:16]
                n_alike[tag] += 1
                tag += f"-{n_alike[tag]}" if n_alike[tag] > 1 else ""
            group = text_files.get_text(value, "group", name, source)
            yield Document(tag, tokenize(text), group)


def _subject_and_body(data: bytes, text: str) -> str:
    """Subject and body of a message; the whole text if it has no message header.

    data : the message's bytes; text : the same, decoded.
    """
    head, blank, body = text.replace("\r\n", "\n").partition("\n\n")
    is_mail = MIME.search(head) is not None
    header = head.partition("\n")[2] if is_mail and head.startswith("From ") else head
    is_header = (
        blank and FIELDS.search(head) and all(map(HEADER.match, header.split("\n")))
    )
    if not is_header:
        return text
    return f"{_subject(head)}\n{_first_text(data) if is_mail else body}"


def _subject(head: str) -> str:
    subject = SUBJECT.search(head)
    if subject is None or "=?" not in subject[0]:
        return subject[1] if subject else ""
    try:  # words in other letters than ASCII are encoded, as in =?utf-8?b?...?=
        return str(make_header(decode_header(subject[0][len("subject:") :])))
    except (ValueError, LookupError, HeaderParseError):
        return subject[1]


def _first_text(data: bytes) -> str:
    """The first plain text of a mail's parts, or else the first HTML; decoded."""
    mail = message_from_bytes(data)
    texts = [
        part
        for part in mail.walk()
        if part.get_content_maintype() == "text"
        and part.get_content_disposition() != "attachment"
    ]
    plain = [part for part in texts if part.get_content_subtype() == "plain"]
    is_raw = str(mail.get("Content-Transfer-Encoding", "")).strip().lower() in RAW
    if not texts and (mail.is_multipart() or not is_raw):
        return ""  # a picture, say
    part = (plain or texts or [mail])[0]
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""  # what has parts has no text
    text = _decode(data, part.get_content_charset())
    return _without_tags(text) if part.get_content_subtype() == "html" else text


def _decode(data: bytes, charset: str | None = None) -> str:
    """Text of `charset`; without one UTF-8, or else Latin-1, which never fails.

    Posts of 1993 name no charset, or one that they do not keep to.
    """
    if charset and charset.lower() not in UNRELIABLE:
        with contextlib.suppress(LookupError, ValueError):
            return data.decode(charset)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _without_tags(markup: str) -> str:
    pieces = HIDDEN.split(markup)  # text, slash, name of the tag, text, ...
    shown = [pieces[0]]
    for slash, text in zip(pieces[1::2], pieces[2::2], strict=True):
        shown += [text] if slash else []
    return html.unescape(TAG.sub(" ", " ".join(shown)))
