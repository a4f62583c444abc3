"""Runs user code as modules of their own, and finds its lines in tracebacks."""

import ast
import builtins
import importlib.machinery
import io
import opcode
import re
import sys
import tokenize
import types
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader, MetaPathFinder
from pathlib import Path
from typing import Any

from fedray.user_code.live import LiveObject
from fedray.user_code.reading import Source

PREFIX = "fedray_code_"  # of the package that the modules of one run are in
PLAIN_TEXT = re.compile(r"""[rbuRBU]*(['"])[\w./-]{0,24}\1""")  # names of something
MAX_LINE = 120  # characters of a line of code in a message


def run(source: Source) -> Any:
    """Run the file as a module of its own and return the attribute.

    Files that it imports become modules beside it, which no other code sees: two files
    of one name do not mix. All stay in `sys.modules`, where dataclasses and pickle look
    for them. Exceptions of the code are passed on. An object that was given as it is
    is unpickled instead.
    """
    if isinstance(source, LiveObject):
        return source.load()
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    package = f"{PREFIX}{uuid.uuid4().hex}"
    _FINDER.loaders |= _loaders(package, source)
    try:
        module = importlib.import_module(f"{package}.{source.module}")
        return getattr(module, source.attribute)
    except BaseException:
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]
        raise


class _Finder(MetaPathFinder):
    """Finds the modules of user code that was run, by their full names."""

    def __init__(self) -> None:
        self.loaders: dict[str, _Loader] = {}

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module of user code; None for all others."""
        loader = self.loaders.get(fullname)
        if loader is None:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, loader, origin=loader.file, is_package=loader.is_folder
        )


class _Loader(InspectLoader):
    """Runs one file of user code as a module.

    file : where it was read; label : what messages call it.
    is_folder : whether other modules are in it.
    names : builtins of the module, with its own `__import__`.
    """

    def __init__(self, file: str, text: str, label: str, names: Mapping[str, Any]):
        self.file, self.text, self.label, self.names = file, text, label, names
        self.is_folder = Path(label).name == "__init__.py"

    def get_source(self, fullname: str) -> str:
        """The file's text, from which tracebacks take their lines."""
        return self.text

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the file."""
        module.__file__ = self.file
        module.__dict__["__builtins__"] = dict(self.names)
        code = compile(self.text, self.file, "exec", dont_inherit=True)
        exec(code, module.__dict__)


_FINDER = _Finder()


def _loaders(package: str, source: Source) -> dict[str, _Loader]:
    """Loaders of a file, its imports and the folders that they are in, by module."""
    root = Path(source.file).parent
    names = {**vars(builtins), "__import__": _importer(package, source)}
    loaders = {
        one.module: _Loader(
            str(root / source.path_of(one)), one.text, source.path_of(one), names
        )
        for one in source.imports
    }
    label = Path(source.file).name
    loaders[source.module] = _Loader(source.file, source.text, label, names)
    for name in list(loaders):
        while name:
            name = name.rpartition(".")[0]
            if name not in loaders:
                loaders[name] = _Loader(str(root), "", label, names)
            loaders[name].is_folder = True
    return {f"{package}.{n}".rstrip("."): loader for n, loader in loaders.items()}


def _importer(package: str, source: Source) -> Any:
    """The `__import__` of user code: modules beside it go before installed ones."""
    modules = [source.module, *(one.module for one in source.imports)]
    beside = {name.partition(".")[0] for name in modules}

    def import_module(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        first = name.partition(".")[0]
        if level or first not in beside:
            return __import__(name, globals, locals, fromlist or (), level)
        module = __import__(f"{package}.{name}", globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{package}.{first}"]

    return import_module


@dataclass(frozen=True)
class CodeLine:
    """A line of user code that an error went through.

    file : as messages call it; text : of the whole file.
    is_raise : whether a `raise` in this line made the error.
    """

    file: str
    number: int
    text: str
    is_raise: bool

    @property
    def raised_text(self) -> str:
        """The text of a `raise` that has nothing but a text; else empty."""
        for node in ast.walk(ast.parse(self.text)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                last = node.end_lineno or node.lineno
                texts = [getattr(word, "value", None) for word in node.exc.args]
                is_text = len(texts) == 1 and isinstance(texts[0], str)
                if is_text and node.lineno <= self.number <= last:
                    return str(texts[0])
        return ""

    def __str__(self) -> str:
        """``mine.py:3: `self.file = np.load(path)` ``."""
        line = self.text.splitlines()[self.number - 1].strip()
        return f"{self.file}:{self.number}: `{_without_quotes(line)[:MAX_LINE]}`"


def is_raise(step: types.TracebackType) -> bool:
    """Whether a step of a traceback is at a `raise`, not at a call that failed."""
    instruction = step.tb_frame.f_code.co_code[step.tb_lasti]
    return opcode.opname[instruction] == "RAISE_VARARGS"


def code_lines(error: BaseException) -> list[CodeLine]:
    """Lines of user code that an error went through, the last one first."""
    lines, step = [], error.__traceback__
    while step is not None:
        frame = step.tb_frame
        loader = getattr(frame.f_globals.get("__spec__"), "loader", None)
        if isinstance(loader, _Loader):
            is_made = step.tb_next is None and is_raise(step)
            lines.append(CodeLine(loader.label, step.tb_lineno, loader.text, is_made))
        step = step.tb_next
    return lines[::-1]


def plain_names(text: str) -> str:
    """A message with the user's own names of modules instead of those of `run`."""
    return re.sub(rf"{PREFIX}[0-9a-f]{{32}}\.?", "", text)


def _without_quotes(line: str) -> str:
    """A line of code without comments, and with … for strings that are no names.

    Code may quote data.
    """
    parts, end = [], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            if token.type == tokenize.COMMENT or token.start[0] > 1:
                break
            is_quote = token.type == tokenize.STRING
            is_quote &= not PLAIN_TEXT.fullmatch(token.string)
            is_quote |= tokenize.tok_name[token.type] == "FSTRING_MIDDLE"
            text = "'…'" if is_quote else token.string
            parts.append(line[end : token.start[1]] + text)
            end = token.end[1]
    except (tokenize.TokenError, SyntaxError):
        pass  # the line is a part of a longer statement
    return "".join(parts).strip()
