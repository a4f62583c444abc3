"""Every snippet and command that README.md and docs/ show is run, or parsed if marked.

A page's blocks run in their order, in one folder that has the examples of `jobs/`.
``<!-- not run: REASON -->`` before a block has it parsed only. Blocks whose first line
is ``# FILE`` are written to that file. Blocks marked as ``text`` are output.
"""

import ast
import contextlib
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
import yaml

import fedray
from fedray import fusion
from fedray.cli import _parser as build_parser
from fedray.cli import main
from fedray.config import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
URL = "http://127.0.0.1:8000"
BLOCK = re.compile(
    r"(?P<mark><!-- not run: [^\n]+ -->\n\n?)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
N_COLUMNS = 110


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    is_run: bool

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command line, continued lines joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], found["mark"] is None)
        for found in BLOCK.finditer(text)
    ]


def write_party_files(folder: Path) -> None:
    """Files that the snippets name: digits, tables, models saved by PyTorch."""
    rng = np.random.default_rng(0)
    for name in "ab":
        x = rng.normal(size=(120, 8)).astype("float32")
        np.savez(folder / f"{name}.npz", x=x, y=(x[:, 0] > 0).astype("int64"))
        torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), folder / f"{name}.pt")


@pytest.fixture
def page_folder(tmp_path, monkeypatch, request):
    """An empty home, and a folder with the examples that the pages use."""
    folder = tmp_path / "page"
    folder.mkdir()
    for pattern in ("*.py", "*.yaml"):
        for file in (ROOT / "jobs").glob(pattern):
            shutil.copy(file, folder)
    (folder / "jobs").symlink_to(ROOT / "jobs")
    write_party_files(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    return folder


def run_command(words: list[str]) -> None:
    """Run a command of a page; those of make are other tests' and only looked up."""
    program, *arguments = words
    if program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{arguments[0]}:", targets, re.MULTILINE), words
    elif program == "fedray":
        status = main(arguments)
        assert status == 0, f"{shlex.join(words)} ended with {status}"
    else:
        raise AssertionError(f"{shlex.join(words)}: cannot be run here; mark its block")


def parse_command(words: list[str]) -> None:
    """See that a command which is not run here could be."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    if program == "fedray":
        with contextlib.suppress(SystemExit):
            arguments = ["x" if word == "…" else word for word in arguments]
            build_parser().parse_args(arguments)
            return
        raise AssertionError(f"{shlex.join(words)} is no command of fedray")
    if program == "make":
        run_command(words)
    if program.startswith("python") and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).exists(), words


def write_yaml(block: Block) -> None:
    name = re.match(r"# (\S+\.yaml)\b", block.text)
    if name:
        Path(name[1]).write_text(block.text, encoding="utf-8")


def run_block(block: Block, cells: dict, url: str) -> None:
    text = block.text.replace(URL, url)
    if block.language == "python":
        name = re.match(r"# (\S+\.py)\b", text)
        if name:
            Path(name[1]).write_text(text, encoding="utf-8")
            compile(text, name[1], "exec")
        else:
            exec(text, cells)
    elif block.language == "yaml":
        write_yaml(block)
        settings = yaml.safe_load(text)
        settings.pop("sweep", None)  # of a sweep's file
        _, mistakes = parse(settings)
        assert mistakes == []
    elif block.language == "":
        for words in block.commands:
            run_command(words)


def headings_of(text: str) -> set[str]:
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }


def check_links(page: Path, text: str) -> None:
    """Files that a page links to exist, and have the headings that it names."""
    outside_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", outside_code):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            own = file.read_text(encoding="utf-8") if path else text
            assert heading in headings_of(own), f"{page.name}: {target}"


def parse_block(block: Block) -> None:
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "":
        for words in block.commands:
            parse_command(words)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_runs(page, page_folder, request, capsys):
    blocks = blocks_of(page)
    if not any("fedray split" in block.text for block in blocks):
        assert main(["split", "--parties", "2", "--samples", "40", "--out", "."]) == 0
    needs_service = any(URL in b.text and b.language == "python" for b in blocks)
    url = request.getfixturevalue("service").url if needs_service else URL
    cells: dict = {}
    for block in blocks:
        assert block.language in ("", "python", "yaml", "json", "text"), block.language
        if block.language == "json":
            json.loads(block.text)
        elif block.is_run:
            run_block(block, cells, url)
        else:
            parse_block(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_short_lines_and_links_that_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        assert len(line) <= N_COLUMNS, f"{page.name}:{number} has {len(line)} columns"
    check_links(page, text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda page: page.stem)
def test_the_links_of_a_notebook_lead_somewhere(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    check_links(notebook, "\n\n".join(texts))


def test_the_readme_can_be_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    assert [p.name for p in pages if f"(docs/{p.name})" not in readme] == []


def test_every_fusion_algorithm_is_in_the_table_of_algorithms():
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    names = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows))
    assert set(names) == {"fusion_algorithm", *fusion.FUSIONS}


@pytest.mark.slow
def test_the_tutorial_notebook_fuses_two_models(service, page_folder):
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    codes = [
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"
    ]
    cells: dict = {}
    for code in codes:
        exec(code.replace(URL, service.url), cells)
    assert cells["accuracy"] >= 0.85
    assert cells["answer"].json()["status"] == "stopped"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_the_curl_calls_of_the_readme_train_a_model(service, page_folder):
    assert main(["split", "--parties", "2", "--samples", "40", "--out", "."]) == 0
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(network, "torch_mnist_cnn.pt")
    (block,) = [b for b in blocks_of(ROOT / "README.md") if b.text.startswith("curl")]
    start, join, train = block.commands

    def call(words: list[str]) -> dict:
        words = [
            word.replace(URL, service.url).replace("ID", identity) for word in words
        ]
        words = [word.replace("rounds=5", "rounds=1") for word in words]
        done = subprocess.run(
            ["curl", "-s", *words[1:]], capture_output=True, check=True
        )
        return json.loads(done.stdout)

    identity = "ID"
    identity = call(start)["aggregator_id"]
    assert call(join)["remaining_parties"] == 1
    second = [word.replace("data_party0", "data_party1") for word in join]
    assert call(second)["remaining_parties"] == 0
    assert len(call(train)["history"]) == 1
    requests.post(f"{service.url}/stop", json={"aggregator_id": identity}, timeout=60)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_tutorial_federation_reads_88_of_100_held_out_digits(tmp_path):
    result = fedray.run(ROOT / "jobs" / "mnist_fedavg.yaml", run_dir=tmp_path / "run")
    assert len(result.history) == 5
    assert result.history[-1].evaluated == 1000
    assert result.accuracy >= 0.88
