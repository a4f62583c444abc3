"""Reads a file of user code and the Python files that its import statements lead to."""

import ast
import importlib.machinery
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedray import durable_files
from fedray.errors import ConfigError

MAX_BYTES = 1 << 20  # of a file and all files that it imports


@dataclass(frozen=True)
class ImportedFile:
    """The text of a Python file that user code imports.

    module : dotted name, as import statements beside the user's file have it.
    path : from `Source.root` on, such as ``lib/blocks.py``.
    """

    module: str
    path: str
    text: str


@dataclass(frozen=True)
class Source:
    """The text of a Python file, the name of a class or function in it, its imports.

    imports : files that travel with it, sorted by module.
    module : dotted name of the file itself, among its imports.
    folders : names of the folders above the file that import statements can name.
    """

    file: str
    attribute: str
    text: str
    imports: tuple[ImportedFile, ...] = ()
    module: str = ""
    folders: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.attribute}"

    @property
    def n_bytes(self) -> int:
        """Bytes that travel."""
        texts = [self.text, *(one.text for one in self.imports)]
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)

    def path_of(self, imported: ImportedFile) -> str:
        """An imported file's path from the folder of the user's file."""
        return os.path.relpath(imported.path, Path(*self.folders))


def is_source(spec: str) -> bool:
    """Whether a setting is ``file.py:attribute`` and not a built-in name."""
    return ".py:" in spec or spec.endswith(".py")


def read(spec: str, what: str) -> Source:
    """Read ``file.py:attribute`` and its imports without running them.

    what : the config key.

    Raises
    ------
    ConfigError
        If there is no such file, it is not Python, or defines no such attribute; or an
        import leads to a file that lies elsewhere, or they are too large together.
    """
    stem, separator, attribute = spec.rpartition(".py:")
    file = f"{stem}.py" if separator else spec
    files = _FileReader(what)
    text, tree = files.read(Path(file))
    names = top_level_names(tree)
    if not {attribute, "*"} & names or not attribute:
        offers = sorted(definitions(tree)) or sorted(names)
        existing = f"it has {offers}" if offers else "it has none"
        wanted = f"{attribute!r}" if attribute else "name given"
        line = f"no {wanted} in {what} {file}: {existing}; write {file}:name"
        raise ConfigError([line])
    scan = _ImportScan(Path(file), tree, files)
    imports = tuple(scan.imported[module] for module in sorted(scan.imported))
    return Source(file, attribute, text, imports, scan.module, scan.folders)


def definitions(tree: ast.Module) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """Top-level classes and functions of a file by name."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: node for node in tree.body if isinstance(node, kinds)}


def top_level_names(tree: ast.Module) -> set[str]:
    """Names that the file defines, assigns or imports outside functions and classes.

    ``*`` is one of them where all names of another module are imported.
    """
    names, pending = set[str](), list[ast.AST](tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name):
            names |= {node.id} if isinstance(node.ctx, ast.Store) else set()
        else:
            pending += ast.iter_child_nodes(node)
    return names


def may_have(
    method: str,
    name: str,
    definitions: Mapping[str, ast.AST],
    is_elsewhere: Callable[[str], bool] = lambda name: True,
) -> bool:
    """Whether a class or a base has a method.

    is_elsewhere : whether a base of another file has it, by its name; any may.
    """
    visited, pending = {"object"}, [name]
    while pending:
        name = pending.pop()
        if name in visited:
            continue
        visited.add(name)
        if name not in definitions:
            if is_elsewhere(name):
                return True
            continue
        if method in _names_in(definitions[name]):
            return True
        bases = getattr(definitions[name], "bases", [])
        pending += [ast.unparse(base) for base in bases]
    return False


def _names_in(node: ast.AST) -> set[str | None]:
    nodes = ast.walk(node)
    stored = {getattr(item, "name", getattr(item, "id", None)) for item in nodes}
    return stored | {
        item.attr  # self.train = ...
        for item in ast.walk(node)
        if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
    }


def write(source: Source, folder: Path) -> str:
    """Write the file and its imports below a folder; the ``file.py:attribute`` there.

    On disk when this returns.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    own = Path(*(source.folders if source.imports else ()), Path(source.file).name)
    texts = {own: source.text} | {Path(one.path): one.text for one in source.imports}
    for path, text in texts.items():
        durable_files.make_folder((folder / path).parent)
        durable_files.write_text(folder / path, text)
    return f"{folder / own}:{source.attribute}"


class _FileReader:
    """Reads Python files, up to `MAX_BYTES` in all.

    what : the config key that asks for them.
    """

    def __init__(self, what: str):
        self.what, self.n_bytes = what, 0

    def read(self, file: Path) -> tuple[str, ast.Module]:
        """Text and syntax tree of a file.

        Raises
        ------
        ConfigError
            If there is none, or it is too large or not Python.
        """
        try:
            text = self._text(file)
            return text, ast.parse(text, str(file))
        except UnicodeDecodeError:
            problem = f"{self.what} {file} is not UTF-8 text"
        except SyntaxError as error:
            problem = f"{self.what} {file} line {error.lineno or 1}: {error.msg}"
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            why = getattr(error, "strerror", None) or error
            problem = f"cannot read {self.what} {file}: {why}"
        raise ConfigError([problem])

    def _text(self, file: Path) -> str:
        if not file.is_file():
            raise ValueError("no file there")
        is_first = not self.n_bytes
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES - self.n_bytes + 1)
        self.n_bytes += len(data)
        if self.n_bytes > MAX_BYTES:
            files = "" if is_first else ", with the files imported before it"
            raise ValueError(f"larger than {MAX_BYTES} bytes{files}")
        return data.decode("utf-8-sig")


class _ImportScan:
    """Finds the Python files that a file's import statements lead to.

    As Python finds them for a script: what the interpreter has built in, then the
    file's own folder, then what is installed. Its own folder, or the outermost of the
    packages that it lies in, may also be named itself.

    imported : the files by module.
    """

    def __init__(self, file: Path, tree: ast.Module, files: _FileReader):
        self.file, self.files = file, files
        self.folder = Path(os.path.abspath(file)).parent
        outermost = self.folder
        while _is_package(outermost.parent):
            outermost = outermost.parent
        self.root, self.own_name = outermost.parent, outermost.name
        self.folders = self.folder.relative_to(self.root).parts
        stem = file.stem if file.stem.isidentifier() else "main"
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        is_in_package = _is_package(self.folder) and any(n.level for n in imports)
        package = ".".join(self.folders) if is_in_package else ""
        self.module = f"{package}.{stem}" if package else stem
        self.imported: dict[str, ImportedFile] = {}
        self._scan(file, package, tree)
        if is_in_package:
            self._add(package, file, 1)

    def _scan(self, file: Path, package: str, tree: ast.Module) -> None:
        """Add what the import statements of one file name; `package` is its own."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._add(alias.name, file, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = _absolute_name(package, node)
                if base is None:
                    continue  # above the outermost package: Python's own error says so
                if base:
                    self._add(base, file, node.lineno, bool(node.level))
                if not base or self._find(base)[1]:
                    for name in self._names(node, base):
                        inner = f"{base}.{name}" if base else name
                        self._add(inner, file, node.lineno, is_own=True)

    def _names(self, node: ast.ImportFrom, base: str) -> list[str]:
        """What is imported from a folder: of ``*`` what its ``__all__`` lists."""
        names = [alias.name for alias in node.names]
        package = self.imported.get(base)
        if names != ["*"] or package is None:
            return names
        for one in ast.parse(package.text).body:
            if isinstance(one, ast.Assign) and _is_name(one.targets[0], "__all__"):
                items = [
                    getattr(x, "value", "") for x in getattr(one.value, "elts", [])
                ]
                return [item for item in items if isinstance(item, str) and item]
        return []

    def _add(
        self, module: str, importer: Path, line: int, is_own: bool = False
    ) -> None:
        """Add the files of a module and of the packages that it is in.

        is_own : it can only be beside, so that nothing is said if it is not.
        """
        steps, _ = self._find(module)
        if not steps and not is_own:
            self._refuse_elsewhere(module.partition(".")[0], importer, line)
        for name, file in steps:
            if file is None or name in self.imported or name == self.module:
                continue
            text, tree = self.files.read(file)
            path = str(file.relative_to(self.root))
            self.imported[name] = ImportedFile(name, path, text)
            is_package = file.name == "__init__.py"
            package = name if is_package else name.rpartition(".")[0]
            self._scan(file, package, tree)

    def _find(self, module: str) -> tuple[list[tuple[str, Path | None]], bool]:
        """Each step of a dotted name with its file, None for a folder without one.

        Also whether the last step is a folder. Nothing if its first step is not here.
        """
        first = module.partition(".")[0]
        for root in (self.folder, self.root):
            if root == self.root != self.folder and first != self.own_name:
                continue
            steps, is_folder = _walk(root, module)
            if steps and not _is_built_in(first):
                is_bare = steps[0][1] is None  # any installed package goes before it
                if not (is_bare and is_installed(first)):
                    return steps, is_folder
        return [], False

    def _refuse_elsewhere(self, name: str, importer: Path, line: int) -> None:
        """Refuse a module that Python would find by the way it was started only."""
        for folder in (Path.cwd(), Path(sys.path[0] or ".").absolute()):
            steps, _ = _walk(folder, name)
            is_here = steps and steps[0][1] is not None and folder != self.folder
            is_python = name == "fedray" or _is_built_in(name)
            if is_here and not is_python and not is_installed(name):
                raise ConfigError(
                    [
                        f"{self.files.what} {importer} line {line} imports {name}, "
                        f"which lies in {folder} and not beside {self.file.name}: "
                        "move it there, or install it on every node"
                    ]
                )


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file() and folder.name.isidentifier()


def _absolute_name(package: str, node: ast.ImportFrom) -> str | None:
    """What a from-import names, from the root on; None if it leads above that."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    if node.level - 1 > len(parts):
        return None
    base = parts[: len(parts) - (node.level - 1)]
    return ".".join([*base, node.module] if node.module else base)


def _walk(root: Path, module: str) -> tuple[list[tuple[str, Path | None]], bool]:
    """Steps of a dotted name below a folder, as far as they are there; see `_find`."""
    steps: list[tuple[str, Path | None]] = []
    folder, name = root, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        inner, file = folder / part, folder / f"{part}.py"
        if (inner / "__init__.py").is_file():
            steps.append((name, inner / "__init__.py"))
        elif file.is_file():
            steps.append((name, file))
            return steps, False
        elif inner.is_dir() and part.isidentifier():
            steps.append((name, None))
        else:
            return steps, False
        folder = inner
    return steps, True


def _is_built_in(name: str) -> bool:
    """Whether the interpreter holds a module itself and never looks for a file."""
    finders = (
        importlib.machinery.BuiltinImporter,
        importlib.machinery.FrozenImporter,
    )
    return any(finder.find_spec(name) for finder in finders)


def is_installed(name: str) -> bool:
    """Whether a module is installed here.

    Where Python was started does not count: the folder of its script, or the current
    one, is the first of `sys.path`.
    """
    for finder in sys.meta_path:
        if finder is importlib.machinery.PathFinder:
            spec = importlib.machinery.PathFinder.find_spec(name, sys.path[1:])
        else:
            spec = finder.find_spec(name, None)
        if spec is not None and spec.origin is not None:
            return True
    return False
