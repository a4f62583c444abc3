"""What a federation's training takes, and the limits of the service for that."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedray.errors import LimitReached, format_count
from fedray.federation import ModelBytes, party_bytes, run_bytes
from fedray.limits import machine_memory
from fedray.report import format_bytes
from fedray.service.settings import Settings
from fedray.service.store import State
from fedray.service.training_queue import NOTHING, Demand, find_excess

RETRY_S = 10  # after which a call may find that a training has ended
NAMES = {  # of settings, by field of a demand
    "trainings": "max_trainings",
    "parties": "max_party_processes",
    "memory": "max_memory",
}
PARTIES_HINT = "POST /start-aggregator for a federation of fewer parties."
MEMORY_HINT = "Send a smaller model or less data, or take fewer parties."


def run_limits(settings: Settings) -> dict[str, Any]:
    """Keys of a run's config that are the operator's."""
    most = federation_memory(settings)
    return {"max_training_s": settings.max_training_s, "max_memory": most}


def federation_memory(settings: Settings) -> int:
    """Bytes that one training may be estimated to take."""
    return settings.max_memory_per_federation or machine_memory() // 2


def client_limit(settings: Settings) -> Demand:
    """The most that one client's trainings may take together."""
    return Demand(
        settings.max_trainings_per_client,
        settings.max_party_processes_per_client,
        settings.max_memory_per_client or machine_memory() // 2,
    )


def total_limit(settings: Settings) -> Demand:
    """The most that all trainings may take together."""
    memory = settings.max_memory or machine_memory() * 3 // 4
    return Demand(settings.max_trainings, settings.max_party_processes, memory)


def demand_of(state: State) -> Demand:
    """What a federation's training takes, with parties that have yet to join."""
    present = [party for party in state.parties if not party.get("left")]
    data = [_data_bytes(party) for party in present] + [0] * state.n_remaining
    memory = run_bytes(_model_type(state), _model_bytes(state, present), data)
    return Demand(1, len(data), memory)


def _data_bytes(party: dict[str, Any]) -> int:
    return party.get("data_bytes", 0)


def _model_type(state: State) -> str:
    return state.settings.get("model_type", "pytorch")


def _model_bytes(state: State, parties: Iterable[dict[str, Any]]) -> ModelBytes:
    """Of the model as far as it is known; one of words has those of each party."""
    own = [party["model_bytes"] for party in parties if party.get("model_bytes")]
    sizes = [ModelBytes(**plain) for plain in (state.model_bytes, *own) if plain]
    return max(sizes, key=lambda size: size.whole, default=ModelBytes())


def check_demand(state: State, settings: Settings) -> None:
    """See that a federation's training will have its turn at all.

    Raises
    ------
    LimitReached
        422 or 413 if it exceeds a limit by itself; the detail names the limit.
    """
    demand = demand_of(state)
    limits = {
        "_per_federation": Demand(1, demand.parties, federation_memory(settings)),
        "_per_client": client_limit(settings),
        "": total_limit(settings),
    }
    excess = find_excess(demand, limits)
    if excess is None:
        return
    suffix, field, most = excess
    limit = NAMES[field] + suffix
    parties = format_count(demand.parties, "party", "parties")
    if field == "memory":
        what = f"The training of {parties} needs {_describe_memory(state, demand)}"
        detail = f"{what}; it may take {format_bytes(most)} here ({limit})."
        raise LimitReached(limit, detail, MEMORY_HINT, 413, retry_after_s=0)
    detail = f"{parties} need as many processes; at most {most} run here ({limit})."
    raise LimitReached(limit, detail, PARTIES_HINT, 422, retry_after_s=0)


def _describe_memory(state: State, demand: Demand) -> str:
    """The memory that a training needs, and what it is made of."""
    model = format_bytes(_model_bytes(state, state.parties).whole)
    data = format_bytes(sum(map(_data_bytes, state.parties)))
    needed = format_bytes(demand.memory)
    return f"about {needed} of memory, with a model of {model} and {data} for its data"


def party_demand(state: State, party: dict[str, Any]) -> Demand:
    """What one more party of a training takes."""
    size = _model_bytes(state, [*state.parties, party])
    return Demand(0, 1, party_bytes(_model_type(state), size, _data_bytes(party)))


def check_room(
    client: str | None,
    more: Demand,
    used: Mapping[str | None, Demand],
    settings: Settings,
) -> None:
    """See that a client's trainings under way may take more.

    used : by client, what running trainings take.

    Raises
    ------
    LimitReached
    """
    mine, every = used.get(client, NOTHING), sum(used.values(), NOTHING)
    for suffix, amount, most in (
        ("_per_client", mine, client_limit(settings)),
        ("", every, total_limit(settings)),
    ):
        if field := (amount + more).excess(most):
            detail = "Trainings under way take as much as they may here."
            hint = "POST /start-party again once one of them has ended."
            limit = NAMES[field] + suffix
            raise LimitReached(limit, detail, hint, retry_after_s=RETRY_S)
