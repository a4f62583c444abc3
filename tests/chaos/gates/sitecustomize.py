"""Gates that stop a run at a stage of its round 2, in whichever process plays it.

Python imports this file at the start of every process that has its folder on
PYTHONPATH, so those that Ray starts have it too. Nothing is done to fedray but that
some of its functions first come through `gate`. In the folder that CHAOS names:

- ``<stage>.armed`` holds a pattern of the names that are to be stopped there; who takes
  it renames it to ``.held``, with its process id, and waits until that file is gone;
- ``slow`` holds the seconds that every flush to the disk is to take;
- ``pids/<name>`` has a line, "pid start", for each process that was an actor.
"""

import fnmatch
import functools
import importlib.machinery
import importlib.util
import os
import sys
import time
import types
from pathlib import Path

FOLDER = Path(os.environ.get("CHAOS", "/nowhere"))
ROUND = 2
now = {"round": 0, "batches": 0, "name": "combiner"}


def gate(stage: str, round: int) -> None:
    """Wait here if somebody wants this stage of round 2 held."""
    armed, held = FOLDER / f"{stage}.armed", FOLDER / f"{stage}.held"
    if round != ROUND or not armed.exists():
        return
    try:
        if not fnmatch.fnmatch(now["name"], armed.read_text()):
            return
        mine = FOLDER / f"{stage}.{os.getpid()}"
        armed.rename(mine)
    except FileNotFoundError:
        return  # another was here first
    mine.write_text(str(os.getpid()))
    mine.rename(held)
    while held.exists():
        time.sleep(0.01)


def note(name: str) -> None:
    """Write down that this process is an actor of that name."""
    now["name"] = name
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    file = FOLDER / "pids" / name.replace("/", "_")
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as lines:
        lines.write(f"{os.getpid()} {stat[19]}\n")


def before(owner: object, name: str, act) -> None:
    """Let `act` be called with the arguments of a function before it is."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def gated(*arguments, **words):
        act(*arguments)
        return function(*arguments, **words)

    setattr(owner, name, gated)


def _party(module) -> None:
    def trains(self, round, *_):
        now.update(round=int(round), batches=0)

    group = module.PartyGroup
    before(group, "__init__", lambda self, plan, *_: note(f"party:{plan.name}"))
    before(group, "train", trains)


def _model(module) -> None:
    def batch(self, *_):
        if self.module.training:
            now["batches"] += 1
            if now["batches"] == 2:
                gate("training", now["round"])

    before(module.TorchModel, "call", batch)


def _dispatch(module) -> None:
    def asks(self, step, *_):
        now["round"] = step.round
        gate("sending", now["round"])

    before(module.Dispatch, "ask", asks)


def _collector(module) -> None:
    def has_received(self):
        if self.items[0].actor in self.reports:  # the victim, if it is a party's
            gate("reported", self.step.round)

    before(module.UpdateCollector, "_has_enough", has_received)


def _validation(module) -> None:
    def validates(self, raw, base, expected):
        gate("combining", expected.origin.round if expected else now["round"])

    before(module.UpdateValidator, "validate", validates)


def _files(module) -> None:
    def flushes(path):
        if (FOLDER / "slow").exists():
            time.sleep(float((FOLDER / "slow").read_text()))
        if path.parent.name == f"round-{ROUND:05d}.part":
            gate("writing", ROUND)

    before(module, "flush", flushes)


def _named(kind: str, called: str):
    def patch(module) -> None:
        before(getattr(module, kind), "__init__", lambda self, *_: note(called))

    return patch


def fix_key(module) -> None:
    """The same secret in every run: bits of one are compared with those of another."""
    module.os = types.SimpleNamespace(urandom=lambda n: b"\7" * n)


def fix_run_id(module) -> None:
    """And the same id, to which noise is bound too."""
    module.secrets = types.SimpleNamespace(token_hex=lambda n: "ab" * n)
    module.name_of_file = lambda name: "chaos"


PATCHES = {
    "fedray.privacy.run_ledger": fix_key,
    "fedray.checkpoint.run_inputs": fix_run_id,
    "fedray.party.group": _party,
    "fedray.models.pytorch.model": _model,
    "fedray.aggregator.aggregator": _named("Aggregator", "aggregator"),
    "fedray.aggregator.dispatch": _dispatch,
    "fedray.aggregator.collector": _collector,
    "fedray.aggregator.validation": _validation,
    "fedray.durable_files": _files,
    "fedray.service.http_server": _named("HttpServer", "replica"),
}


class Finder:
    """Finds the modules of PATCHES as Python would, and patches them once loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        patch = PATCHES.get(name)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def load_and_patch(module):
            load(module)
            patch(module)

        spec.loader.exec_module = load_and_patch
        return spec


def require_modules() -> None:
    """End this process if a module of PATCHES is gone: its gates would never close.

    A class or function that is gone ends the import of its module by itself.
    """
    package = importlib.util.find_spec("fedray")
    if package is None:
        return  # this process cannot import fedray at all
    root = Path(package.submodule_search_locations[0]).parent
    for name in PATCHES:
        file = root.joinpath(*name.split("."))
        if not file.with_suffix(".py").exists():
            sys.exit(f"tests/chaos/gates: there is no module {name}; mend PATCHES")


if FOLDER.is_dir():
    require_modules()
    sys.meta_path.insert(0, Finder)
