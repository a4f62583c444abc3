"""Which calls a federation accepts in which state; all others are 409."""

from fedray.errors import CallRefused
from fedray.service.store import FAILED, STOPPED, TRAINED, TRAINING, WAITING, State


def check_can_join(state: State) -> None:
    """Raise CallRefused (409) if no party can join the federation."""
    if state.state == TRAINING:
        return
    if state.state != WAITING:
        hint = "POST /start-aggregator for another one."
        raise CallRefused(409, f"This federation is {state.state}.", hint)
    if not state.n_remaining:
        detail = f"All {state.num_parties} parties have joined already."
        hint = "POST /train, or start one with more num_parties."
        raise CallRefused(409, detail, hint)


def check_can_train(state: State) -> None:
    """Raise CallRefused (409) if parties are missing, or it trains or has trained."""
    if state.state == WAITING and state.n_remaining:
        detail = f"{state.n_remaining} of {state.num_parties} parties have yet to join."
        raise CallRefused(409, detail, "POST /start-party for each of them first.")
    hints = {
        TRAINING: "GET /aggregators/{id} has its progress; POST /stop ends it.",
        TRAINED: "GET /aggregators/{id}/weights gives the model; POST /stop ends it.",
        STOPPED: "POST /start-aggregator for a new one.",
    }
    if state.state in hints:
        detail = f"This federation is {state.state} already."
        raise CallRefused(409, detail, hints[state.state])


def check_can_leave(state: State, party: str) -> None:
    """Raise CallRefused: 404 for an unknown party, 409 if the training is over."""
    if party not in [member["name"] for member in state.parties]:
        detail = "This federation has no such party."
        raise CallRefused(404, detail, "GET /aggregators/{id} lists its parties.")
    if state.state not in (WAITING, TRAINING, FAILED):
        detail = f"This federation is {state.state} already."
        raise CallRefused(409, detail, "POST /stop ends it with all its parties.")
