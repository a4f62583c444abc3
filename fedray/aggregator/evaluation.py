"""Evaluates global weights on the parties' test samples, or on `test_data`."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import ray
from ray import ObjectRef

from fedray import models, policy
from fedray.aggregator.global_model import GlobalModel
from fedray.aggregator.party_actors import (
    ActorCall,
    PartyActors,
    reason,
    wait_for_answers,
)
from fedray.aggregator.round import RoundStep
from fedray.aggregator.round_record import Evaluation
from fedray.aggregator.startup import AggregatorPlan
from fedray.config import FederationConfig, PartySpec
from fedray.errors import ConfigError
from fedray.messages import ActorLocation, Score, Scores
from fedray.party import GroupPlan, PartyGroup
from fedray.weights import Weights


class Evaluator:
    """Evaluates where the samples are: at the parties, or in this process.

    Loads `test_data` at once, if there is any.

    payload_of : weights that `test_data` is tried with, by group.
    """

    def __init__(
        self,
        actors: PartyActors,
        plan: AggregatorPlan,
        payload_of: Callable[[str | None], ObjectRef],
    ):
        self.actors = actors
        self._plans = plan.evaluation_plans()
        self._local: dict[str | None, PartyGroup] = {}  # that hold `test_data`
        self._metric_notes: set[str] = set()  # that people have been told
        for group, own in self._plans.items():
            models.prepare_metrics(own.config)
            if own.config.test_data:
                local = PartyGroup(evaluation_plan(own), self._location)
                joined = self._ask(local, group, "join", ray.get(payload_of(group)))
                actors.data_changes.note_test_data(joined.data)
                self._local[group] = local

    def require_tests(self, models: Iterable[GlobalModel]) -> None:
        """See that models whose training goes by scores will have any.

        Raises
        ------
        ConfigError
        """
        for model in models:
            group = model.group if model.group in self._plans else None
            config = self._plans[group].config
            if not config.goals() or group in self._local:
                continue
            if not any(self.actors.with_tests(model.parties)):
                whose = f"party of {model.group}" if model.group else "party"
                raise ConfigError([policy.describe_missing_tests(config, whose)])

    def score_if_due(self, step: RoundStep, late: Collection[str]) -> Evaluation:
        """Loss and accuracy over all test samples, if this round is evaluated.

        late : actors that are not asked: they would be waited for twice in a round.
        """
        started = time.monotonic()
        group = step.model.group if step.model.group in self._plans else None
        config = self._plans[group].config
        if not step.record.aggregated or not is_due(config, step.since, step.round):
            return Evaluation(seconds=time.monotonic() - started)
        if group not in self._local and not config.scores_at_parties:
            return Evaluation(seconds=time.monotonic() - started)
        if group in self._local:
            payload, local = ray.get(step.model.last_broadcast.ref), self._local[group]
            ask = self._ask
            score = ask(local, group, "evaluate", payload, round=step.round)
            scores = [score.scores]
            notes: list[str] = []
        else:
            until = started + config.round_timeout_s
            scores, notes = self._ask_parties(step, late, until)
        loss, accuracy, n_samples = policy.merge_scores(scores)
        metrics, undefined = policy.merge_metrics(scores), tuple[str, ...]()
        if config.metrics and n_samples:
            values, undefined = measure(config, scores, accuracy)
            accuracy = values.pop("accuracy", accuracy)
            metrics |= values
        notes += self._new_notes(undefined, group)
        seconds = time.monotonic() - started
        by_party = None if group in self._local else policy.merge_parties(scores)
        return Evaluation(
            loss, accuracy, n_samples, seconds, tuple(notes), metrics, undefined,
            by_party,
        )  # fmt: skip

    def _new_notes(self, undefined: Sequence[str], group: str | None) -> list[str]:
        """Those of metrics without a value that were not told before."""
        whose = f"{group}: " if group else ""
        lines = [whose + note for note in undefined]
        new = [line for line in lines if line not in self._metric_notes]
        self._metric_notes.update(new)
        return new

    def _ask(
        self,
        local: PartyGroup,
        group: str | None,
        method: str,
        payload: Weights,
        **named: Any,
    ) -> Any:
        """Call a method of what holds `test_data`, with weights that travel once."""
        frozen = self.actors.frozen
        frozen_ref = frozen.ref_of(group or "") if frozen else None
        if frozen_ref is None:
            return getattr(local, method)(payload, **named)
        return local.with_frozen(ray.get(frozen_ref), method, payload, **named)

    def _ask_parties(
        self, step: RoundStep, late: Collection[str], until: float
    ) -> tuple[list[Scores], list[str]]:
        """Scores that the parties' actors send in time, in config order; and notes."""
        actors, broadcast = self.actors, step.model.last_broadcast
        notes: list[str] = []
        calls: dict[ActorCall, str] = {}
        scores: dict[str, Scores | None] = {}
        for name, share, parties in actors.with_tests(step.tested):
            if name not in late:
                arguments = broadcast.ref, share, parties, step.round
                call = actors.call(name, "evaluate", *arguments)
                calls[call] = name
                scores[name] = None  # here, so that sums go in config order
        if late and not calls:
            notes.append("not evaluated: all who have test samples still train")
        for name, answer in wait_for_answers(calls, until, actors.stop):
            if isinstance(answer, Score):
                scores[name] = answer.scores
                actors.data_changes.note(name, answer.data)
                n_moved = broadcast.count_bytes(answer.node, answer.n_bytes)
                step.record.bytes_moved += n_moved
            else:
                notes.append(f"party {name} did not evaluate: {reason(answer)}")
        for call, name in () if actors.stop.is_set() else calls.items():
            notes.append(f"party {name}, evaluating, {step.config.late_text}")
            actors.restart(name, [call])
        return [score for score in scores.values() if score], notes

    def _location(self) -> ActorLocation:
        return ActorLocation(self.actors.here)


def measure(
    config: FederationConfig, scores: Sequence[Scores], accuracy: float | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Values of a config's metrics over all parties; and of which there are none, why.

    accuracy : as the models measure it beside the loss, which then is no metric here.
    """
    names = [n for n in config.metrics if n != "accuracy" or accuracy is None]
    return models.compute_metrics(names, policy.merge_states(s.states for s in scores))


def is_due(config: FederationConfig, since: int, round: int) -> bool:
    """Whether the result of the rounds from `since` on is evaluated."""
    every = config.evaluate_every
    is_passed = bool(every) and round // every > (since - 1) // every
    return round == config.rounds or is_passed


def evaluation_plan(plan: GroupPlan) -> GroupPlan:
    """The plan of a party that never trains: it holds `test_data`."""
    spec = PartySpec(name="aggregator", data=plan.config.test_data or "")
    config = plan.config.with_changes(parties=(spec,), partition=None, num_parties=1)
    return dataclasses.replace(
        plan, name=spec.name, parties=range(1), config=config, trains=False
    )
