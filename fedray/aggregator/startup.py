"""Startup of a run: the aggregator's plan, party actors, their sample counts."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from fedray import data, placement
from fedray.aggregator.global_model import PlateauRate
from fedray.aggregator.party_actors import (
    ActorCall,
    PartyActors,
    reason,
    wait_for_answers,
)
from fedray.config import PARTY_DIR, FederationConfig, schedule_of
from fedray.config.schedulers import ReduceLROnPlateau
from fedray.edges.group import EdgeGroupPlan
from fedray.edges.named import NamedEdges
from fedray.edges.population import EdgePopulation
from fedray.ensemble import workflow_of
from fedray.errors import JoinFailed, PlacementError
from fedray.messages import PartyInfo, RoundReport
from fedray.models import Blueprint
from fedray.party import GroupPlan, PartyGroup, SecurePartyGroup
from fedray.placement import ActorPool, actor_of_pool, party_actor
from fedray.survey import DataCodes
from fedray.user_code import IN_MEMORY, is_in_memory

TEST_DATA_RECORD = "test_data.sha256"  # in the run's folder: a digest of `test_data`
T = TypeVar("T")
N_NAMED = 3  # parties whose budget is told as a run begins
MAX_EDGE_CALLS = 10_000  # that wait for edges at a time
NAMES_FREE_S = 20.0  # actors of a killed driver are gone by then

Member = tuple[FederationConfig, Blueprint]  # what a party trains by


@dataclass(frozen=True)
class AggregatorPlan:
    """What an aggregator needs to know to start.

    handlers : how parties read their data, by the name that the config gives.
    folder : of the run, on the aggregator's node.
    members : of an ensemble, in config order: what each party trains by.
    run_id : no other run has it; parties keep their own state under it.
    recorded_rounds : rounds done before, in which parties kept a digest of their data.
    changed_data : data of this process that is not what the run began with.
    changed_rates : what of the learning rate is another from here on, in sentences.
    codes : made of the parties' surveys, by which all of them read their data.
    """

    run: str
    config: FederationConfig
    blueprint: Blueprint
    handlers: dict[str, data.HandlerSource]
    folder: str
    members: tuple[Member, ...] = ()
    run_id: str = ""
    recorded_rounds: int = 0
    changed_data: tuple[str, ...] = ()
    changed_rates: tuple[str, ...] = ()
    codes: DataCodes | None = None

    def of(self, place: int) -> Member:
        """What the party at this place in the config trains by."""
        return self.members[place] if self.members else self.member

    @property
    def member(self) -> Member:
        """What all parties train by, unless they are an ensemble's members."""
        return self.config, self.blueprint

    def blueprint_of(self, member: str | None) -> Blueprint:
        """The model of an ensemble's member; None: the one that all share."""
        if member is None or not self.members:
            return self.blueprint
        return self.members[self._places[member]][1]

    def with_blueprint(
        self, member: str | None, blueprint: Blueprint
    ) -> "AggregatorPlan":
        """The plan with another model of a member, or of all who share one."""
        if member is None or not self.members:
            return dataclasses.replace(self, blueprint=blueprint)
        place, members = self._places[member], list(self.members)
        members[place] = (members[place][0], blueprint)
        return dataclasses.replace(self, members=tuple(members))

    @property
    def _places(self) -> dict[str, int]:
        """Places of an ensemble's members, by name."""
        return {party.name: place for place, party in enumerate(self.config.parties)}

    def with_config(self, config: FederationConfig) -> "AggregatorPlan":
        """The plan for other parties, with the handlers that they need."""
        new = {name: self._handler(name) for name in config.handlers()}
        return dataclasses.replace(self, config=config, handlers=self.handlers | new)

    def evaluation_plans(self) -> dict[str | None, GroupPlan]:
        """What each global model is evaluated by: an ensemble's member by its own.

        None stands for all groups that have no entry.
        """
        test_data = self.config.test_data or ""
        if not self.members:
            handler = self._handler(self.config.data_handler, test_data)
            record = f"{self.folder}/{TEST_DATA_RECORD}"
            return {None: self._evaluation_plan(self.member, handler, record)}
        plans: dict[str | None, GroupPlan] = {}
        for place, party in enumerate(self.config.parties):
            handler = self._handler(self.config.handler_of(place), test_data)
            record = f"{self.folder}/{party.name}-{TEST_DATA_RECORD}"
            member = self.members[place]
            plans[party.name] = self._evaluation_plan(member, handler, record)
        return plans

    @property
    def own_folder(self) -> str:
        """Where parties keep what is theirs of this run, on their own nodes."""
        if not self.run_id:
            return ""
        return f"{self.config.party_dir or PARTY_DIR}/{self.run_id}"

    def data_record(self, place: int) -> str:
        """Where the party at this place keeps a digest of its data, on its own node."""
        if not self.run_id:
            return ""
        own = f"{self.config.party_name(place)}/" if self.config.parties else ""
        return f"{self.own_folder}/{own}data.sha256"

    def plateau_rate(self, place: int, last: RoundReport | None) -> PlateauRate | None:
        """The rate of a party's global model, where the aggregator decides on it."""
        own, blueprint = self.of(place)
        schedule = schedule_of(own)
        if not isinstance(schedule, ReduceLROnPlateau):
            return None
        return PlateauRate(schedule, blueprint.settle(own).learning_rate, last)

    def model_notes(self) -> list[str]:
        """What people must know of the models, each thing once."""
        blueprints = [blueprint for _, blueprint in self.members or (self.member,)]
        return [*dict.fromkeys(note for one in blueprints for note in one.notes)]

    def _evaluation_plan(
        self, member: Member, handler: data.HandlerSource, record: str
    ) -> GroupPlan:
        return GroupPlan(
            "", range(0), *member, handler, data_record=record, codes=self.codes
        )

    def handler_of(self, place: int) -> data.HandlerSource:
        """How the party at this place reads its data; of data in memory, its own."""
        config = self.config
        return self._handler(config.handler_of(place), config.source_of(place))

    def _handler(self, name: str, source: str = "") -> data.HandlerSource:
        name = IN_MEMORY if is_in_memory(source) else name
        handler = self.handlers.get(name) or data.named(name)
        return handler.only(source) if isinstance(handler, data.InMemory) else handler


def start_edge_group(plan: AggregatorPlan, pool: ActorPool, actor: str) -> ActorHandle:
    """Start an actor that stands for edges."""
    run, name = plan.run, actor_of_pool(plan.run, pool, actor)
    kind = EdgePopulation if pool.kind == "edges" else NamedEdges
    own = GroupPlan(actor, range(0), *plan.member, "", run, codes=plan.codes)
    options = placement.node_affinity(pool.placement.node_id, soft=True)
    remote = ray.remote(kind).options(
        name=name, max_restarts=-1, max_task_retries=-1,
        max_concurrency=MAX_EDGE_CALLS, **options,
    )  # fmt: skip
    group = EdgeGroupPlan(own, plan.run_id, plan.folder)
    return start_named(remote, group, placement.locate_actor, placement.send_departure)


def add_party(plan: AggregatorPlan, pool: ActorPool, name: str) -> ActorHandle:
    """Start a party's actor while the run goes on; an edge may share one."""
    if pool.kind:
        with contextlib.suppress(ValueError):
            return ray.get_actor(actor_of_pool(plan.run, pool, name))
    return start_party(plan, pool, name)


def group_plan(plan: AggregatorPlan, pool: ActorPool, name: str) -> GroupPlan:
    """What one of a pool's actors needs to know to start."""
    first = pool.parties.start
    handler = plan.handler_of(first)
    return GroupPlan(
        name, pool.parties, *plan.of(first), handler, plan.run,
        plan.data_record(first), plan.own_folder, codes=plan.codes,
    )  # fmt: skip


def start_party(plan: AggregatorPlan, pool: ActorPool, name: str) -> ActorHandle:
    """Start one of a pool's actors; Ray restarts it whenever it dies."""
    if pool.kind:
        return start_edge_group(plan, pool, name)
    group = group_plan(plan, pool, name)
    options = dict(pool.placement.options(), max_restarts=-1, max_task_retries=3)
    is_masked = plan.config.secure_aggregation
    group_class = SecurePartyGroup if is_masked else PartyGroup
    actor = ray.remote(group_class).options(name=party_actor(plan.run, name), **options)
    is_here = pool.placement.node_id == ray.get_runtime_context().get_node_id()
    most = plan.config.max_memory if is_here else None
    locate = functools.partial(placement.locate_actor, most)
    return start_named(actor, group, locate, placement.send_training_progress)


def start_named(actor: Any, *arguments: Any) -> ActorHandle:
    """Start a named actor, waiting until a killed one of that name is gone.

    Raises
    ------
    PlacementError
        If the name is still taken: a run of this name is alive.
    """
    until = time.monotonic() + NAMES_FREE_S
    while True:
        try:
            return actor.remote(*arguments)
        except ValueError as error:
            if "already taken" not in str(error) or time.monotonic() > until:
                wanted = "an actor name of its own"
                raise PlacementError("this run", wanted, str(error)) from None
            time.sleep(0.5)


def gather(
    actors: PartyActors,
    plan: AggregatorPlan,
    payload_of: Callable[[int], ObjectRef],
) -> list[str]:
    """Ask every actor how many samples its parties have; notes about who is silent.

    payload_of : the weights that the party at a place in the config starts from.

    An actor whose node is gone now may come back later. A party that cannot take part
    (bad data, another model) is a mistake to be mended first.

    Raises
    ------
    JoinFailed
        Naming every party that cannot take part, or all if none answered.
    """
    until = time.monotonic() + plan.config.round_timeout_s
    lost: dict[str, str] = {}
    refused: dict[str, str] = {}
    infos, calls = dict[str, PartyInfo](), dict[ActorCall, str]()
    for pool in actors.pools:
        payload_ref = payload_of(pool.parties.start)
        for name in pool.actors:
            calls[actors.call(name, "join", payload_ref)] = name
    for name, answer in wait_for_answers(calls, until, actors.stop):
        if isinstance(answer, PartyInfo):
            actors.record_contact(name, answer)
            infos[name] = answer
        elif isinstance(answer, RayTaskError):
            refused[name] = reason(answer)
        else:
            lost[name] = reason(answer)
    refused = refused or _find_misfits(actors, plan, infos)
    late = dict.fromkeys(calls.values(), plan.config.late_text)
    if (refused or not infos) and not actors.stop.is_set():
        log = plan.config.errors_log if refused else ""
        raise JoinFailed(_in_order(refused | lost | late, actors), log)
    lost |= {name: f"it {why}" for name, why in late.items()}
    notes = [f"party {name} has not joined: {why}" for name, why in lost.items()]
    return notes + _budget_notes(_in_order(infos, actors))


def _budget_notes(infos: Mapping[str, PartyInfo]) -> list[str]:
    """What the run will spend of the data that comes nearest to its limit."""
    budgets = {name: info.budget for name, info in infos.items() if info.budget}
    nearest = sorted(budgets, key=lambda n: -budgets[n].share)[:N_NAMED]
    return [f"party {name}: {budgets[name]}" for name in nearest]


def _find_misfits(
    actors: PartyActors, plan: AggregatorPlan, infos: Mapping[str, PartyInfo]
) -> dict[str, str]:
    """Parties that joined and do not fit the others, or what travels; and why."""
    # in config order: which members differ is no matter of who answered first
    joined = _in_order(infos, actors)
    misfits = workflow_of(plan.config).check_joined(joined, Path(plan.folder))
    if not misfits and actors.frozen is not None:
        return actors.frozen.strays(actors.moved)
    return misfits


def _in_order(by_actor: Mapping[str, T], actors: PartyActors) -> dict[str, T]:
    """The same in config order, not in that of the answers."""
    return {name: by_actor[name] for name in actors.actors if name in by_actor}
