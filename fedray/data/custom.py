"""Data handlers that a user writes: ``path/to/file.py:ClassName``.

The driver reads the file as text and never runs it; a party runs that text.
"""

import ast
import sys
import types
import uuid
from dataclasses import dataclass
from pathlib import Path

from fedray.data.base import Handler
from fedray.errors import DataError

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class HandlerSource:
    """A handler as it travels to a party: its name, and its code if it is custom."""

    name: str
    code: str | None = None  # None: a name of HANDLERS


def is_custom(data_handler: str) -> bool:
    """Tell a file from a name."""
    return ".py:" in data_handler or data_handler.endswith(".py")


def read_custom(data_handler: str) -> tuple[str, list[str]]:
    """Read the code of ``file.py:ClassName``, and say what is wrong with it."""
    file, class_name = _parted(data_handler)
    who = f"data_handler {file}"
    try:
        code = _read_text(Path(file))
        classes = _classes(code, file)
    except UnicodeDecodeError:
        return "", [f"{who} is not UTF-8 text"]
    except SyntaxError as error:
        return "", [f"{who} line {error.lineno or 1}: {error.msg}"]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return "", [f"cannot read {who}: {getattr(error, 'strerror', None) or error}"]
    if class_name not in classes:
        there = f"it has {sorted(classes)}" if classes else "it has none"
        wanted = f"class {class_name!r}" if class_name else "class given"
        return code, [f"no {wanted} in {who}: {there}; write {file}:ClassName"]
    if not _may_have("get_data", class_name, classes):
        return code, [f"class {class_name} of {who} has no get_data()"]
    return code, []


def make_custom(source: HandlerSource, path: str) -> Handler:
    """Run the code in a module of its own and make the handler. Only in a party.

    The module stays in `sys.modules`, where dataclasses and pickle look for it.

    Raises
    ------
    DataError
        If there is no such class with get_data(). What the code raises stays so.
    """
    file, class_name = _parted(source.name)
    module = types.ModuleType(f"fedray_custom_{uuid.uuid4().hex}")
    module.__file__ = file
    sys.modules[module.__name__] = module
    try:
        exec(compile(source.code, file, "exec", dont_inherit=True), module.__dict__)
        handler_class = getattr(module, class_name, None)
        if not callable(getattr(handler_class, "get_data", None)):
            needed = f"a class {class_name} that has get_data()"
            raise DataError(source.name, "code that makes another one", needed)
        return handler_class(path)
    except BaseException:
        del sys.modules[module.__name__]
        raise


def _parted(data_handler: str) -> tuple[str, str]:
    file, dot_py, class_name = data_handler.rpartition(".py:")
    return (f"{file}.py", class_name) if dot_py else (data_handler, "")


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise ValueError("no file there")
    with open(file, "rb") as opened:
        data = opened.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    return data.decode("utf-8-sig")


def _classes(code: str, file: str) -> dict[str, ast.ClassDef]:
    body = ast.parse(code, file).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _may_have(method: str, name: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Look through a class and its bases; one from another file may have anything."""
    seen, todo = {"object"}, [name]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in classes or method in _names(classes[name]):
            return True
        todo += [ast.unparse(base) for base in classes[name].bases]
    return False


def _names(node: ast.AST) -> set[str | None]:
    found = ast.walk(node)
    return {getattr(item, "name", getattr(item, "id", None)) for item in found}
