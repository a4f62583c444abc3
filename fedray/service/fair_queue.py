"""Fair queue: places for work, given to clients in turn and to each in order."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator


class FairQueue:
    """A number of places for work at a time, shared fairly between clients.

    Clients with waiting calls take turns: a free place goes to the one at the head of
    the line, for the oldest of its calls, and it goes to the end for its others. One
    client has at most all places but one, so that another's first call finds a place
    at once. Whoever is cancelled while it waits has left the line.

    Parameters
    ----------
    n_places : of all clients.
    """

    def __init__(self, n_places: int):
        self.n_free = n_places
        self.n_per_client = max(1, n_places - 1)
        self.n_taken: Counter[str] = Counter()
        # clients that wait, the next one first
        self.lines: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Wait for a place, and have it until the context ends."""
        turn = asyncio.get_running_loop().create_future()
        self.lines.setdefault(client, deque()).append(turn)
        self._give_places()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():
                self.n_free += 1
                self.n_taken[client] -= 1
                self.n_taken += Counter()  # without those at 0
            self._give_places()

    def _give_places(self) -> None:
        waiting, served = {}, {}
        for client, line in self.lines.items():
            line = deque(turn for turn in line if not turn.done())
            is_next = line and self.n_taken[client] < self.n_per_client
            if is_next and self.n_free:
                self.n_free -= 1
                self.n_taken[client] += 1
                line.popleft().set_result(None)
                served[client] = line
            elif line:
                waiting[client] = line
        self.lines = waiting | {client: line for client, line in served.items() if line}
