"""Code that the operator names as ``path/to/file.py:attribute``.

It is read as text where the config lies and run only where it is used, so that a
party's node needs no copy of the file. Whoever may name it may run code: no stranger.
"""

import ast
import sys
import types
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError

MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """Text of a Python file, and the name of a class or function in it."""

    file: str
    attribute: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.attribute}"


def is_source(spec: str) -> bool:
    """Tell ``file.py:attribute`` from a name of fedray's own."""
    return ".py:" in spec or spec.endswith(".py")


def read(spec: str, what: str) -> Source:
    """Read ``file.py:attribute`` without running it; `what` is the config key.

    Raises
    ------
    ConfigError
        If there is no such file, it is not Python, or defines no such attribute.
    """
    before, dot_py, attribute = spec.rpartition(".py:")
    file = f"{before}.py" if dot_py else spec
    try:
        source = Source(file, attribute, _text(Path(file)))
        defined = definitions(source)
    except UnicodeDecodeError:
        raise ConfigError([f"{what} {file} is not UTF-8 text"]) from None
    except SyntaxError as error:
        line = f"{what} {file} line {error.lineno or 1}: {error.msg}"
        raise ConfigError([line]) from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError([f"cannot read {what} {file}: {why}"]) from None
    if attribute not in defined:
        there = f"it has {sorted(defined)}" if defined else "it has none"
        wanted = f"{attribute!r}" if attribute else "name given"
        line = f"no {wanted} in {what} {file}: {there}; write {file}:name"
        raise ConfigError([line])
    return source


def definitions(source: Source) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """Classes and functions at the top level of the file, by name."""
    body = ast.parse(source.text, source.file).body
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: node for node in body if isinstance(node, kinds)}


def run(source: Source) -> Any:
    """Run the file in a module of its own and return the attribute.

    The module stays in `sys.modules`, where dataclasses and pickle look for it. What
    the code raises is left as it is.
    """
    module = types.ModuleType(f"fedray_source_{uuid.uuid4().hex}")
    module.__file__ = source.file
    sys.modules[module.__name__] = module
    try:
        code = compile(source.text, source.file, "exec", dont_inherit=True)
        exec(code, module.__dict__)
        return getattr(module, source.attribute)
    except BaseException:
        del sys.modules[module.__name__]
        raise


def _text(file: Path) -> str:
    if not file.is_file():
        raise ValueError("no file there")
    with open(file, "rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return data.decode("utf-8-sig")
