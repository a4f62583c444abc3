"""Code that the operator names as ``path/to/file.py:attribute``.

It is read as text where the config lies and run only where it is used, so that a
party's node needs no copy of the file. Whoever may name it may run code: no stranger.
"""

import ast
import hashlib
import sys
import types
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


def read(spec: str, what: str) -> Source:
    """Read ``file.py:attribute`` without running it.

    Raises
    ------
    ConfigError
        If there is no such file, it is not Python, or defines no such attribute.
    """
    file, _, attribute = spec.rpartition(":")
    if not file.endswith(".py") or not attribute.isidentifier():
        raise ConfigError([f"{what} {spec!r} must be of the form path/file.py:name"])
    try:
        if Path(file).stat().st_size > MAX_BYTES:
            raise ConfigError([f"{what}: {file} is larger than {MAX_BYTES} bytes"])
        text = Path(file).read_text(encoding="utf-8")
        tree = ast.parse(text)
    except OSError as error:
        raise ConfigError([f"{what}: cannot read {file}: {error.strerror}"]) from None
    except SyntaxError as error:
        place = f"{file}, line {error.lineno}"
        raise ConfigError([f"{what}: {place} is not Python: {error.msg}"]) from None
    except ValueError:
        raise ConfigError([f"{what}: {file} is not text in UTF-8"]) from None
    definitions = ast.ClassDef | ast.FunctionDef
    defined = [node.name for node in tree.body if isinstance(node, definitions)]
    if attribute not in defined:
        has = f"it defines {sorted(defined)}" if defined else "it defines nothing"
        raise ConfigError([f"{what}: {file} has no {attribute!r}; {has}"])
    return Source(file, attribute, text)


def run(source: Source) -> Any:
    """Run the file as a module of its own and return the attribute."""
    digest = hashlib.sha256(source.text.encode()).hexdigest()[:16]
    name = f"fedray_source_{digest}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = source.file
        sys.modules[name] = module  # dataclasses and pickle look modules up by name
        try:
            exec(compile(source.text, source.file, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return getattr(sys.modules[name], source.attribute)
