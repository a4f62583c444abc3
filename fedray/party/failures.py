"""Failures of a party: what of an error may travel, and the private files of the rest.

An error's message may quote data. It travels where its type and form say that it holds
none; else its type, and the last line of user code that it went through. The whole
error is kept on the party's node, and so is what user code prints or warns.
"""

import contextlib
import io
import logging
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from fedray import user_code
from fedray.config import ERRORS_LOG, FederationConfig
from fedray.errors import PartyError

LOG = logging.getLogger("fedray")
OUTPUT_LOG = "output.log"
READING = "reading"  # the stage in which nothing but samples is handled
MAX_LOG = 4 << 20  # bytes of a file; then it is begun anew, and one old file is kept
MAX_ENTRY = 64 << 10  # characters
MAX_MESSAGE = 500  # characters of what travels

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
    "RuntimeError": (
        r"mat1 and mat2 shapes cannot be multiplied \(\d+x\d+ and \d+x\d+\)",
        rf"shape '{SIZES}' is invalid for input of size \d+",
        r"The size of tensor a \(\d+\) must match the size of tensor b \(\d+\) at .+",
        rf"Given groups=\d+, weight of size {SIZES}, expected input{SIZES} to have .+",
        rf"Expected \d\w.* input to conv\w+, but got input of size: {SIZES}",
        r"mat1 and mat2 must have the same dtype, but got \w+ and \w+",
        r"Expected all tensors to be on the same device, .+",
        r"element 0 of tensors does not require grad and does not have a grad_fn",
    ),
    "ValueError": (
        r"Expected more than 1 value per channel when training, got input size .+",
        rf"operands could not be broadcast together with shapes( {SIZES})+ ?",
        rf"cannot reshape array of size \d+ into shape {SIZES}",
    ),
    "OutOfMemoryError": (r"CUDA out of memory\..+",),
    "_ArrayMemoryError": (r"Unable to allocate .+ for an array with shape .+",),
}


class Plan(Protocol):
    """Whose failures they are: an actor's name, its run and its config."""

    @property
    def name(self) -> str: ...

    @property
    def run(self) -> str: ...

    @property
    def config(self) -> FederationConfig: ...


class Failure(NamedTuple):
    """What of an error may travel: its type, perhaps its message, where it was."""

    kind: str
    message: str
    place: str


@contextlib.contextmanager
def sanitize_errors(plan: Plan, stage: str, node: str = "") -> Iterator[None]:
    """Turn any error into a PartyError without samples; keep the rest on this node.

    What is printed or warned meanwhile goes to a file of this node, too: Ray's logs
    are for all who may see the cluster.

    node : Ray id of this node.
    """
    try:
        output = _Output(plan.config.party_folder)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    except PartyError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_by_user(error):
            raise  # Ray ends or cancels a call
        failure = describe(error, plan.config, stage == READING, node)
        log = _keep(error, plan, stage)
        party_error = PartyError(plan.name, stage, *failure, log)
        LOG.error("%s", party_error.summary)
        raise party_error from None


def describe(
    error: BaseException, config: FederationConfig, is_reading: bool, node: str
) -> Failure:
    """What of an error may travel.

    is_reading : while samples are read, also messages that stand in the user's code are
        kept: it was written for these samples.
    node : Ray id of this node, which a missing package is told with.
    """
    lines = user_code.code_lines(error)
    last = _last_step(error)
    is_raise = bool(lines) and lines[0].is_raise
    message, place = None, str(lines[0]) if lines else _module_line(last)
    if is_raise:
        message = None if is_reading else lines[0].raised_text
    elif _is_raised_by_fedray(last):
        message, place = str(error), str(lines[0]) if lines else ""
    elif isinstance(error, ImportError):
        message = _import_text(error, node)
    elif isinstance(error, OSError):
        message = _file_text(error, config, lines)
    else:
        message = _interpreter_text(error, lines)
    message = " ".join(user_code.plain_names(message or "").split())
    return Failure(_type_name(error), message[:MAX_MESSAGE], place)


def _last_step(error: BaseException) -> TracebackType | None:
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step


def _is_by_user(error: BaseException) -> bool:
    """Whether user code ends its process or raises what no other code catches."""
    if isinstance(error, KeyboardInterrupt):
        return False
    is_ray = _module_line(_last_step(error)).startswith("ray.")
    return bool(user_code.code_lines(error)) and not is_ray


def _is_raised_by_fedray(step: TracebackType | None) -> bool:
    """Whether a `raise` of fedray made the error: such messages hold no data."""
    is_own = _module_line(step).startswith("fedray.")
    return step is not None and is_own and user_code.is_raise(step)


def _module_line(step: TracebackType | None) -> str:
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


def _import_text(error: ImportError, node: str) -> str | None:
    """What cannot be imported; of a package that is missing on which node."""
    if type(error) not in (ImportError, ModuleNotFoundError):
        return None
    name = error.name or ""
    if isinstance(error, ModuleNotFoundError) and name:
        plain = user_code.plain_names(name)
        if plain != name:
            return f"no module {plain!r} lies beside the file that imports it"
        where = f"node {node[:8]} ({socket.gethostname()})" if node else "this node"
        top = plain.partition(".")[0]
        return (
            f"no module {plain!r} on {where}: install it there, or put {top}.py beside "
            "the file that imports it by a statement"
        )
    return re.sub(r" \((/.*|unknown location)\)$", "", str(error))


def _file_text(
    error: OSError, config: FederationConfig, lines: list[user_code.CodeLine]
) -> str | None:
    """The system's text for an error, and the path as far as code and config name it.

    Names of files may come from the data: a patient's picture.
    """
    if error.errno is None or type(error).__module__ != "builtins":
        return None
    text, path = os.strerror(error.errno), error.filename
    if not isinstance(path, str):
        return text
    known = [(party.data, party.data_root or "") for party in config.parties]
    sources = config.test_data, config.partition and config.partition.source
    known += [(source, "") for source in sources if source]
    fitting = [one for one in known if f"{path}/".startswith(f"{one[0]}/")]
    data, root = max(fitting, key=lambda one: len(one[0]), default=("", ""))
    code = "\n".join(line.text for line in lines)
    rest = path.removeprefix(data).split("/")
    shown = "/".join(part if part in code else "…" for part in rest)
    return f"{text}: {data.removeprefix(root)}{shown}"


def _interpreter_text(
    error: BaseException, lines: list[user_code.CodeLine]
) -> str | None:
    """The message of an error whose form says that it holds no data."""
    try:
        text = str(error).strip()
    except Exception:  # of a class of the user's
        return None
    code = "\n".join(line.text for line in lines)
    for form in WITHOUT_DATA.get(type(error).__name__, ()):
        found = re.fullmatch(form, text, re.DOTALL)
        if found:
            word = found.groupdict().get("word")
            return text if not word or re.search(rf"\b{word}\b", code) else None
    return None


def _keep(error: BaseException, plan: Plan, stage: str) -> str:
    """Write the whole error to this node's errors.log; the file, or why it was not."""
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    text = "".join(traceback.format_exception(error))
    if len(text) > MAX_ENTRY:
        text = f"{text[: MAX_ENTRY // 2]}\n[…]\n{text[-MAX_ENTRY // 2 :]}"
    entry = f"{when} run {plan.run or '-'}, party {plan.name}, {stage}\n{text}\n"
    return append(plan.config.party_folder, ERRORS_LOG, entry)


def append(folder: Path | None, name: str, text: str) -> str:
    """Add text to a file that only its owner can read; its path, empty on an error."""
    if folder is None:
        return ""
    file = folder / name
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > MAX_LOG:
            file.replace(file.with_suffix(".old"))
        handle = os.open(file, flags, 0o600)
        try:
            os.fchmod(handle, 0o600)
            os.write(handle, text.encode("utf-8", "backslashreplace"))
        finally:
            os.close(handle)
    except OSError:
        return ""
    return str(file)


class _Output(io.TextIOBase):
    """A text stream that adds to `OUTPUT_LOG` in a folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Add text."""
        append(self.folder, OUTPUT_LOG, text)
        return len(text)
