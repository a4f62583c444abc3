"""Custom data handlers, ``path/to/file.py:ClassName``: read here, run in parties."""

import ast
from collections.abc import Mapping

from fedray import user_code
from fedray.data.base import Handler
from fedray.errors import ConfigError, DataError
from fedray.user_code import Source


def read_custom(data_handler: str) -> Source:
    """Read the code of a handler class without running it.

    Raises
    ------
    ConfigError
        If there is no such class, or it cannot have get_data().
    """
    source = user_code.read(data_handler, "data_handler")
    definitions = user_code.definitions(ast.parse(source.text))
    if not _may_have("get_data", source.attribute, definitions):
        name = f"class {source.attribute} of data_handler {source.file}"
        raise ConfigError([f"{name} has no get_data()"])
    return source


def make_custom(handler: Source, path: str) -> Handler:
    """Run the code and make the handler; only in an actor that holds data.

    Raises
    ------
    DataError
        If the code defines something else under the class's name.
    """
    handler_class = user_code.run(handler)
    if not callable(getattr(handler_class, "get_data", None)):
        needed = f"a class {handler.attribute} that has get_data()"
        raise DataError(str(handler), "code that makes another one", needed)
    return handler_class(path)


def _may_have(method: str, name: str, definitions: Mapping[str, ast.AST]) -> bool:
    """Whether a class or a base has a method; a base of another file may have any."""
    visited, pending = {"object"}, [name]
    while pending:
        name = pending.pop()
        if name in visited:
            continue
        visited.add(name)
        if name not in definitions or method in _names(definitions[name]):
            return True
        bases = getattr(definitions[name], "bases", [])
        pending += [ast.unparse(base) for base in bases]
    return False


def _names(node: ast.AST) -> set[str | None]:
    nodes = ast.walk(node)
    return {getattr(item, "name", getattr(item, "id", None)) for item in nodes}
