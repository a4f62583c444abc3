"""`compare: local`: the global model beside what each party has of training alone.

After the last round every party trains as many passes from the first weights without a
fusion, and scores both on its own tests. Nothing of it is kept at the parties: a run
that is killed meanwhile trains them again, to the same bits.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedray import policy
from fedray.aggregator.global_model import Broadcast, GlobalModel
from fedray.aggregator.party_actors import (
    ActorCall,
    PartyActors,
    reason,
    wait_for_answers,
)
from fedray.config import FederationConfig
from fedray.errors import ConfigError, format_count
from fedray.messages import Comparison, PartyScores, Scores
from fedray.report import read_comparison, write_comparison
from fedray.weights import Weights

N_NAMED = 5  # parties that a note names
KINDS = ("alone", "global", "own")  # of models, as the table has them


def require_tests(actors: PartyActors, config: FederationConfig) -> None:
    """Raise ConfigError if a comparison is asked for and no party has test samples."""
    if config.compare != "none" and not actors.has_tests():
        raise ConfigError([policy.NO_TESTS_TO_COMPARE])


class LocalComparison:
    """Asks all parties to train alone, once a run, and writes what they score.

    initial_of : weights that a group's model started from.
    """

    def __init__(
        self,
        actors: PartyActors,
        config: FederationConfig,
        folder: Path,
        initial_of: Callable[[str | None], Weights],
    ):
        self.actors, self.config, self.folder = actors, config, folder
        self._initial_of = initial_of

    def run(self, models: Sequence[GlobalModel]) -> list[str]:
        """Compare after the rounds that were trained, unless done; notes for people."""
        rounds = max(model.done for model in models)
        if self._is_done(rounds):
            return []
        calls = dict(self._ask(models))
        missing: dict[str, str] = {}
        answers = self._wait(calls, missing)
        columns: dict[str, list[Any]] = {}
        for place, model in enumerate(models):
            own = [answer for at, answer in answers if at == place]
            for name, values in self._columns(model.group, own):
                columns.setdefault(name, []).extend(values)
        if not self.actors.stop.is_set():
            write_comparison(self.folder, rounds, columns, [*missing])
        absent = "party {} did not compare models: {}"
        notes = [absent.format(name, why) for name, why in missing.items()]
        return notes + _notes_of([answer for _, answer in answers])

    def _is_done(self, rounds: int) -> bool:
        """Whether all parties have compared after this round, as the config asks."""
        before = read_comparison(self.folder)
        has_alone = "alone_loss" in before.get("columns", {})
        is_whole = before.get("round") == rounds and not before.get("missing")
        return is_whole and (has_alone or self.config.compare == "none")

    def _ask(
        self, models: Sequence[GlobalModel]
    ) -> Iterator[tuple[ActorCall, tuple[int, str]]]:
        """Calls of all actors; which model each compares with, and whose call it is."""
        for place, model in enumerate(models):
            first = Broadcast(self._initial_of(model.group), self.config.wire_dtype)
            refs = first.ref, model.last_broadcast.ref
            rates = model.past_rates()
            for item in self.actors.assign(model.parties):
                arguments = item.parties, *refs, model.done, rates
                call = self.actors.call(item.actor, "compare", *arguments)
                yield call, (place, item.actor)

    def _wait(
        self, calls: dict[ActorCall, tuple[int, str]], missing: dict[str, str]
    ) -> list[tuple[int, Comparison]]:
        """Answers with the place of their model; fills in who gave none, and why."""
        answers: list[tuple[int, Comparison]] = []
        until = time.monotonic() + self.config.round_timeout_s * self.config.rounds
        for (place, name), answer in wait_for_answers(calls, until, self.actors.stop):
            if isinstance(answer, Comparison):
                answers.append((place, answer))
            else:
                missing[name] = reason(answer)
        for call, (_, name) in () if self.actors.stop.is_set() else calls.items():
            missing[name] = f"it {self.config.late_text}"
            self.actors.restart(name, [call])
        return answers

    def _columns(
        self, group: str | None, answers: Sequence[Comparison]
    ) -> Iterator[tuple[str, list[Any]]]:
        """Columns with a row for each party that has tests, in config order."""
        kinds = [kind for kind in KINDS if any(kind in a.by_model for a in answers)]
        tables = {kind: _table(kind, answers) for kind in kinds}
        if not tables:
            return
        config, (first, *_) = self.config, tables.values()
        yield "party", [config.party_name(place) for place in first.parties.tolist()]
        yield "n_samples", first.n_samples.tolist()
        if group is not None:
            yield "group", [group] * len(first.parties)
        scores = {kind: policy.mean_scores(own) for kind, own in tables.items()}
        for measure in next(iter(scores.values())):
            for kind, own in scores.items():
                yield f"{kind}_{measure}", policy.finite(own[measure])


def _notes_of(answers: Sequence[Comparison]) -> list[str]:
    """What is to be said of parties' own models: a line for each text."""
    by_text: dict[str, list[str]] = {}
    for answer in answers:
        for party, text in answer.notes.items():
            by_text.setdefault(text, []).append(party)
    lines = []
    for text, parties in by_text.items():
        more = ", ..." * (len(parties) > N_NAMED)
        names = ", ".join(sorted(parties)[:N_NAMED]) + more
        lines.append(
            f"{format_count(len(parties), 'party', 'parties')} ({names}): {text}"
        )
    return lines


def _table(kind: str, answers: Sequence[Comparison]) -> PartyScores:
    """Scores of one kind of model, of all actors' parties in config order."""
    parts = (a.by_model[kind] for a in answers if kind in a.by_model)
    table = policy.merge_parties(Scores(by_party=part) for part in parts)
    return PartyScores.zeros(np.zeros(0, np.int64)) if table is None else table
