"""Code layout rules: layers, import cycles, who imports frameworks, sizes, names."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedray

ROOT = Path(fedray.__file__).parent
FLOORS = [  # docs/architecture: a room imports only from rooms on floors before its own
    {"errors", "durable_files", "observers"},
    {"untrusted_text", "user_code"},
    {"weights", "config", "limits", "file_kinds", "nested", "datasets"},
    {"privacy"},
    {"secure_sum"},  # derives its keys as privacy does
    {"messages", "survey"},
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
    {"party"},
    {"edges"},  # runs the parties' code outside the cluster
    {"ensemble", "offline", "experiments"},
    {"runs_page"},
    {"aggregator"},
    {"federation", "edge"},
    {"service", "sweep", "tune"},
    {"edge_door"},  # reuses the service's HTTP server
    {"ui"},  # knows the service's federations
    {"cli"},  # starts the service
    {"__main__"},
]
MAY_IMPORT_RAY = {
    *("placement", "metrics", "aggregator", "federation", "service", "edge_door"),
    "tune",
}
FRAMEWORKS = {  # top of the import -> where it may stand
    "torch": (
        *("models/pytorch", "models/keras"),
        *("models/torch_", "models/loss_domains.py", "models/scoring"),
        "models/custom/object_weights.py",  # the user's own tensors, as they came
    ),
    "keras": ("models/keras",),
    "sklearn": ("models/sklearn",),
    "skops": ("models/sklearn",),
    "torchmetrics": ("models/scoring/library.py",),
    "gensim": ("models/doc2vec", "data/dump.py"),  # a dump's reader: its own process
}
MAX_FILES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 480, 500, 30
PARTICIPLES = {
    *("asked", "came", "found", "given", "gone", "heard", "kept", "known", "made"),
    *("meant", "met", "said", "seen", "sent", "taken", "told", "behind", "due"),
}
FILES = sorted(ROOT.rglob("*.py"))
by_file = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def room(file: Path) -> str:
    inside = file.relative_to(ROOT)
    return inside.parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imports(tree: ast.Module) -> list[str]:
    """Modules imported anywhere: at the top, in functions, under TYPE_CHECKING."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = name in MODULES or node.module == "fedray"
                modules.append(name if is_module else node.module)
    return modules


def cyclic(edges: dict[str, set[str]]) -> set[str]:
    """Nodes from which some path of edges leads back to themselves."""

    def reachable(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = edges[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    return {node for node in edges if node in reachable(node)}


@by_file
def test_a_room_imports_only_from_lower_floors(file):
    own = room(file)
    if own == "__init__":
        return
    for name in imports(TREES[file]):
        if not name.startswith("fedray."):
            continue
        other = name.split(".")[1]
        assert other == own or floor(other) < floor(own), f"{own} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    edges = {
        name: {other for other in imports(TREES[file]) if other in MODULES} - {name}
        for name, file in MODULES.items()
    }
    assert cyclic(edges) == set()


def test_cycles_are_found_through_functions_and_type_checking_imports():
    sources = {
        "fedray.config": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from fedray.weights import Weights",
        "fedray.weights": "async def f():\n    from fedray import messages",
        "fedray.messages": "import fedray.config",
        "fedray.errors": "import fedray.messages",
    }
    edges = {name: {*imports(ast.parse(text))} for name, text in sources.items()}
    edges["typing"] = set()
    assert cyclic(edges) == {"fedray.config", "fedray.weights", "fedray.messages"}


@by_file
def test_only_the_edge_imports_ray_and_only_adapters_import_frameworks(file):
    inside = str(file.relative_to(ROOT))
    for name in imports(TREES[file]):
        top = name.split(".")[0]
        assert top != "ray" or room(file) in MAY_IMPORT_RAY
        if top in FRAMEWORKS:
            assert inside.startswith(FRAMEWORKS[top])


@by_file
def test_files_and_functions_are_short_and_public_ones_have_docstrings(file):
    tree = TREES[file]
    n_lines = len(file.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_FILE_LINES
    assert ast.get_docstring(tree), "a file's docstring says what is in it"
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    documented = {node.name for node in functions if ast.get_docstring(node)}
    for node in functions:
        doc = ast.get_docstring(node, clean=False) or ""
        length = node.end_lineno - node.lineno - len(doc.splitlines())
        assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"
        if not node.name.startswith("_") and is_public(tree, node):
            is_stub = ast.unparse(node.body[-1]) == "..."  # of a Protocol
            has_doc = doc or is_stub or node.name in documented
            assert has_doc, f"{node.name} has no docstring"


def is_public(tree: ast.Module, function: Function) -> bool:
    if function in tree.body:
        return True
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return any(
        function in node.body for node in classes if not node.name.startswith("_")
    )


def test_there_are_no_more_files_than_concepts():
    assert len(FILES) <= MAX_FILES, "a new concept: raise MAX_FILES; else no new file"


def test_no_name_is_a_bare_participle():
    uses = [f"{file}: {n}" for file in FILES for n in names_bound_in(TREES[file])]
    assert [use for use in uses if use.split()[-1].strip("_") in PARTICIPLES] == []


def names_bound_in(tree: ast.Module) -> Iterator[str]:
    """Functions, classes, parameters, and variables and attributes assigned to."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


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
    assert len(fedray.__all__) <= 14
    for name in fedray.__all__:
        assert getattr(fedray, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        fedray.Nope  # noqa: B018


def test_numbers_in_messages_agree_with_their_nouns():
    from fedray.errors import Stopped, TooManyRefused, format_count

    assert format_count(1, "round") == "1 round"
    assert format_count(0, "round") == "0 rounds"
    assert format_count(1200, "party", "parties") == "1,200 parties"
    assert format_count(0.5, "CPU") == "0.5 CPUs"
    assert "1 update was refused" in str(TooManyRefused(1, 0, 1, "a"))
    assert "1 round is kept" in str(TooManyRefused(1, 0, 1, "a"))
    assert "after 0 of 1 round," in str(Stopped(0, 1, "a"))


def test_errors_survive_pickling():
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
