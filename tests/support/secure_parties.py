"""Parties and a server of secure aggregation in one process, with storage in memory.

All that a side knows lies in its storage: `restart` makes new objects from it, `copy`
branches a whole scene.
"""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np

from fedray.secure_sum import (
    Attempt,
    Member,
    PartySide,
    SecureSum,
    ServerSide,
    Step,
    SumParameters,
    choose_parameters,
)

WEIGHTS = bytes(range(32))  # stands for the hash of the weights that are sent
RUN = "2f1c"


class MemoryStorage:
    """Storage in a dict, which counts what would reach the disk."""

    def __init__(self, files: dict[str, bytes] | None = None):
        self.files, self.n_flushes = dict(files or {}), 0

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        yield

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def view(self, name: str) -> memoryview | None:
        return memoryview(self.files[name]) if name in self.files else None

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        self.files[name] = b"".join(bytes(part) for part in parts)
        self.n_flushes += 1

    def append(self, name: str, data: bytes) -> None:
        self.n_flushes += 1
        self.files[name] = self.files.get(name, b"") + data

    def remove(self, *names: str) -> None:
        for name in names:
            self.files.pop(name, None)


class Scene:
    """Parties p0, p1, ... with a vector each, and the attempt that sums them."""

    def __init__(self, n_parties: int, parameters: SumParameters | None = None):
        self.storages = {f"p{i}": MemoryStorage() for i in range(n_parties)}
        self.at_server = MemoryStorage()
        self.restart_parties()
        self.parameters = parameters or choose_parameters(5, n_parties)
        numbers = np.random.default_rng(n_parties)
        bound = self.parameters.bound
        self.vectors = {
            name: numbers.integers(-bound, bound, self.parameters.n_coordinates)
            for name in self.parties
        }
        self.weight = dict.fromkeys(self.parties, 1)
        self.server: ServerSide

    def copy(self) -> "Scene":
        """The same scene, from which things may go another way."""
        twin = object.__new__(Scene)
        twin.__dict__.update(self.__dict__)
        twin.storages = {n: MemoryStorage(s.files) for n, s in self.storages.items()}
        twin.at_server = MemoryStorage(self.at_server.files)
        twin.restart_parties()
        twin.restart_server(self.server.attempt.round)
        return twin

    def restart_parties(self, *names: str) -> None:
        """New processes of parties, which know what is in their storage."""
        made = {n: PartySide(n, self.storages[n]) for n in names or self.storages}
        self.parties = {**getattr(self, "parties", {}), **made}

    def restart_server(self, round: int = 1) -> None:
        server = ServerSide.restore(self.at_server, round)
        assert server is not None
        self.server = server

    def attempt(self, round: int = 1, number: int = 1) -> Attempt:
        roster = tuple(Member(n, p.public_key) for n, p in self.parties.items())
        return Attempt(RUN, "", round, number, roster, self.parameters)

    def begin(self, round: int = 1, number: int = 1) -> None:
        self.server = ServerSide.begin(self.attempt(round, number), self.at_server)

    def step(self, absent: Iterable[str] = ()) -> None:
        """One step, in which some do not answer."""
        self.ask(absent)
        self.server.close()

    def ask(self, absent: Iterable[str] = ()) -> None:
        if self.server.step == Step.MASKED:
            self.server.use_weights(WEIGHTS)
        for name, request in self.server.requests().items():
            if name not in absent:
                self.answer(name, request)

    def answer(self, name: str, request: bytes) -> None:
        if self.server.step == Step.MASKED:
            self.server.add([name], self.mask(name, request))
        else:
            self.server.accept(name, self.parties[name].answer(request))

    def mask(self, name: str, request: bytes, weights: bytes = WEIGHTS) -> np.ndarray:
        vector, weight = [self.vectors[name]], self.weight[name]
        return self.parties[name].mask(request, weights, vector, weight)

    def go_to(self, step: Step, absent: Iterable[str] = ()) -> None:
        """Steps until one is open, or all are closed."""
        while self.server.step < step:
            self.step(absent)

    def finish(self, absent: Iterable[str] = ()) -> SecureSum:
        self.go_to(Step.DONE, absent)
        return self.server.result()

    def plain_sum(self, names: Iterable[str]) -> np.ndarray:
        """Python's own integers, one coordinate after the other."""
        rows = [[self.weight[n] * int(x) for x in self.vectors[n]] for n in names]
        return np.array([sum(column) for column in zip(*rows, strict=True)])
