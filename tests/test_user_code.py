"""User code: what of it is read, which files travel with it, how they are run."""

import os
import random
import subprocess
import sys
import textwrap

import pytest

from fedray import user_code
from fedray.errors import ConfigError
from fedray.federation.connection import OWN_FOLDER, _ImportFolders


@pytest.fixture
def tree(tmp_path):
    """Write files below a folder: ``tree({"mine.py": "x = 1"})``; the folder."""

    def write(texts, folder=tmp_path):
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(textwrap.dedent(text))
        return folder

    return write


def read(folder, spec="mine.py:f"):
    return user_code.read(f"{folder}/{spec}", "data_handler")


def imports_of(source):
    return [source.path_of(imported) for imported in source.imports]


LAYOUTS = {  # files, what is asked for, what it gives, what travels with it
    "a file beside": (
        {"mine.py": "import helpers\ndef f(): return helpers.x", "helpers.py": "x = 1"},
        1,
        ["helpers.py"],
    ),
    "files that import each other": (
        {
            "mine.py": "import a\nx = 1\ndef f(): return a.g()",
            "a.py": "import mine\nfrom b import y\ndef g(): return mine.x + y",
            "b.py": "import a\ny = 2",
        },
        3,
        ["a.py", "b.py"],
    ),
    "in a function, under if and try": (
        {
            "mine.py": """
                try:
                    import not_there
                except ImportError:
                    import a
                def f():
                    import b as c
                    return a.x + c.x
            """,
            "a.py": "x = 1",
            "b.py": "x = 2",
        },
        3,
        ["a.py", "b.py"],
    ),
    "packages": (
        {
            "mine.py": "import lib.deep.c\nfrom lib import b\n"
            "def f(): return lib.x, b.y, lib.deep.c.z",
            "lib/__init__.py": "from .a import x",
            "lib/a.py": "x = 1",
            "lib/b.py": "from . import a\ny = a.x + 1",
            "lib/deep/__init__.py": "",
            "lib/deep/c.py": "from ..b import y\nfrom lib.a import x\nz = x + y",
            "lib/unused.py": "1 / 0",
        },
        (1, 2, 3),
        [f"lib/{x}.py" for x in ("__init__", "a", "b", "deep/__init__", "deep/c")],
    ),
    "all of a package": (
        {
            "mine.py": "from lib import *\ndef f(): return a.x",
            "lib/__init__.py": "__all__ = ['a']",
            "lib/a.py": "x = 1",
        },
        1,
        ["lib/__init__.py", "lib/a.py"],
    ),
    "a folder that is no package": (
        {"mine.py": "from lib import a\ndef f(): return a.x", "lib/a.py": "x = 1"},
        1,
        ["lib/a.py"],
    ),
    "relative": (
        {
            "mine.py": "from . import a\nfrom .a import x\ndef f(): return a.x + x",
            "a.py": "x = 1",
        },
        2,
        ["a.py"],
    ),
    "the names of Python's own and of installed packages": (
        {
            "mine.py": "import random, yaml\ndef f(): return random.x + yaml.x",
            "random.py": "x = 1",
            "yaml.py": "x = 2",
        },
        3,
        ["random.py", "yaml.py"],
    ),
    "a folder of an installed package's name": (
        {
            "mine.py": "import numpy as np\ndef f(): return int(np.ones(3).sum())",
            "numpy/notes.py": "1 / 0",
        },
        3,
        [],
    ),
    "a function that is defined where something else is missing": (
        {
            "mine.py": """
                try:
                    from not_there import f
                except ImportError:
                    from a import *
            """,
            "a.py": "def f(): return 1",
        },
        1,
        ["a.py"],
    ),
    "a class that another file defines": (
        {"mine.py": "from a import f", "a.py": "def f(): return 1"},
        1,
        ["a.py"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_beside_are_imported_as_python_does(name, tree, tmp_path):
    texts, value, imports = LAYOUTS[name]
    folder = tree(texts)
    source = read(folder)
    assert imports_of(source) == imports
    assert user_code.run(source)() == value
    copied = user_code.read(user_code.write(source, tmp_path / "copy"), "data_handler")
    assert (copied.text, copied.imports) == (source.text, source.imports)
    assert user_code.run(copied)() == value
    assert random.randint(1, 1) == 1  # nobody else's modules are replaced


PACKAGE = {
    "models/__init__.py": "scale = 2",
    "models/nets/__init__.py": "",
    "models/nets/mine.py": """
        from ..blocks import x
        from models import scale
        from . import own
        def f(): return x * scale + own.y
    """,
    "models/nets/own.py": "y = 1",
    "models/blocks.py": "x = 3",
}


def test_a_file_of_a_package_imports_from_its_package(tree, tmp_path):
    source = read(tree(PACKAGE), "models/nets/mine.py:f")
    assert imports_of(source) == [
        *("../__init__.py", "../blocks.py", "__init__.py", "own.py"),
    ]
    assert user_code.run(source)() == 7
    copied = user_code.read(user_code.write(source, tmp_path / "copy"), "data_handler")
    assert user_code.run(copied)() == 7


def test_its_own_folder_can_be_named(tree):
    own = {
        "nets/mine.py": "from nets.a import x\ndef f(): return x",
        "nets/a.py": "x=4",
    }
    assert user_code.run(read(tree(own), "nets/mine.py:f"))() == 4


def test_an_init_that_nobody_imports_is_not_run(tree):
    folder = tree({"__init__.py": "1 / 0", "mine.py": "def f(): return 1"})
    assert imports_of(read(folder)) == []
    assert user_code.run(read(folder))() == 1


def test_files_of_one_name_do_not_mix(tree, tmp_path):
    values = []
    for name in "ab":
        folder = tree(
            {
                "mine.py": "import helpers\ndef f(): return helpers.x",
                "helpers.py": f"x = {name!r}",
            },
            tmp_path / name,
        )
        values.append(user_code.run(read(folder)))
    assert [function() for function in values] == ["a", "b"]
    assert "helpers" not in sys.modules


ELSEWHERE = {"handlers/mine.py": "import helpers\ndef f(): ...", "helpers.py": ""}


@pytest.mark.parametrize("is_on_path", [True, False])
def test_the_current_folder_makes_no_difference(
    tree, tmp_path, monkeypatch, is_on_path
):
    monkeypatch.chdir(tree(ELSEWHERE))
    if is_on_path:
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        user_code.read("handlers/mine.py:f", "data_handler")
    assert str(caught.value) == (
        f"data_handler handlers/mine.py line 1 imports helpers, which lies in "
        f"{tmp_path} and not beside mine.py: move it there, or install it on every node"
    )


def test_what_is_installed_may_lie_in_the_current_folder(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree(ELSEWHERE))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # as PYTHONPATH adds
    source = user_code.read("handlers/mine.py:f", "data_handler")
    assert source.imports == ()


def test_a_module_that_is_nowhere_may_be_on_the_nodes(tree):
    assert read(tree({"mine.py": "import pydicom\ndef f(): ..."})).imports == ()


def test_files_together_are_at_most_a_megabyte(tree, tmp_path):
    half = "#" * (user_code.MAX_BYTES // 2)
    folder = tree({"mine.py": "import a\ndef f(): ...", "a.py": half, "b.py": half})
    assert read(folder).n_bytes < user_code.MAX_BYTES
    tree({"a.py": f"import b\n{half}"})
    with pytest.raises(ConfigError, match=r"b\.py: larger than 1048576 bytes, with"):
        read(folder)


def test_a_mistake_in_an_imported_file_names_it_and_its_line(tree):
    folder = tree({"mine.py": "import a\ndef f(): ...", "a.py": "x = 1\ny = ("})
    with pytest.raises(ConfigError, match=r"data_handler .*a\.py line 2: '\(' was"):
        read(folder)


def test_errors_show_the_last_line_of_user_code_without_what_it_quotes(tree):
    folder = tree(
        {
            "mine.py": "import a\ndef f():\n    return a.g('Jane Doe')  # Jane",
            "a.py": "def g(x):\n    return {}['x'], x",
        }
    )
    with pytest.raises(KeyError) as caught:
        user_code.run(read(folder))()
    last, first = user_code.code_lines(caught.value)
    assert str(last) == "a.py:2: `return {}['x'], x`"
    assert str(first) == "mine.py:3: `return a.g('…')`"


def test_a_name_that_is_missing_is_told_as_the_user_wrote_it(tree):
    folder = tree({"mine.py": "from a import x\ndef f(): ...", "a.py": ""})
    with pytest.raises(ImportError) as caught:
        user_code.run(read(folder))
    told = user_code.plain_names(str(caught.value))
    assert told == f"cannot import name 'x' from 'a' ({folder}/a.py)"


def test_python_m_fedray_imports_nothing_from_the_current_folder(tree):
    folder = tree({"yaml.py": "1 / 0", "argparse.py": "1 / 0"})
    words = [sys.executable, "-m", "fedray", "config", "epochs"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    assert "passes over the party's own data" in done.stdout


def test_workers_import_nothing_from_where_the_driver_was_started(tmp_path):
    folders = _ImportFolders()
    folders.extend([str(tmp_path), str(OWN_FOLDER), os.path.dirname(sys.executable)])
    assert folders == [str(OWN_FOLDER)]
