"""A party: one model, one party's data. A plain class; `federation` makes actors."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedray import data, models, policy
from fedray.config import FederationConfig
from fedray.errors import FedrayError, PartyError, WeightsMismatch
from fedray.messages import Here, Joined, Report, Score, Update
from fedray.models import Blueprint
from fedray.weights import Weights, distance, mismatch, n_bytes


@dataclass(frozen=True)
class PartyPlan:
    """What a party needs to know to start. Small; travels by value."""

    name: str
    config: FederationConfig
    blueprint: Blueprint
    handler: data.HandlerSource


class Party:
    """Holds one party's model and data for its actor's life.

    Data and model are made on first use, not in the constructor: a restarted actor
    reloads by itself, and what goes wrong arrives as an error that says so.
    `here` is asked once, inside the actor.
    """

    def __init__(self, plan: PartyPlan, here: Callable[[], Here]):
        self.plan, self.name = plan, plan.name
        self.here = here()
        models.named(plan.blueprint.model_type)  # imports while the aggregator starts
        self._loaded = None

    def __repr__(self) -> str:
        return f"party:{getattr(self, 'name', '?')}"  # Ray asks before __init__ too

    def join(self) -> Joined:
        """Load data and model, see that they fit, and say how much there is."""
        with self._told("joining"):
            samples, model, (train, test) = self._ready()
            model.probe(self.name, *train)
            if samples.n_test:
                model.probe(self.name, *test)
            return Joined(
                self.name,
                self.here.node,
                model.device,
                samples.n_train,
                samples.n_test,
            )

    def train(self, round: int, weights: Weights) -> tuple[Report, Update]:
        """Train from `weights` on the party's own samples.

        Everything random comes from (seed, round, name), nothing is remembered: a round
        trained twice gives the same update. The update's arrays are the model's own,
        valid until the next call; Ray copies them on their way out.
        """
        with self._told(f"training round {round}"):
            samples, model, (train, _) = self._ready()
            started = time.perf_counter()
            self._fits(weights)
            model.load(weights)
            seed = policy.seed_for(self.plan.config.seed, round, self.name)
            loss = model.train(*train, seed)
            update = Update(model.weights(), samples.n_train)
            moved = self.plan.blueprint.parameters
            report = Report(
                party=self.name,
                round=round,
                node=self.here.node,
                n_samples=samples.n_train,
                loss=loss,
                drift=distance(update.weights, weights, moved),
                seconds=time.perf_counter() - started,
                n_bytes=n_bytes(weights),
            )
            return report, update

    def evaluate(self, weights: Weights) -> Score:
        """Loss and accuracy of `weights` on the party's own test samples."""
        with self._told("evaluating"):
            samples, model, (_, test) = self._ready()
            self._fits(weights)
            loss = accuracy = None
            if samples.n_test:
                model.load(weights)
                loss, accuracy = model.evaluate(*test)
            size = n_bytes(weights)
            node = self.here.node
            return Score(self.name, node, samples.n_test, loss, accuracy, size)

    def _fits(self, weights: Weights) -> None:
        different = mismatch(weights, self.plan.blueprint.schema)
        if different:
            raise WeightsMismatch("the weights sent to this party", different)

    def _ready(self):
        if self._loaded is None:
            samples = self._read()
            blueprint = self.plan.blueprint
            adapter = models.named(blueprint.model_type)
            model = adapter.make(blueprint, self.plan.config, self.here.device)
            train = model.ready(samples.x_train, samples.y_train)
            test = model.ready(samples.x_test, samples.y_test)
            self._loaded = samples, model, (train, test)
        return self._loaded

    def _read(self) -> data.Samples:
        """Samples; foreign errors keep their message here, as it may quote data."""
        try:
            return self._samples()
        except FedrayError:
            raise
        except Exception as error:
            traceback.print_exc()  # to this actor's own log on its own node
            message = "its message is in this party's log only, since it may quote data"
            kind, place = type(error).__name__, _place(error)
            raise PartyError(self.name, "reading", kind, message, place) from None

    def _samples(self) -> data.Samples:
        config = self.plan.config
        if config.partition is None:
            path = next(p.data for p in config.parties if p.name == self.name)
            return data.load(self.plan.handler, path)
        whole = data.load(self.plan.handler, config.partition.source)
        names = config.party_names()
        index = names.index(self.name)
        return data.share(whole, index, len(names), config.partition, config.seed)

    @contextmanager
    def _told(self, stage: str) -> Iterator[None]:
        """Reduce what goes wrong to type, message and place before it travels."""
        try:
            yield
        except PartyError:
            raise
        except Exception as error:
            place = "" if isinstance(error, FedrayError) else _place(error)
            kind, message = type(error).__name__, str(error)[:2000]
            raise PartyError(self.name, stage, kind, message, place) from None


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
