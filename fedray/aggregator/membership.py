"""Membership: parties that join a federation while it runs, and parties that leave it.

The config of a run holds the rounds of each party. Functions here make the config after
a change; `Membership` takes the calls that ask for one.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from fedray import data, fusion, placement, policy, user_code
from fedray.aggregator.clustering import Groups, known_groups
from fedray.aggregator.party_actors import FrozenSource, reason
from fedray.aggregator.population import EdgeCounts, Population
from fedray.aggregator.startup import AggregatorPlan, add_party
from fedray.checkpoint import (
    RunFolder,
    add_inputs,
    digest_party_inputs,
    with_membership_changes,
    write_config,
)
from fedray.config import (
    SIMILARITY,
    FederationConfig,
    PartySpec,
    change_rounds,
    describe_unknown,
    members_in_round,
)
from fedray.errors import ConfigError, JoinFailed, RunFolderError, format_count
from fedray.messages import PartyInfo, RoundReport
from fedray.placement import ActorPool
from fedray.untrusted_text import name_problem
from fedray.user_code import Source

N_SUMMED = 3  # parties of a sum, unless there never were more than two
HANDLERS = "handlers"  # folder within the run's: code that came with parties
LastReport = tuple[np.ndarray, RoundReport]  # a global model's parties, its last round


@dataclass(frozen=True)
class JoinReply:
    """The answer to a party that joins.

    Of a run that was not alive only the round is known: its data is looked at when the
    run goes on.
    """

    round: int  # the first that it may be chosen for
    node: str = ""  # Ray node id, hex
    device: str = ""  # cpu or cuda
    n_train: int = 0
    n_test: int = 0


@dataclass(frozen=True, eq=False)
class NewParty:
    """A party that waits for the next round to begin, with its actor.

    info : what it said of its data; None: it has not been asked yet.
    """

    pool: ActorPool
    actor: ActorHandle
    info: PartyInfo | None = None


@dataclass(frozen=True, eq=False)
class RosterChange:
    """What a round begins with that is not as it was in the round before.

    plan : with the config of the round.
    groups : places of each group's parties; None: as before.
    removed : names of parties whose actors are to be ended.
    """

    plan: AggregatorPlan
    groups: Groups | None = None
    added: list[NewParty] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def config_with(
    config: FederationConfig, party: PartySpec, round: int
) -> FederationConfig:
    """The config with one more party, which may be chosen from a round on.

    Raises
    ------
    ConfigError
        If that round never comes, or its parties are fixed.
    """
    _require_changeable(config)
    if round > config.rounds:
        why = f"round {config.rounds}, the last one, has begun"
        raise ConfigError([f"party {party.name!r} cannot join any more: {why}"])
    parties = (*config.parties, party.with_changes(joined=round, left=None))
    return config.with_changes(parties=parties, num_parties=len(parties))


def config_without(config: FederationConfig, name: str, round: int) -> FederationConfig:
    """The config with a party that leaves in a round; the same if it has left.

    Raises
    ------
    ConfigError
        If there is no such party, or parties are fixed.
    """
    _require_changeable(config)
    names = [party.name for party in config.parties]
    if name not in names:
        raise ConfigError([describe_unknown("party", name, names)])
    place = names.index(name)
    end = config.parties[place].left
    has_left = end is not None and end <= round
    return config if has_left else _with_departure(config, place, round)


def config_after_round(
    config: FederationConfig, places: np.ndarray, report: RoundReport
) -> FederationConfig:
    """The config after a round: who left while it ran, and was counted, left after it.

    So the config that is kept gives the same run again.

    places : of the parties whose round it was.
    """
    if report.round in change_rounds(config):
        for place in places[places < len(config.parties)].tolist():
            party = config.parties[place]
            if party.left == report.round and party.name not in report.left:
                config = _with_departure(config, place, report.round + 1)
    return config


def problems(after: FederationConfig, before: FederationConfig) -> list[str]:
    """Why a federation cannot go on with other parties than before."""
    is_grown = len(after.parties) > len(before.parties)
    if is_grown and after.groups and after.groups.by == SIMILARITY:
        return ["groups by similarity take in nobody later: it was not compared"]
    mistakes = after.problems()
    if is_grown:
        args = after.data_args_of(-1)
        mistakes += data.problems(after.handler_of(-1), after.model_type, args)
    return mistakes or fusion.rule_problems(after, policy.fewest_updates(after))


def stop_problems(
    after: FederationConfig, before: FederationConfig, stops: Mapping[str | None, str]
) -> list[str]:
    """Why a party that joins would have nothing to train: its group has stopped.

    stops : by group why its training stopped; empty where it did not.
    """
    if len(after.parties) == len(before.parties) or not any(stops.values()):
        return []
    party, group = after.parties[-1], None
    if after.groups is not None:
        group = party.fields.get(after.groups.by)
    stop = stops.get(group)
    return [f"party {party.name!r} cannot join any more: {stop}"] if stop else []


def _with_departure(
    config: FederationConfig, place: int, round: int
) -> FederationConfig:
    """The config with a party that takes part in no round from this one on."""
    parties = list(config.parties)
    end = max(round, parties[place].joined or 1)
    parties[place] = parties[place].with_changes(left=end)
    return config.with_changes(parties=tuple(parties))


def _sum_problems(config: FederationConfig, n_parties: int) -> list[str]:
    """Why sums of so many parties that are left would not be opened."""
    least = config.min_sum or N_SUMMED
    if n_parties >= least:
        return []
    many = format_count(n_parties, "party", "parties")
    return [f"{many} would be left, and a sum needs {least} (min_sum)"]


def _require_changeable(config: FederationConfig) -> None:
    if config.partition is not None:
        why = "parties of a partition neither join nor leave: one data set is cut up"
        raise ConfigError([f"{why} for as many as there are"])


class Membership:
    """Takes calls beside the round loop; what they change waits for the next round.

    Who joins or leaves stands in the run's config.yaml before it is answered, so that a
    restarted aggregator and a resumed run know of it. Whoever has left is not asked
    again, not even for the round under way should that have to be run anew.

    plan : with the config of the round under way.
    config : with all that was asked for so far.
    """

    def __init__(self, plan: AggregatorPlan, pools: Iterable[ActorPool]):
        self.plan, self.config = plan, plan.config
        self._pools = list(pools)
        self._groups: Groups = {}
        self._lock, self._is_open = threading.Lock(), threading.Event()
        self._round = 0  # the last that has begun
        self._changeable = 1  # the first round that calls may still change
        self._new: list[NewParty] = []
        self._stops: dict[str | None, str] = {}  # by group why training stopped
        self.population: Population | None = None  # edges that the config does not list
        if plan.config.edges:
            config = plan.config
            self.population = Population(Path(plan.folder), config, plan.config.edges)
        self._edge_counts: EdgeCounts | None = None
        if plan.config.has_edges:
            self._edge_counts = EdgeCounts(Path(plan.folder))

    def restore(self) -> RosterChange:
        """What a restarted aggregator begins with; actors it had started died too.

        Raises
        ------
        PlacementError
            If no node takes a party that had joined.
        """
        folder = Path(self.plan.folder)
        since = RunFolder(folder).last_saved_round() + 1
        self.config = with_membership_changes(folder, self.plan.config)
        self.plan = self.plan.with_config(self.config)
        actors = {name for pool in self._pools for name in pool.actors}
        added, removed = [], []
        for place, party in enumerate(self.config.parties):
            if party.left is not None and party.left <= since:
                removed.append(party.name)
            elif party.name not in actors:
                pool = self._place(self.config, place)
                added.append(NewParty(pool, add_party(self.plan, pool, party.name)))
                self._pools.append(pool)
        return self._change(added, removed)

    def count_edges(self) -> dict[str, int]:
        """Edges by state, and bytes since the last call; {} of a run without any."""
        return self._edge_counts.count() if self._edge_counts else {}

    def find_groups(self, plan: AggregatorPlan) -> Groups | None:
        """Places of each group's parties, edges that have enrolled among them.

        None if parties must be compared first.
        """
        groups = known_groups(plan)
        if groups is None or self.population is None:
            return groups
        return {None: np.concatenate([groups[None], self.population.places()])}

    def open(self, done: int, groups: Groups) -> None:
        """Take calls from here on.

        done : the last round that is over.
        groups : places of the parties of each global model, as far as they are known.
        """
        self._round, self._changeable = done, done + 1
        self._groups = groups
        self._is_open.set()

    def join(
        self,
        party: PartySpec,
        handler: data.HandlerSource | None,
        payload_ref: ObjectRef | None = None,
        frozen: FrozenSource | None = None,
    ) -> JoinReply:
        """Start a party's actor, ask what it has, and let it in with the next round.

        `handler` : how it reads its data, if not as all others do.
        `payload_ref` : weights that a step of its training is tried from; `frozen`:
        those that travel once.

        Raises
        ------
        ConfigError, PlacementError, JoinFailed, RunFolderError
            And nothing has changed.
        """
        self._is_open.wait()
        if reply := self._repeated_reply(party):
            return reply
        party = _keep_handler(party, handler, self.plan.folder)
        config = self._config_after(party)
        plan = self.plan.with_config(config)
        pool = self._place(config, len(config.parties) - 1)
        actor = add_party(plan, pool, party.name)
        try:
            info = None  # of an edge, which may not have enrolled
            if not party.edge:
                info = _ask_info(actor, pool, config, payload_ref, frozen)
            with self._lock:
                config = self._config_after(party)  # the round may be another by now
                add_inputs(Path(plan.folder), digest_party_inputs(party))
                write_config(Path(plan.folder), config)
                self.config = config
                self._new.append(NewParty(pool, actor, info))
        except BaseException:
            if not pool.kind:
                ray.kill(actor)
            raise
        return _reply(info, config.parties[-1])

    def leave(self, name: str) -> int:
        """Ask a party for nothing after the round under way, whose number is returned.

        Raises
        ------
        ConfigError, RunFolderError
            If there is no such party, or the others could not go on without it.
        """
        self._is_open.wait()
        with self._lock:
            config = config_without(self.config, name, self._changeable)
            if config is not self.config:
                self._check(config)
                write_config(Path(self.plan.folder), config)
                self.config = config
            return self._round

    def begin(self, round: int, last: Iterable[LastReport]) -> RosterChange:
        """Who is new and who is gone as a round begins.

        last : of each global model that has had a round.
        """
        with self._lock:
            config = self.config
            for places, report in last:
                config = config_after_round(config, places, report)
                self._stops[report.group] = report.stop_note
            if config is not self.config:
                write_config(Path(self.plan.folder), config)
                self.config = config
            self._round = self._changeable = round
            self.plan = self.plan.with_config(config)
            added, self._new = self._new, []
            self._pools += [new.pool for new in added]
            groups = None
            if added or self.population:
                groups = self.find_groups(self.plan)
                self._groups = groups or self._groups
            removed = [
                party.name
                for party in config.parties
                if party.left is not None and party.left <= round
            ]
            return self._change(added, removed, groups)

    def _change(
        self, added: list[NewParty], removed: list[str], groups: Groups | None = None
    ) -> RosterChange:
        names = set(removed)
        self._pools = [pool for pool in self._pools if names.isdisjoint(pool.actors)]
        return RosterChange(self.plan, groups, added, removed)

    def present(self, places: np.ndarray, round: int) -> np.ndarray:
        """Those of some places whose parties may be chosen for a round."""
        config = self.plan.config
        if not change_rounds(config):
            return places
        places = members_in_round(config, places, round)
        placed = [np.array(pool.parties) for pool in self._pools]
        return places[np.isin(places, np.concatenate([places[:0], *placed]))]

    def changes(self, places: np.ndarray) -> tuple[list[str], list[str]]:
        """Names of those of some parties that join and leave with this round."""
        config, round = self.plan.config, self._round
        if round not in change_rounds(config):
            return [], []
        listed = places[places < len(config.parties)]
        parties = [config.parties[place] for place in listed.tolist()]
        joined = [p.name for p in parties if p.joined == round > 1 and p.left != round]
        return joined, [party.name for party in parties if party.left == round]

    def _repeated_reply(self, party: PartySpec) -> JoinReply | None:
        """The reply to a party that has joined already, when a call is repeated."""
        names = [other.name for other in self.config.parties]
        if party.name not in names:
            return None
        other = self.config.parties[names.index(party.name)]
        is_same = (other.data, other.edge) == (party.data, party.edge)
        if other.left is not None or not is_same:
            kind = "an edge" if other.edge else f"the one with {other.data}"
            what = f"party name {party.name!r} is taken, by {kind}"
            raise ConfigError([f"{what}; choose another"])
        if other.edge:
            return _reply(None, other)
        pool = next(pool for pool in self._all_pools() if party.name in pool.actors)
        actor = ray.get_actor(placement.party_actor(self.plan.run, party.name))
        return _reply(_ask_info(actor, pool, self.config), other)

    def _config_after(self, party: PartySpec) -> FederationConfig:
        config = config_with(self.config, party, self._round + 1)
        self._check(config)
        return config

    def _check(self, config: FederationConfig) -> None:
        """See that every round to come can be run with other parties."""
        mistakes = problems(config, self.config)
        mistakes += stop_problems(config, self.config, self._stops)
        for group, places in self._groups.items():
            n = len(members_in_round(config, places, self._round + 1))
            if not mistakes and not n:
                mistakes.append(f"nobody would be left in {group}")
            elif not mistakes and config.secure_aggregation:
                mistakes += _sum_problems(config, n)
        if mistakes:
            raise ConfigError(mistakes)

    def _place(self, config: FederationConfig, place: int) -> ActorPool:
        pools = [pool for pool in self._all_pools() if not pool.kind]
        nodes_in_use = [pool.placement.node_id for pool in pools]
        return placement.place_new_party(config, place, placement.nodes(), nodes_in_use)

    def _all_pools(self) -> list[ActorPool]:
        return [*self._pools, *(new.pool for new in self._new)]


def _keep_handler(
    party: PartySpec, handler: data.HandlerSource | None, folder: str
) -> PartySpec:
    """Keep code that came with a party in the run's folder, which may be resumed.

    Raises
    ------
    RunFolderError
        If the disk refuses.
    """
    if not isinstance(handler, Source) or name_problem(party.name):
        return party  # a bad name is reported with all other mistakes
    own = Path(folder) / HANDLERS / party.name
    try:
        spec = user_code.write(handler, own)
    except OSError as error:
        why = f"cannot write {error.filename}: {error.strerror}"
        raise RunFolderError(folder, why) from None
    return party.with_changes(data_handler=spec)


def _ask_info(
    actor: ActorHandle,
    pool: ActorPool,
    config: FederationConfig,
    payload_ref: ObjectRef | None = None,
    frozen: FrozenSource | None = None,
) -> PartyInfo:
    """Wait until a new actor is up, and ask it for its party's sample counts.

    Raises
    ------
    PlacementError, JoinFailed
        If it cannot start, or cannot take part.
    """
    name = pool.actors[0]
    placement.wait_until_ready({name: actor}, [pool], config.placement_timeout_s)
    try:
        frozen_ref = frozen.ref_of(name) if frozen and payload_ref else None
        info_ref: ObjectRef = (
            actor.join.remote(payload_ref)
            if frozen_ref is None
            else actor.with_frozen.remote(frozen_ref, "join", payload_ref)
        )
        info = ray.get(info_ref, timeout=config.round_timeout_s)
    except RayError as error:
        is_late = isinstance(error, GetTimeoutError)
        why = config.late_text if is_late else reason(error)
        raise JoinFailed({name: why}, "" if is_late else config.errors_log) from None
    if frozen and (strays := frozen.strays({name: info.moved})):
        raise JoinFailed(strays)
    return info


def _reply(info: PartyInfo | None, party: PartySpec) -> JoinReply:
    if info is None:
        return JoinReply(party.joined or 1)
    n_train = int(info.n_train.sum())
    return JoinReply(party.joined or 1, info.node, info.device, n_train, info.n_test)
