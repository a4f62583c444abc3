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
import os
import sys
import time
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

    before(module.TorchModel, "losses", batch)


def _asking(module) -> None:
    def asks(self, *_):
        now["round"] = self.record.round
        gate("sending", now["round"])

    def hears(self):
        if self.parts[0].actor in self.reported:  # the victim, if it is a party's
            gate("reported", self.record.round)

    before(module.Asking, "ask", asks)
    before(module.Asking, "_close_if_enough", hears)


def _combine(module) -> None:
    def opens(self, update, base, due):
        gate("combining", due.origin.round if due else now["round"])

    before(module.Terms, "opened", opens)


def _folder(module) -> None:
    def flushes(path):
        if (FOLDER / "slow").exists():
            time.sleep(float((FOLDER / "slow").read_text()))
        if path.parent.name == f"round-{ROUND:05d}.part":
            gate("writing", ROUND)

    before(module, "_sync", flushes)


def _named(kind: str, called: str):
    def patch(module) -> None:
        before(getattr(module, kind), "__init__", lambda self, *_: note(called))

    return patch


PATCHES = {
    "fedray.party.group": _party,
    "fedray.models.pytorch.model": _model,
    "fedray.aggregator.aggregator": _named("Aggregator", "aggregator"),
    "fedray.aggregator.asking": _asking,
    "fedray.aggregator.node_combiner": _combine,
    "fedray.checkpoint.run_folder": _folder,
    "fedray.service.deployment": _named("Service", "replica"),
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


if FOLDER.is_dir():
    sys.meta_path.insert(0, Finder)
