"""Which calls a federation takes in which state."""

from fedray.errors import CallRefused
from fedray.service.store import (
    FAILED,
    STOPPED,
    TRAINED,
    TRAINING,
    WAITING,
    State,
)


def check_open(state: State) -> None:
    """Refuse a party that no federation waits for."""
    if state.state == TRAINING:
        return
    if state.state != WAITING:
        hint = "POST /start-aggregator for another one."
        raise CallRefused(409, f"This federation is {state.state}.", hint)
    if not state.n_remaining:
        told = f"All {state.num_parties} parties have joined already."
        raise CallRefused(409, told, "POST /train, or start one with more num_parties.")


def check_ready(state: State) -> None:
    """Refuse a training that cannot begin."""
    if state.state == WAITING and state.n_remaining:
        told = f"{state.n_remaining} of {state.num_parties} parties have yet to join."
        raise CallRefused(409, told, "POST /start-party for each of them first.")
    hints = {
        TRAINING: "GET /aggregators/{id} tells how far it is; POST /stop ends it.",
        TRAINED: "GET /aggregators/{id}/weights gives the model; POST /stop ends it.",
        STOPPED: "POST /start-aggregator for a new one.",
    }
    if state.state in hints:
        told = f"This federation is {state.state} already."
        raise CallRefused(409, told, hints[state.state])


def check_leaving(state: State, party: str) -> None:
    """Refuse to let a party go that is not there, or from a training that is over."""
    if party not in [known["name"] for known in state.parties]:
        told = "This federation has no such party."
        raise CallRefused(404, told, "GET /aggregators/{id} lists its parties.")
    if state.state not in (WAITING, TRAINING, FAILED):
        told = f"This federation is {state.state} already."
        raise CallRefused(409, told, "POST /stop ends it with all its parties.")
