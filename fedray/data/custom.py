"""Data handlers that a user writes: ``path/to/file.py:ClassName``."""

import ast

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
    found = user_code.read(data_handler, "data_handler")
    classes = user_code.definitions(found)
    if not _may_have("get_data", found.attribute, classes):
        who = f"class {found.attribute} of data_handler {found.file}"
        raise ConfigError([f"{who} has no get_data()"])
    return found


def make_custom(handler: Source, path: str) -> Handler:
    """Run the code and make the handler. Only in a party.

    Raises
    ------
    DataError
        If what has the class's name is no class with get_data().
    """
    handler_class = user_code.run(handler)
    if not callable(getattr(handler_class, "get_data", None)):
        needed = f"a class {handler.attribute} that has get_data()"
        raise DataError(str(handler), "code that makes another one", needed)
    return handler_class(path)


def _may_have(method: str, name: str, classes: dict[str, ast.AST]) -> bool:
    """Look through a class and its bases; one from another file may have anything."""
    seen, todo = {"object"}, [name]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in classes or method in _names(classes[name]):
            return True
        todo += [ast.unparse(base) for base in getattr(classes[name], "bases", [])]
    return False


def _names(node: ast.AST) -> set[str | None]:
    found = ast.walk(node)
    return {getattr(item, "name", getattr(item, "id", None)) for item in found}
