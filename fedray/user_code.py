"""Loading of user code that a config names as ``path/to/file.py:attribute``.

The file is read as text where the config lies and run only where it is used, so that
a party's node needs no copy of it. Whoever may name such a file can run code on the
cluster: untrusted callers must not be able to set these keys.
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
    """The text of a Python file and the name of a class or function in it."""

    file: str
    attribute: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.attribute}"


def is_source(spec: str) -> bool:
    """Whether a setting is ``file.py:attribute`` and not a built-in name."""
    return ".py:" in spec or spec.endswith(".py")


def read(spec: str, what: str) -> Source:
    """Read ``file.py:attribute`` without running it; `what` is the config key.

    Raises
    ------
    ConfigError
        If there is no such file, it is not Python, or defines no such attribute.
    """
    stem, separator, attribute = spec.rpartition(".py:")
    file = f"{stem}.py" if separator else spec
    try:
        source = Source(file, attribute, _read_text(Path(file)))
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
        names = f"it has {sorted(defined)}" if defined else "it has none"
        wanted = f"{attribute!r}" if attribute else "name given"
        line = f"no {wanted} in {what} {file}: {names}; write {file}:name"
        raise ConfigError([line])
    return source


def definitions(source: Source) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """Parse the file; its top-level classes and functions by name."""
    body = ast.parse(source.text, source.file).body
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: node for node in body if isinstance(node, kinds)}


def run(source: Source) -> Any:
    """Run the file as a module of its own and return the attribute.

    The module stays in `sys.modules`, where dataclasses and pickle look for it.
    Exceptions of the code are passed on.
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


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise ValueError("no file there")
    with open(file, "rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return data.decode("utf-8-sig")
