"""deploy/ of an edge: the unit, the container file and the requirements."""

import configparser
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from fedray.cli import _parser

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
OWN = ["--data", "a", "--data-handler", "npz", "--url", "https://a"]


def requirements(lines: list[str]) -> dict[str, str]:
    """Versions by name."""
    pattern = re.compile(r"([a-z0-9-]+)(?:\[[a-z]+\])?(.*)")
    found = [pattern.fullmatch(line.split("#")[0].strip()) for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_the_unit_starts_an_edge_that_may_do_little():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    text = (DEPLOY / "fedray-edge.service").read_text()
    unit.read_string(text.replace("\\\n", " "))
    service = unit["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/fedray")
    arguments = _parser().parse_args(words)
    assert arguments.command_name == "edge"
    assert str(arguments.state_dir) == "${STATE_DIRECTORY}"
    assert service["StateDirectoryMode"] == "0700"
    assert service["SuccessExitStatus"] == "130"
    assert service["Restart"] == "on-failure"


def test_the_container_file_runs_an_edge_as_nobody_of_importance():
    text = (DEPLOY / "edge.Containerfile").read_text()
    entry = json.loads(re.search(r"ENTRYPOINT (\[.*\])", text)[1])
    assert _parser().parse_args([*entry[1:], *OWN]).command_name == "edge"
    assert "USER edge" in text
    assert "--no-deps" in text
    example = re.search(r"fedray-edge (--url .*?)\n#\n", text, re.DOTALL)[1]
    words = shlex.split(example.replace("\\\n#", " "))
    assert _parser().parse_args(["edge", *words]).data == "/data/a.npz"


def test_the_requirements_are_those_of_the_project_without_ray():
    own = requirements((DEPLOY / "edge-requirements.txt").read_text().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = requirements([*project["dependencies"], *extras["privacy"]])
    assert own.keys() >= known.keys() - {"ray", "gensim"}
    for name, version in own.items():
        assert known.get(name, version) == version, name


def test_an_edge_imports_neither_ray_nor_what_its_requirements_lack():
    code = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"an edge imports {name}")
BLOCKED = {"ray", "gensim", "scipy", "pandas", "sklearn", "keras", "matplotlib",
           "safetensors", "fastapi", "starlette", "uvicorn", "psutil", "grpc"}
sys.meta_path.insert(0, Finder())
import fedray.edge, fedray.models.pytorch
from fedray.cli import _parser
print(_parser().parse_args(sys.argv[1:]).command_name)
"""
    command = [sys.executable, "-c", code, "edge", *OWN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "edge\n", done.stderr
