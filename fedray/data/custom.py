"""Custom data handlers, ``path/to/file.py:ClassName``: read here, run in parties."""

import ast
from collections.abc import Collection, Mapping
from typing import Any

from fedray import user_code
from fedray.data.base import Handler
from fedray.data.options import unexpected_argument
from fedray.errors import ConfigError, DataError
from fedray.user_code import LiveObject, Source


def read_custom(data_handler: str) -> Source:
    """Read the code of a handler class without running it.

    Raises
    ------
    ConfigError
        If there is no such class, or it cannot have get_data().
    """
    source = user_code.read(data_handler, "data_handler")
    if isinstance(source, LiveObject):  # looked at when it was given
        return source
    definitions = user_code.definitions(ast.parse(source.text))
    if not user_code.may_have("get_data", source.attribute, definitions):
        name = f"class {source.attribute} of data_handler {source.file}"
        raise ConfigError([f"{name} has no get_data()"])
    return source


def argument_problems(source: Source, args: Mapping[str, Any]) -> list[str]:
    """Options that the class in a file does not take, as far as its text says."""
    if isinstance(source, LiveObject):
        name = unexpected_argument(source.load(), args)
        return [_describe_argument(source, name)] if name else []
    parameters = _parameters(ast.parse(source.text), source.attribute)
    if parameters is None:
        return []
    return [_describe_argument(source, name) for name in args if name not in parameters]


def _describe_argument(source: Source, name: str) -> str:
    return f"{source.attribute} of data_handler {source.file} takes no {name!r}"


def _parameters(tree: ast.Module, name: str) -> list[str] | None:
    """Names that a class or function takes beside the path; None where it is open."""
    definitions, skipped = user_code.definitions(tree), 1
    visited = set[str]()
    while isinstance(node := definitions.get(name), ast.ClassDef):
        own = [one for one in node.body if isinstance(one, ast.FunctionDef)]
        constructor = next((one for one in own if one.name == "__init__"), None)
        if node.decorator_list or node.keywords or name in visited:
            return None
        if constructor is not None:
            node, skipped = constructor, 2  # self and the path
            break
        if len(node.bases) != 1:
            return None
        visited.add(name)
        name = ast.unparse(node.bases[0])
    if not isinstance(node, ast.FunctionDef) or node.args.kwarg or node.decorator_list:
        return None
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)][skipped:]
    return names + [one.arg for one in node.args.kwonlyargs]


def has_survey(handler: Source, own_classes: Collection[str]) -> bool:
    """Whether the class or a base of it has get_survey().

    own_classes : names of classes of fedray that have it; a base of a package is not
        looked into.
    """
    if isinstance(handler, LiveObject):
        return callable(getattr(handler.load(), "get_survey", None))
    definitions: dict[str, ast.AST] = {}
    for text in (*(imported.text for imported in handler.imports), handler.text):
        definitions |= user_code.definitions(ast.parse(text))

    def is_own(base: str) -> bool:
        return base.rpartition(".")[2] in own_classes

    return user_code.may_have("get_survey", handler.attribute, definitions, is_own)


def make_custom(handler: Source, path: str, args: Mapping[str, Any]) -> Handler:
    """Run the code and make the handler; only in an actor that holds data.

    Raises
    ------
    DataError
        If the code defines something else under the class's name, or the class does not
        take one of `args`.
    """
    handler_class = user_code.run(handler)
    if not callable(getattr(handler_class, "get_data", None)):
        needed = f"a class {handler.attribute} that has get_data()"
        raise DataError(str(handler), "code that makes another one", needed)
    if name := unexpected_argument(handler_class, args):
        needed = "data_args that its constructor takes by name"
        raise DataError(
            str(handler), f"data_args.{name}, which it does not take", needed
        )
    return handler_class(path, **args)
