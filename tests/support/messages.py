"""Collects every message that a user can meet while the suite runs, on one page.

``make messages`` sets FEDRAY_MESSAGES, a folder, and PYTHONPATH, so that every Python
process of the suite (pytest's, Ray's workers, commands) collects what it makes: errors,
each mistake of a config, the answers of REST calls that failed, what commands write to
stderr. ``python messages.py FOLDER PAGE`` then writes the page, equal ones folded.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

FOLDER = "FEDRAY_MESSAGES"
ROOT = re.escape(str(Path(__file__).parents[2]))
MAX_TEXT = 1500  # characters of a message
VARYING = [  # what differs from run to run, and what the page has instead
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r"), ""),
    (re.compile(r"\b(?=\w*[a-f])[0-9a-f]{16,64}\b"), "ID"),
    (re.compile(rf"(?<![\w.])(?:(?:{ROOT}|/tmp|/root|/dev)[^\s'\",;:)]*)"), "PATH"),
    (re.compile(r"\b(?:\d[\d.,]*\d|\d)(?:e[+-]?\d+)?\b"), "N"),
]
collected: set[tuple[str, str]] = set()


def collect(kind: str, text: str) -> None:
    """Write a message to this process's file, once."""
    folded = fold(text)
    if folded and (kind, folded) not in collected:
        collected.add((kind, folded))
        line = {"kind": kind, "text": folded, "place": place()}
        with open(f"{os.environ[FOLDER]}/{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def fold(text: str) -> str:
    """A message with a placeholder for each number, path and id."""
    text = text.strip()[:MAX_TEXT]
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text.encode("utf-8", "backslashreplace").decode()


def place() -> str:
    """File and function of fedray in which the message was made."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, inside = frame.f_code.co_filename.rpartition("/fedray/")
        if found and inside not in ("errors.py", "untrusted_text.py"):
            return f"{inside} {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def watch_errors(module: ModuleType) -> None:
    """Collect each error of `fedray.errors` as it is made."""
    for error in vars(module).values():
        if isinstance(error, type) and "__init__" in vars(error):
            error.__init__ = _collecting(error, error.__init__)


def _collecting(kind: type, make: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(make)
    def init(self, *arguments, **named):
        make(self, *arguments, **named)
        if type(self) is not kind:
            return
        if kind.__name__ == "ConfigError":
            for problem in self.problems:
                collect("a mistake in a config", str(problem))
        elif kind.__name__ == "CallRefused":
            collect(f"REST {self.status}", f"{self.detail} | {self.hint}")
        else:
            collect(kind.__name__, str(self))

    return init


def watch_responses(module: ModuleType) -> None:
    """Collect the answers of REST calls that failed."""
    answer = module.error_response

    @functools.wraps(answer)
    def error_response(error):
        response = answer(error)
        plain = json.loads(response.body)
        text = f"{plain['detail']} | {plain['hint']}"
        collect(f"answer {response.status_code}", text)
        return response

    module.error_response = error_response


def watch_terminal(module: ModuleType) -> None:
    """Collect what commands write to stderr."""
    write = module.Terminal.write

    def collecting_write(self, text):
        if getattr(self, "may_fail", False):
            collect("a command's stderr", text)
        return write(self, text)

    module.Terminal.write = collecting_write


def watch_configs(module: ModuleType) -> None:
    """Collect each mistake of a config, where it is only listed, too."""
    parse = module.parse

    @functools.wraps(parse)
    def collecting_parse(*arguments, **named):
        config, problems = parse(*arguments, **named)
        for problem in problems:
            collect("a mistake in a config", problem)
        return config, problems

    module.parse = collecting_parse


WATCHES = {
    "fedray.config.loading": watch_configs,
    "fedray.errors": watch_errors,
    "fedray.service.responses": watch_responses,
    "fedray.untrusted_text": watch_terminal,
}


class Watcher(importlib.abc.MetaPathFinder):
    """Calls a function of WATCHES once its module has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in WATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            WATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


def watch_imports() -> None:
    """Collect from this process, whatever it imports of fedray."""
    os.makedirs(os.environ[FOLDER], exist_ok=True)
    sys.meta_path.insert(0, Watcher())


def write_page(folder: Path, page: Path) -> None:
    """Write a page of all messages by kind, with where and in how many processes."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            message = json.loads(line)
            kinds[message["kind"]][message["text"]] += 1
            places[message["kind"], message["text"]].add(message["place"])
    n_all = sum(map(len, kinds.values()))
    lines = [
        "# Messages",
        "",
        f"{n_all:,} texts; N, ID, PATH are placeholders.",
    ]
    for kind in sorted(kinds):
        lines += ["", f"## {kind} ({len(kinds[kind])})", ""]
        for text in sorted(kinds[kind]):
            where = ", ".join(sorted(places[kind, text]))
            shown = text.replace("\n", "\n  > ")
            lines += [f"- {shown}", f"  <sub>{where} × {kinds[kind][text]}</sub>"]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
