"""What of an error may travel from where data is: messages of a form without data.

An error's message may quote data. It travels where its type and form say that it holds
none; else its type, and the last line of user code that it went through.
"""

import os
import re
import socket
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from fedray.user_code.running import (
    PREFIX,
    CodeLine,
    code_lines,
    is_raise,
    plain_names,
)

MAX_MESSAGE = 500  # characters

SIZES = r"[\[(]?[\d, x+]*[\])]?"
CALL = r"[\w.<>]+\(\)"
# messages without data, by type: the interpreter's and the frameworks' own, with names
# of types and parameters, sizes and shapes; a `word` has to stand in the user's code
WITHOUT_DATA: dict[str, tuple[str, ...]] = {
    "TypeError": (
        rf"{CALL} missing \d+ required [\w-]+ arguments?: [\w', ]+",
        rf"{CALL} takes [\w ]+ but \d+ (was|were) given",
        rf"{CALL} takes (no|exactly one) (keyword )?arguments?( \(\d+ given\))?",
        rf"{CALL} got (an unexpected keyword argument|multiple values for argument) "
        r"'(?P<word>\w+)'",
        r"'[\w.]+' object (is not|does not support) [\w ]+",
        r"object of type '[\w.]+' has no len\(\)",
        r"unsupported operand type\(s\) for [^ ]+: '[\w.]+' and '[\w.]+'",
    ),
    "AttributeError": (
        r"'[\w.]+' object has no attribute '(?P<word>\w+)'",
        r"(module|type object) '[\w.]+' has no attribute '(?P<word>\w+)'",
    ),
    "NameError": (r"name '(?P<word>\w+)' is not defined",),
    "UnboundLocalError": (r"cannot access local variable '\w+' where it is not .+",),
    "ZeroDivisionError": (r"(float |integer )?(division|modulo)( or modulo)? by zero",),
    "RecursionError": (r"maximum recursion depth exceeded[\w ]*",),
    "ValueError": (
        r"(assignment destination|output array) is read-only",
        r"(not enough|too many) values to unpack \(expected[ \w]* \d+(, got \d+)?\)",
        rf"operands could not be broadcast together with shapes( {SIZES})+ ?",
        r"Input \d+ of layer \"[\w-]+\" is incompatible with the layer: .+",
        rf"cannot reshape array of size \d+ into shape {SIZES}",
    ),
    "OutOfMemoryError": (r"CUDA out of memory\..+",),
    "_ArrayMemoryError": (r"Unable to allocate .+ for an array with shape .+",),
}
# of torch's own errors no number travels that is no size: it may be a label
TORCH_ERRORS = (RuntimeError, ValueError, IndexError, TypeError)
NUMBER = re.compile(
    r"(?P<size>[\[(][\d, x]*[\])]|\b\d+( ?x ?\d+)+|\b\d+-?D\b|[a-zA-Z_]\d+|"
    r"\b(sizes?|dimensions?|dims?|groups?|channels?|than|position) ?[=:]? ?\d+|"
    r"\b\d+ (values?|channels?|dimensions?|dims?|elements?)\b)|\d+(\.\d+)?"
)


class Failure(NamedTuple):
    """What of an error may travel: its type, perhaps its message, where it was."""

    kind: str
    message: str
    place: str

    def __str__(self) -> str:
        what = f"{self.kind}: {self.message}" if self.message else self.kind
        return f"{what} ({self.place})" if self.place else what


Paths = Sequence[tuple[str, str]]  # of a config, each with the folder that is not told


def describe(
    error: BaseException, is_reading: bool = False, node: str = "", paths: Paths = ()
) -> Failure:
    """What of an error may travel.

    is_reading : while samples are read, also messages that stand in the user's code are
        kept: it was written for these samples.
    node : Ray id of this node, which a missing package is told with.
    paths : that the config has, and that may be told.
    """
    lines = code_lines(error)
    last = last_step(error)
    is_own_raise = bool(lines) and lines[0].is_raise
    message, place = None, str(lines[0]) if lines else module_line(last)
    if is_own_raise:
        message = None if is_reading else lines[0].raised_text
    elif is_raised_by_fedray(last):
        message, place = str(error), str(lines[0]) if lines else ""
    elif isinstance(error, ImportError):
        message = _import_text(error, lines, node)
    elif isinstance(error, OSError):
        message = _file_text(error, lines, paths)
    else:
        message = _interpreter_text(error, lines)
        if message is None and not is_reading:
            message = _torch_text(error, last, bool(lines))
    message = " ".join(plain_names(message or "").split())
    return Failure(_type_name(error), message[:MAX_MESSAGE], place)


def last_step(error: BaseException) -> TracebackType | None:
    """The step of a traceback at which the error was made."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step


def is_raised_by_fedray(step: TracebackType | None) -> bool:
    """Whether a `raise` of fedray made the error: such messages hold no data."""
    is_own = module_line(step).startswith("fedray.")
    return step is not None and is_own and is_raise(step)


def module_line(step: TracebackType | None) -> str:
    """Module and line number of a step of a traceback."""
    if step is None:
        return ""
    return f"{step.tb_frame.f_globals.get('__name__', '?')}:{step.tb_lineno}"


def _type_name(error: BaseException) -> str:
    """Name of the error's type, or of its nearest base that a module defines."""
    for kind in type(error).__mro__:
        module = sys.modules.get(kind.__module__)
        if getattr(module, kind.__name__, None) is kind:
            return kind.__name__
    return "Exception"


def _import_text(error: ImportError, lines: list[CodeLine], node: str) -> str | None:
    """What cannot be imported; of a package that is missing on which node.

    A name that user code makes as it runs may come from the data.
    """
    if type(error) not in (ImportError, ModuleNotFoundError):
        return None
    code = "\n".join(line.text for line in lines)
    if _is_import_of_user_code(error) and not all(
        part in code for part in plain_names(error.name or "").split(".")
    ):
        return None
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError) and name:
        plain = plain_names(name)
        if plain != name:
            return f"no module {plain!r} lies beside the file that imports it"
        host = socket.gethostname()
        where = f"node {node[:8]} ({host})" if node else f"host {host}"
        top = plain.partition(".")[0]
        return (
            f"no module {plain!r} on {where}: install it there, or put {top}.py beside "
            "the file that imports it by a statement"
        )
    return re.sub(r" \((/.*|unknown location)\)$", "", str(error))


def _is_import_of_user_code(error: ImportError) -> bool:
    """Whether user code itself asked for the module, not a package that it uses."""
    names, step = [""], error.__traceback__
    while step is not None:
        names.append(step.tb_frame.f_globals.get("__name__") or "")
        step = step.tb_next
    own = ("importlib", "fedray.user_code.")
    return [name for name in names if not name.startswith(own)][-1].startswith(PREFIX)


def _file_text(error: OSError, lines: list[CodeLine], paths: Paths) -> str | None:
    """The system's text for an error, and the path as far as code and config name it.

    Names of files may come from the data: a patient's picture.
    """
    if error.errno is None or type(error).__module__ != "builtins":
        return None
    text, path = os.strerror(error.errno), error.filename
    if not isinstance(path, str):
        return text
    fitting = [one for one in paths if f"{path}/".startswith(f"{one[0]}/")]
    data, root = max(fitting, key=lambda one: len(one[0]), default=("", ""))
    code = "\n".join(line.text for line in lines)
    rest = path.removeprefix(data).split("/")
    shown = "/".join(part if part in code else "…" for part in rest)
    return f"{text}: {data.removeprefix(root)}{shown}"


def _torch_text(
    error: BaseException, last: TracebackType | None, is_in_user_code: bool
) -> str | None:
    """The first line of an error that torch made, of numbers only sizes and shapes."""
    is_by_torch = module_line(last).startswith("torch.")
    is_by_torch |= is_in_user_code and type(error) is RuntimeError
    text = (str(error).strip().splitlines() or [""])[0]
    if not is_by_torch or type(error) not in TORCH_ERRORS or "tensor(" in text:
        return None
    return NUMBER.sub(lambda match: match["size"] or "…", text)


def _interpreter_text(error: BaseException, lines: list[CodeLine]) -> str | None:
    """The message of an error whose form says that it holds no data."""
    try:
        text = (str(error).strip().splitlines() or [""])[0]
    except Exception:  # of a class of the user's
        return None
    code = "\n".join(line.text for line in lines)
    for form in WITHOUT_DATA.get(type(error).__name__, ()):
        if match := re.fullmatch(form, text):
            word = match.groupdict().get("word")
            return text if not word or re.search(rf"\b{word}\b", code) else None
    return None


def describe_here(error: BaseException) -> str:
    """As `describe`, with the message always: it stays in the caller's own process."""
    failure = describe(error)
    message = failure.message or plain_names(str(error))
    return str(failure._replace(message=message))
