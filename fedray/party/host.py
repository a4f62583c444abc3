"""PartyHost: a process that trains for many runs, one after another.

What takes long is done once: Python and a framework are imported, data is read. Each
run has a `PartyGroup` of its own in it, so that nothing of another run is left.
"""

import gc
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedray import data, models
from fedray.messages import ActorLocation
from fedray.party.group import PartyGroup
from fedray.party.loading import GroupPlan

SHIPPED = "mnist"  # a source that is part of fedray


class PartyHost:
    """Holds the party group of one run at a time; a plain class.

    locate : called once, before a framework is imported.
    """

    def __init__(self, locate: Callable[[], ActorLocation]):
        self.location, self.data = locate(), LoadedData()
        self._key = ""
        self._group: PartyGroup | None = None

    def __repr__(self) -> str:
        return repr(getattr(self, "_group", None) or "party:idle")

    def call(
        self, key: str, read_plan: Callable[[], GroupPlan], method: str, *arguments: Any
    ) -> Any:
        """Call a method of the party group of a run.

        key : of the run and group; with another than before the group is made anew.
        read_plan : gets its plan, which is needed then, and after a crash.
        """
        if key != self._key:
            self.release()
            self._group, self._key = self._make(read_plan()), key
        return getattr(self._group, method)(*arguments)

    def prepare(self, model_type: str) -> None:
        """Import the framework of a type of model, ahead of the first run."""
        models.named(model_type)

    def release(self) -> None:
        """Let go of model and state of a run that has ended; data stays loaded."""
        self._key, self._group = "", None
        gc.collect()  # models hold on to themselves

    def _make(self, plan: GroupPlan) -> PartyGroup:
        models.named(plan.blueprint.model_type)  # imports its framework
        gc.freeze()  # or each release would look through all of the framework
        plan = replace(plan, load=self.data.load)
        return PartyGroup(plan, lambda: self.location)


class LoadedData:
    """The data set that was loaded last, for runs that read the same again."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._samples: Any = None

    def load(
        self,
        handler: data.HandlerSource,
        path: str,
        args: Any,
        origin: data.Origin,
        codes: data.DataCodes | None,
    ) -> Any:
        """As `data.load`; the same samples if nothing that they depend on is new."""
        key = _key_of(handler, path, args, origin, codes)
        if not key:
            return data.load(handler, path, args, origin, codes)
        if key != self._key:
            self._key, self._samples = (), None  # not two data sets at once
            self._samples = data.load(handler, path, args, origin, codes)
            self._key = key
        return self._samples


def _key_of(
    handler: data.HandlerSource,
    path: str,
    args: Any,
    origin: data.Origin,
    codes: data.DataCodes | None,
) -> tuple[Any, ...]:
    """All that samples depend on; empty: nobody knows, they are read each time.

    Only a file can be seen to be as it was, and only ready handlers read nothing else.
    """
    if not isinstance(handler, str):
        return ()
    file: tuple[Any, ...] = ()
    if path != SHIPPED:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return ()
        if not os.path.isfile(path):
            return ()
        file = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)
    has_options = hasattr(data.HANDLERS.get(handler), "options_class")
    own = origin if has_options else replace(origin, seed=0)
    return handler, path, file, repr(sorted(args.items())), own, pickle.dumps(codes)
