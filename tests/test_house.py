"""The house holds itself: floors, who may import what, the public face."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedray

ROOT = Path(fedray.__file__).parent
FLOORS = [
    {"errors", "process_limits"},
    {"weights", "config", "user_code"},
    {"messages"},
    {
        "fusion",
        "models",
        "data",
        "policy",
        "checkpoint",
        "placement",
        "metrics",
        "report",
        "progress_display",
    },
    {"party", "offline", "ensemble"},
    {"aggregator"},
    {"federation"},
    {"service"},
    {"cli"},
    {"__main__"},
]
MAY_IMPORT_RAY = {"placement", "metrics", "aggregator", "federation", "service"}
FRAMEWORKS = {  # top of the import -> where it may stand
    "torch": ("models/pytorch", "models/keras", "models/torch_common.py"),
    "keras": ("models/keras",),
    "gensim": ("models/doc2vec", "data/dump.py"),  # a dump's reader: its own process
}
FILES = sorted(ROOT.rglob("*.py"))


def room(file: Path) -> str:
    inside = file.relative_to(ROOT)
    return inside.parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += names if node.module == "fedray" else [node.module]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_room_imports_only_from_lower_floors(file):
    own = room(file)
    if own == "__init__":
        return
    for name in imports(file):
        if not name.startswith("fedray."):
            continue
        other = name.split(".")[1]
        assert other == own or floor(other) < floor(own), f"{own} imports {other}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_only_the_edge_imports_ray_and_only_adapters_import_frameworks(file):
    inside = str(file.relative_to(ROOT))
    for name in imports(file):
        top = name.split(".")[0]
        assert top != "ray" or room(file) in MAY_IMPORT_RAY
        if top in FRAMEWORKS:
            assert inside.startswith(FRAMEWORKS[top])


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_file_can_be_read_in_one_sitting(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500
    assert ast.get_docstring(tree), "a room says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno - len(doc.splitlines())
            assert length <= 30, f"{node.name} has {length} lines"
            if not node.name.startswith("_") and _is_public(tree, node):
                assert doc, f"{node.name} has no docstring"


def _is_public(tree: ast.Module, function: ast.FunctionDef) -> bool:
    if function in tree.body:
        return True
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return any(
        function in node.body for node in classes if not node.name.startswith("_")
    )


def test_importing_fedray_loads_no_framework_and_no_ray():
    code = (
        "import sys, fedray; from fedray import FederationConfig, ConfigError; "
        "print([m for m in ('torch', 'keras', 'gensim', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_public_face_is_sorted_small_and_true():
    assert fedray.__all__ == sorted(fedray.__all__)
    assert len(fedray.__all__) <= 12
    for name in fedray.__all__:
        assert getattr(fedray, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        fedray.Nope  # noqa: B018


def test_errors_cross_processes_whole():
    import pickle

    from fedray import errors

    samples = {
        "list[str]": ["x"],
        "dict[str, str]": {"a": "b"},
        "str": "text",
        "int": 3,
    }
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and "__init__" in vars(cls):
            notes = dict(cls.__init__.__annotations__)
            shown = {k: getattr(v, "__name__", str(v)) for k, v in notes.items()}
            given = [samples.get(str(notes[k]), samples.get(shown[k])) for k in notes]
            error = cls(*given)
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again)) == (cls, str(error)), name
