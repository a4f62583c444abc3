"""Actors whose processes were killed for the memory that they took, and how often.

Ray starts a killed actor again, and it takes as much again. Ray's memory monitor says
of which process it ended; the kernel's tells nobody: a process that vanished counts if
the kernel has killed one of this machine for its memory meanwhile.
"""

import contextlib
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import state
from ray._raylet import WorkerID
from ray.actor import ActorHandle
from ray.core.generated import common_pb2, gcs_pb2  # made without type hints

from fedray.errors import OutOfMemory
from fedray.placement.actors import aggregator_name, party_actor

MAX_DEATHS = 2  # of one actor: the second is no accident
COMMON: Any = common_pb2
TABLES: Any = gcs_pb2
CHECK_S = 4.0  # between two looks
MOST_OFTEN = 20  # times as long as a look takes
N_READINGS = 3  # of the kernel's counter: Ray tells of a death seconds later
OWN_WORDS = re.compile(r"MemoryError|bad_alloc|node running low on memory")


class MemoryDeaths:
    """Looks after a run's actors, and says when one has died of memory too often.

    run : the run's name, which the names of its actors begin with.
    lent : its actors where they are lent to it, by what errors call them.
    """

    def __init__(self, run: str, lent: Mapping[str, ActorHandle] | None = None):
        self.run = run
        self.counts: Counter[str] = Counter()  # by actor
        self._is_lent = lent is not None
        self._actor_ids = {who: one._actor_id for who, one in (lent or {}).items()}
        self._past_ids: set[bytes] = set()  # ended processes that were looked at
        for actor_id in self._actor_ids.values():  # of the runs before
            self._past_ids |= {*ended_processes(actor_id)}
        self._kernel_kills = deque([count_kernel_kills()], N_READINGS)
        self._due_s = 0.0  # monotonic clock

    def check(self, at_once: bool = False) -> None:
        """Count what happened since the last call.

        at_once : also if that was just now; otherwise nothing is done then.

        Raises
        ------
        OutOfMemory
            If the process of one of them was killed for its memory `MAX_DEATHS` times.
        """
        started = time.monotonic()
        if started < self._due_s and not at_once:
            return
        kills, before = count_kernel_kills(), self._kernel_kills[0]
        self._kernel_kills.append(kills)
        for name, actor_id in self._find_actors().items():
            ended = ended_processes(actor_id)
            new = [one for one in ended if one not in self._past_ids]
            self._past_ids.update(new)
            self.counts[name] += sum(
                died_of_memory(ended[one], has_killed=kills > before) for one in new
            )
            if self.counts[name] >= MAX_DEATHS:
                raise OutOfMemory(name, describe_deaths(self.counts[name]))
        cost_s = time.monotonic() - started
        self._due_s = time.monotonic() + max(CHECK_S, MOST_OFTEN * cost_s)

    def _find_actors(self) -> dict[str, Any]:
        """Ids of the run's actors, by what errors call them."""
        if self._is_lent:
            return self._actor_ids
        prefixes = {party_actor(self.run, ""): "party ", aggregator_name(self.run): ""}
        for name in ray.util.list_named_actors():
            for prefix, kind in prefixes.items():
                is_own = name.startswith(prefix) if kind else name == prefix
                who = f"{kind}{name[len(prefix) :]}" if kind else "the aggregator"
                if is_own and who not in self._actor_ids:
                    with contextlib.suppress(ValueError):  # it has just ended
                        self._actor_ids[who] = ray.get_actor(name)._actor_id
        return self._actor_ids


def describe_deaths(n_deaths: int) -> str:
    """What happened to an actor, as `OutOfMemory` has it."""
    return f"was killed {n_deaths} times for the memory that it took"


def ended_processes(actor_id: Any) -> dict[bytes, Any]:
    """What Ray has recorded of the ended processes of an actor, by their ids."""
    accessor = state.state._connect_and_get_accessor()
    stored = accessor.get_actor_info(actor_id)
    if stored is None:
        return {}
    actor = TABLES.ActorTableData.FromString(stored)
    ids = [one.worker_id for one in actor.previous_incarnations]
    records = {id: accessor.get_worker_info(WorkerID(id)) for id in ids}
    return {
        id: TABLES.WorkerTableData.FromString(stored)
        for id, stored in records.items()
        if stored is not None
    }


def died_of_memory(process: Any, has_killed: bool) -> bool:
    """Whether an ended process was killed for its memory.

    process : its record in Ray's table of workers.
    has_killed : the kernel has killed a process of this machine for its memory.
    """
    if process.exit_type == COMMON.WorkerExitType.NODE_OUT_OF_MEMORY:
        return True
    if OWN_WORDS.search(process.exit_detail):
        return True
    is_crash = process.exit_type == COMMON.WorkerExitType.SYSTEM_ERROR
    return is_crash and has_killed


def count_kernel_kills() -> int:
    """Processes of this machine that the kernel has killed for memory until now."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    counts: Iterable[list[str]] = map(str.split, lines)
    return sum(int(n) for name, n in counts if name == "oom_kill")
