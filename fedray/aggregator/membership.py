"""Parties that join a federation while it runs, and parties that leave it."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import ray

from fedray import data, placement
from fedray.aggregator.arriving import JoinReply, Newcomer, heard, kept, welcome
from fedray.aggregator.clustering import known
from fedray.aggregator.global_model import Lineage
from fedray.aggregator.party_actors import Crew, party_actor
from fedray.aggregator.plan import AggregatorPlan
from fedray.aggregator.roll import counted, grown, problems, without
from fedray.aggregator.startup import start_party
from fedray.checkpoint import RunFolder, with_changes, write_config
from fedray.config import FederationConfig, PartySpec, changes, present
from fedray.errors import ConfigError
from fedray.placement import ActorPool


class Turnover:
    """Takes calls beside the round loop; what they change waits for the next round.

    Who joins or leaves stands in the run's config.yaml before it is answered, so that a
    restarted aggregator and a resumed run know of it. Whoever has left is not asked
    again, not even for the round under way should that have to be run anew.

    lineages : of the loop, which adds to them.
    """

    def __init__(self, plan: AggregatorPlan, crew: Crew, lineages: list[Lineage]):
        self.plan, self.crew, self.lineages = plan, crew, lineages
        self.config = plan.config  # with all that was asked for so far
        self.lock, self.is_open = threading.Lock(), threading.Event()
        self.round = 0  # the last that has begun
        self.first = 1  # that is not over, which calls may still change
        self.newcomers: list[Newcomer] = []

    def restore(self) -> AggregatorPlan:
        """Go on as a restarted aggregator; actors that the first one started died too.

        Raises
        ------
        PlacementError
            If no node takes a party that had joined.
        """
        folder = Path(self.plan.folder)
        since = RunFolder(folder).n_kept() + 1
        self.config = with_changes(folder, self.plan.config)
        self.plan = self._with(self.config)
        for place, party in enumerate(self.config.parties):
            if party.left is not None and party.left <= since:
                self.crew.dismiss(party.name)
            elif party.name not in self.crew.actors:
                pool = self._place(self.config, place)
                self.crew.seat(pool, start_party(self.plan, pool, party.name))
        return self.plan

    def open(self, done: int) -> None:
        """Take calls from here on; `done` is the last round that is over."""
        self.round, self.first = done, done + 1
        self.is_open.set()

    def join(self, party: PartySpec, handler: data.HandlerSource | None) -> JoinReply:
        """Start a party's actor, hear what it has, and let it in with the next round.

        `handler` : how it reads its data, if not as all others do.

        Raises
        ------
        ConfigError, PlacementError, JoinFailed, RunFolderError
            And nothing has changed.
        """
        self.is_open.wait()
        if again := self._asked_before(party):
            return again
        party = kept(party, handler, self.plan.folder)
        config = self._grown(party)
        plan, pool = self._with(config), self._place(config, len(config.parties) - 1)
        actor = start_party(plan, pool, party.name)
        try:
            joined = heard(actor, pool, config)
            with self.lock:
                config = self._grown(party)  # the round may be another by now
                write_config(Path(plan.folder), config)
                self.config = config
                self.newcomers.append(Newcomer(pool, actor, joined))
        except BaseException:
            ray.kill(actor)
            raise
        return welcome(joined, config.parties[-1])

    def leave(self, name: str) -> int:
        """Ask a party for nothing after the round under way; says which that is.

        Raises
        ------
        ConfigError, RunFolderError
            If there is no such party, or the others could not go on without it.
        """
        self.is_open.wait()
        with self.lock:
            config = without(self.config, name, self.first)
            if config is not self.config:
                self._check(config)
                write_config(Path(self.plan.folder), config)
                self.config = config
            return self.round

    def begin(self, round: int) -> AggregatorPlan:
        """Let in who has joined, and let go who has left; called as a round begins."""
        with self.lock:
            self._write_down_who_was_counted()
            self.round = self.first = round
            for new in self.newcomers:
                self.crew.seat(new.pool, new.actor)
                self.crew.heard(new.pool.actors[0], new.joined)
                sizes = self.crew.n_train
                self.crew.n_train = np.concatenate([sizes, new.joined.n_train])
            self.plan = self._with(self.config)
            if self.newcomers:
                groups = known(self.config, Path(self.plan.folder))
                for lineage in self.lineages:
                    lineage.parties = groups[lineage.group]
            self.newcomers.clear()
            for party in self.config.parties:
                if party.left is not None and party.left <= round:
                    self.crew.dismiss(party.name)
            return self.plan

    def _write_down_who_was_counted(self) -> None:
        config = self.config
        for lineage in self.lineages:
            if lineage.last:
                config = counted(config, lineage.parties, lineage.last)
        if config is not self.config:
            write_config(Path(self.plan.folder), config)
            self.config = config

    def there(self, lineage: Lineage, round: int) -> np.ndarray:
        """Places of a lineage's parties that may be chosen for a round."""
        return self._seated(present(self.plan.config, lineage.parties, round))

    def whose_tests(self, lineage: Lineage, round: int) -> np.ndarray | None:
        """Places of those whose samples tell how good it is; None: everyone's."""
        there = self.there(lineage, round)
        is_everyone = len(there) == self.plan.config.num_parties
        return None if is_everyone else there

    def still_there(
        self, lineage: Lineage, chosen: np.ndarray, round: int
    ) -> np.ndarray:
        """The chosen of an earlier round without who has left; all if none is left."""
        left = self._seated(present(self.plan.config, chosen, round))
        return left if len(left) else self.there(lineage, round)

    def moved(self, lineage: Lineage) -> tuple[list[str], list[str]]:
        """Names of a lineage's parties that came and went with the round under way."""
        config, round = self.plan.config, self.round
        if round not in changes(config):
            return [], []
        parties = [config.parties[place] for place in lineage.parties.tolist()]
        came = [p.name for p in parties if p.joined == round > 1 and p.left != round]
        return came, [party.name for party in parties if party.left == round]

    def _seated(self, places: np.ndarray) -> np.ndarray:
        if not changes(self.plan.config):
            return places
        return self.crew.seated(places)

    def _with(self, config: FederationConfig) -> AggregatorPlan:
        handlers = dict(self.plan.handlers)
        for name in config.handlers():
            handlers[name] = handlers.get(name) or data.named(name)
        return dataclasses.replace(self.plan, config=config, handlers=handlers)

    def _asked_before(self, party: PartySpec) -> JoinReply | None:
        """Ray or a person asks again: the answer is the same."""
        names = [known.name for known in self.config.parties]
        if party.name not in names:
            return None
        known = self.config.parties[names.index(party.name)]
        if known.left is not None or known.data != party.data:
            told = f"party name {party.name!r} is taken, by the one with {known.data}"
            raise ConfigError([f"{told}; choose another"])
        pool = next(pool for pool in self._pools() if party.name in pool.actors)
        actor = ray.get_actor(party_actor(self.plan.run, party.name))
        return welcome(heard(actor, pool, self.config), known)

    def _grown(self, party: PartySpec) -> FederationConfig:
        config = grown(self.config, party, self.round + 1)
        self._check(config)
        return config

    def _check(self, config: FederationConfig) -> None:
        """See that every round to come can be run with other parties."""
        found = problems(config, self.config)
        for lineage in self.lineages:
            if not found and not len(present(config, lineage.parties, self.round + 1)):
                found.append(f"nobody would be left in {lineage.group}")
        if found:
            raise ConfigError(found)

    def _place(self, config: FederationConfig, place: int) -> ActorPool:
        taken = [pool.placement.node_id for pool in self._pools()]
        return placement.place_new_party(config, place, placement.nodes(), taken)

    def _pools(self) -> list[ActorPool]:
        return [*self.crew.pools, *(new.pool for new in self.newcomers)]
