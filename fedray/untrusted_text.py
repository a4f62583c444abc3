"""Text from outside: what is dangerous in it, where, and what is done about it.

Every script, joiner and kind of space is text and stays. What a terminal obeys, what
turns the words around it about and what no file can hold is written as an escape where
it is shown (`escape`, `Terminal`), and refused in a name that becomes a path
(`name_problem`).
"""

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

from fedray.errors import OutputError

# control characters, separators of lines, the nine characters that override the
# direction of others (as in Boucher and Anderson 2021, arXiv:2111.00169), and halves of
# surrogate pairs, which have no UTF-8
HARMFUL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
CLEAR_LINE = "\r\x1b[K"
LINE_UP = "\x1b[A\r\x1b[K"  # to the line above, which is cleared
PASSED = (CLEAR_LINE, LINE_UP)  # the control sequences that a `Terminal` passes on
NO_PATH = frozenset("/\\:")  # in a name: it becomes part of paths and of actor names
MAX_NAME = 64  # characters
MAX_NAME_BYTES = 200  # in UTF-8: with prefix and suffix a file system takes 255


def is_harmless(text: str) -> bool:
    """Whether text can be shown as it is, on one line."""
    return HARMFUL.search(text) is None


def escape(text: str) -> str:
    """Text with harmful characters written as in JSON: \\u202e; lines and tabs stay."""
    return HARMFUL.sub(lambda m: m[0] if m[0] in "\n\t" else _number(m[0]), text)


def escape_line(text: str) -> str:
    """The same for a part of one line: line ends and tabs are escapes too."""
    return HARMFUL.sub(lambda m: _number(m[0]), text)


def _number(character: str) -> str:
    return f"\\u{ord(character):04x}"


def is_word(text: str) -> bool:
    """Whether text can be one word of a vocabulary: no blank, line end or the like."""
    return " " not in text and is_harmless(text)


def name_problem(name: str) -> str:
    """Why a text cannot name a run, party or group; empty if it can."""
    if not name:
        return "it is empty"
    if len(name) > MAX_NAME or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME} characters or {MAX_NAME_BYTES} bytes"
    wrong = next((c for c in name if c in NO_PATH or not is_harmless(c)), None)
    if wrong is not None:
        return f"it has {_describe(wrong)} in it, and names become part of paths"
    if name[0] in ".-" or name != name.strip():
        return "it begins with a dot or hyphen, or with a space, or ends with one"
    if not any(map(str.isprintable, name.replace(" ", ""))):
        return "nothing of it can be seen"
    return ""


def _describe(character: str) -> str:
    return repr(character) if character.isprintable() else f"U+{ord(character):04X}"


def same_name(name: str) -> str:
    """A name as people see it: composed, without characters that take no space."""
    composed = unicodedata.normalize("NFC", name)
    return "".join(c for c in composed if unicodedata.category(c) != "Cf")


def decode_name(name: str) -> str:
    """A file's name as text: of UTF-8, or else of Latin-1, as older systems have it."""
    try:
        data = name.encode("utf-8", "surrogateescape")
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
    except UnicodeEncodeError:  # half of a pair that no byte stands for
        return name


def encodable(text: str) -> str:
    """Text that has UTF-8: halves of surrogate pairs are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def name_of_file(stem: str) -> str:
    """A name for what a file describes, as near to the file's own as a name may be.

    Letters of all scripts stay, so that two files are two names; what is not of letters
    and digits in ASCII becomes a hyphen.
    """
    text = unicodedata.normalize("NFC", decode_name(stem))
    plain = "".join(c if _may_stand_in_name(c) else "-" for c in text)
    plain = plain.lstrip("._-")[:MAX_NAME]
    while len(plain.encode()) > MAX_NAME_BYTES:
        plain = plain[:-1]
    return plain


def _may_stand_in_name(character: str) -> bool:
    if character.isascii():
        return character.isalnum() or character in "._-"
    return is_harmless(character) and not character.isspace()


def cut_to_width(line: str, width: int) -> str:
    """The start of a line that takes no more columns; wide characters take two."""
    line, n_columns = escape(line), 0
    for i, character in enumerate(line):
        is_wide = unicodedata.east_asian_width(character) in "WF"
        n_columns += 0 if unicodedata.combining(character) else 1 + is_wide
        if n_columns > width:
            return line[:i]
    return line


class Terminal:
    """A stream for people: harmful and unknown characters are written as escapes.

    Parameters
    ----------
    stream : may be None or closed: then nothing is written.
    may_fail : nothing is raised where the stream cannot be written: for messages, which
        have nowhere else to go.

    Raises
    ------
    OutputError, BrokenPipeError
        Once, if the stream cannot be written; what follows goes nowhere.
    """

    def __init__(self, stream: "TextIO | Terminal | None", may_fail: bool = False):
        # not None, since others ask for its number
        self.stream = open(os.devnull, "w") if stream is None else stream
        self.may_fail = may_fail
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        """Whether the stream is a terminal's."""
        with contextlib.suppress(ValueError):  # it is closed
            return self.stream.isatty()
        return False

    def write(self, text: str) -> int:
        """Write text; `CLEAR_LINE` by itself clears the line, as `LINE_UP` does."""
        with self._output():
            self.stream.write(text if text in PASSED else escape(text))
        return len(text)

    def flush(self) -> None:
        """Hand over to the system what was written."""
        with self._output():
            self.stream.flush()

    @contextlib.contextmanager
    def _output(self) -> Iterator[None]:
        try:
            yield
        except ValueError:
            if not getattr(self.stream, "closed", False):
                raise
        except OSError as error:
            self._discard_rest()
            if isinstance(error, BrokenPipeError) and not self.may_fail:
                raise
            if not self.may_fail:
                raise OutputError(str(error.strerror)) from None

    def _discard_rest(self) -> None:
        """Send what is still in Python's buffer nowhere, or its exit would fail too."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
