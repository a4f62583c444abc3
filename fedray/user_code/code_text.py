"""The text of a class or function of this process, to tell whether it has changed.

With the classes and functions of the user's own that it uses, and plain values of
global names. What is installed counts by its name.
"""

import functools
import inspect
import os
import site
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OWN_FOLDER = Path(__file__).parents[2]  # from which fedray is imported
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def code_text(thing: Any) -> str:
    """The text of the code that a class, function or partial is made of."""
    texts: dict[int, str] = {}
    _collect(thing, texts)
    return "\n".join(texts.values())


def own_modules() -> list[types.ModuleType]:
    """Imported modules that another process may not find: beside a script or notebook.

    They lie in a folder of `sys.path` that no installation has put there.
    """
    folders = _own_folders()
    return [module for module in [*sys.modules.values()] if _is_in(module, folders)]


def is_own(module_name: str | None) -> bool:
    """Whether a module is the user's own: a notebook, a script, or a file beside it."""
    module = sys.modules.get(module_name or "")
    is_main = module_name == "__main__" or module is None
    return is_main or _is_in(module, _own_folders())


def _is_in(module: types.ModuleType | None, folders: set[str]) -> bool:
    """Whether a module of Python code lies in one of these folders, or below."""
    file = getattr(module, "__file__", None)
    name = getattr(module, "__name__", None)
    if not isinstance(file, str) or not isinstance(name, str) or name == "__main__":
        return False
    root = os.path.dirname(file)
    is_package = os.path.basename(file) == "__init__.py"
    for _ in range(name.count(".") + is_package):
        root = os.path.dirname(root)
    return file.endswith(".py") and root in folders


def _own_folders() -> set[str]:
    folders = {os.path.abspath(entry) for entry in sys.path}
    return {one for one in folders if not _is_installed(one)}


@functools.cache
def _is_installed(folder: str) -> bool:
    """Whether an entry of `sys.path` is of Python, a package's or fedray's own."""
    path = Path(folder).resolve()
    return path == OWN_FOLDER or any(
        path == one or one in path.parents for one in _installed_folders()
    )


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    """Folders of the standard library and of packages; those that .pth files name."""
    names = "stdlib", "platstdlib", "purelib", "platlib"
    folders = {sysconfig.get_path(name) for name in names}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    for folder in list(folders):
        for file in Path(folder).glob("*.pth"):
            lines = file.read_text("utf-8", "replace").splitlines()
            folders |= {line.strip() for line in lines if Path(line.strip()).is_dir()}
    return tuple(Path(folder).resolve() for folder in folders if folder)


def _collect(thing: Any, texts: dict[int, str]) -> None:
    if id(thing) in texts:
        return
    if isinstance(thing, functools.partial):
        texts[id(thing)] = f"{thing.args!r} {sorted(thing.keywords.items())!r}"
        _collect(thing.func, texts)
    elif isinstance(thing, types.MethodType):
        _collect(thing.__func__, texts)
    elif isinstance(thing, type):
        _collect_class(thing, texts)
    elif isinstance(thing, types.FunctionType):
        _collect_function(thing, texts)
    elif isinstance(thing, PLAIN):
        texts[id(thing)] = repr(thing)


def _collect_class(kind: type, texts: dict[int, str]) -> None:
    if not is_own(kind.__module__):
        texts[id(kind)] = f"{kind.__module__}.{kind.__qualname__}"
        return
    texts[id(kind)] = _source(kind) or kind.__qualname__
    for part in (*kind.__bases__, *vars(kind).values()):
        part = getattr(part, "__func__", None) or getattr(part, "fget", None) or part
        _collect(part, texts)


def _collect_function(function: types.FunctionType, texts: dict[int, str]) -> None:
    if not is_own(function.__module__):
        texts[id(function)] = f"{function.__module__}.{function.__qualname__}"
        return
    code = function.__code__
    texts[id(function)] = _source(function) or repr(list(_instructions(code)))
    for name in _global_names(code):
        if name in function.__globals__:
            value = function.__globals__[name]
            if isinstance(value, PLAIN):
                texts[id(value)] = f"{name} = {value!r}"
            elif not isinstance(value, types.ModuleType):
                _collect(value, texts)
    for cell in function.__closure__ or ():
        _collect(cell.cell_contents, texts)
    for default in function.__defaults__ or ():
        _collect(default, texts)


def _source(thing: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return ""


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _instructions(code: types.CodeType) -> Iterator[Any]:
    """What a function without a source does: code, names, constants."""
    yield code.co_code.hex()
    yield code.co_names
    for constant in code.co_consts:
        is_code = isinstance(constant, types.CodeType)
        yield from _instructions(constant) if is_code else [repr(constant)]
