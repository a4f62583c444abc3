"""Errors of an edge's own process; messages say what to do, as all of fedray's."""

from fedray.errors import FedrayError


class EdgeStateError(FedrayError):
    """The state folder of an edge cannot be used as it is."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"state of the edge in {self.path}: {self.reason}"


class PolicyError(FedrayError):
    """The policy file of an edge's owner is wrong, or does not allow a task."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class EdgeEnded(FedrayError):
    """An edge ends, since no further call can succeed: why, and what to do.

    is_done : whether the run is over, and the edge not at fault.
    """

    def __init__(self, reason: str, is_done: bool = False):
        super().__init__(reason, is_done)
        self.reason, self.is_done = reason, is_done

    def __str__(self) -> str:
        return self.reason


class Unreachable(FedrayError):
    """No service answered, or none could take the call now: the same may help later.

    retry_after_s : as the service says it; None: it does not.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None):
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s

    def __str__(self) -> str:
        return self.reason


class CallFailed(FedrayError):
    """The service refused a call; `status` is the HTTP status."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, reason)
        self.status, self.reason = status, reason

    def __str__(self) -> str:
        return f"{self.reason} (HTTP {self.status})"
