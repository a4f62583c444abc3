"""SecureAggregation: parties send masked vectors, and only their sum is opened.

A round is three trips: the masked vectors; a signature of each party on who is in the
sum; shares of its masks. Keys and shares of the next round's attempt ride on the last
two. What was decided is in the run's folder before the next trip, so that a restarted
aggregator finishes the attempt that it began.
"""

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedray.aggregator.collector import UpdateCollector
from fedray.aggregator.dispatch import Dispatch
from fedray.aggregator.party_actors import ActorCall, reason, wait_for_one
from fedray.aggregator.round import Failed, Fused, RoundResult, RoundStep, Skipped
from fedray.aggregator.secure_attempts import SecureAttempts, payload_digest
from fedray.aggregator.strategies.always import AlwaysFuse
from fedray.aggregator.validation import UpdateValidator
from fedray.config import FederationConfig
from fedray.errors import SecureSumError, TooFewUpdates
from fedray.fusion import SUM, MaskedSum, RoundContext
from fedray.messages import FAILED, FUSED, LATE, Outcome, Update
from fedray.party import SecureAnswers
from fedray.privacy.keys import require_cryptography
from fedray.secure_sum import ServerSide, Step, bundle, route
from fedray.secure_sum.vectors import MASKED, VectorPlan, clip_norm_of
from fedray.weights import Form

LAST_ANSWERS_S = 10.0  # that parties have once enough others have answered
IN_LOST_SUM = Outcome(FAILED, "lost", "the sum that it is in was opened, and is lost")
STEPS = {  # what parties have not done that do not answer
    Step.KEYS: "sent keys",
    Step.SHARES: "shared the secrets of its masks",
    Step.ALIVE: "confirmed the sum",
    Step.REVEAL: "revealed shares of the masks",
}
Problems = dict[str, Outcome]  # by party: why it has not answered


class SecureAggregation(AlwaysFuse):
    """Everyone trains and sends a masked vector; their sum is opened once.

    A round whose sum was opened is never repeated: updates repeat, and of two sums that
    differ by one party the difference is that party's update.
    """

    def __init__(self, config: FederationConfig, dispatch: Dispatch):
        super().__init__(config, dispatch)
        require_cryptography()
        self.actors, self.attempts = dispatch.actors, SecureAttempts(dispatch.actors)
        self._side: ServerSide | None = None  # of the round under way
        self._result: RoundResult | None = None  # of a round that is decided early

    def dispatch(self, step: RoundStep) -> None:
        """Exchange keys where they did not ride on the last round; ask for vectors."""
        self._result = self._side = None
        try:
            side = self._side = self.attempts.open(step)
            if side.is_opened and side.failure:
                self._result = self._skip(step, side.failure)
            elif side.step <= Step.MASKED:
                self._result = self._exchange(step, side)
            if side.step == Step.MASKED and self._result is None:
                self._ask_for_vectors(step, side)
        except SecureSumError as error:
            self._result = Failed(str(error))

    def collect(self, step: RoundStep, until: float) -> RoundResult:
        """Add the vectors that come until then, and open their sum."""
        side = self._side
        if self._result is not None or side is None:
            return self._result or Failed("no attempt has begun")
        try:
            is_resumed = side.step > Step.MASKED
            if is_resumed:
                self.attempts.restore_record(step)
            elif why := self._add_vectors(step, side, until):
                return Failed(why)
            return self._open_sum(step, side, is_resumed)
        except SecureSumError as error:
            return Failed(str(error))

    def _exchange(self, step: RoundStep, side: ServerSide) -> RoundResult | None:
        """Steps 1 and 2 with all parties; a result if the round ends with them."""
        while side.step < Step.MASKED:
            problems, opened = self._ask_all([side], step.config.closes_after_s)
            for item in [item for item in step.items if item.actor in problems]:
                outcome = problems[item.actor]
                step.items.remove(item)
                step.record.settle(item.parties, outcome)
                if outcome.kind == LATE:
                    step.late_actors.add(item.actor)
            if opened >= step.round:
                return self._skip(step, "another attempt of it was opened before")
            if not side.has_enough:
                return Failed(_describe(step, side, problems))
            side.close()
        return None

    def _ask_for_vectors(self, step: RoundStep, side: ServerSide) -> None:
        side.use_weights(payload_digest(step))
        requests, most = side.requests(), self.attempts.most_samples(side.attempt)
        step.items[:] = [item for item in step.items if item.actor in requests]
        for item in step.items:
            step.requests[item.actor] = requests[item.actor], most
        self.calls.ask(step, step.items, "train_masked", are_sent=True)

    def _add_vectors(self, step: RoundStep, side: ServerSide, until: float) -> str:
        """Add masked vectors as they come; why the round fails, if it does."""
        model, form = copy.copy(step.model), side.attempt.parameters
        vector = Form((form.n_masked,), form.dtype.name)
        model.rule = MaskedSum()
        model.validator = UpdateValidator({MASKED: vector}, "float32")
        total = model.rule.accumulator(RoundContext(step.round))
        masked = dataclasses.replace(step, model=model)
        UpdateCollector(masked, self.calls, step.items).collect(total, until)
        if step.n_missing or self.actors.stop.is_set():
            return "too few parties have sent what counts"
        names = [step.config.party_name(i) for i in step.record.places_of(FUSED)]
        try:
            side.add(names, total.result().weights[MASKED])
        except TooFewUpdates as error:
            return f"no update could be fused: {error}"
        if not side.has_enough:
            return side.shortage
        self.attempts.save_record(step)
        side.close()
        return ""

    def _open_sum(
        self, step: RoundStep, side: ServerSide, is_resumed: bool
    ) -> RoundResult:
        """Steps 4 and 5; is_resumed : whether an earlier process has tried it."""
        following = self.attempts.begin_next(step)
        self._count_opening(step, side)  # again, after a crash before the ledger's line
        notes = list[str]()
        while side.step < Step.DONE:
            sides = [side, *following]
            problems, _ = self._ask_all(sides, step.config.round_timeout_s)
            what = STEPS[side.step]
            for name, outcome in problems.items():
                notes.append(f"party {name} has not {what}: {outcome.detail}")
            if not side.has_enough:
                why = _describe(step, side, problems)
                return self._give_up(step, side, why, is_resumed)
            side.close()
            self._count_opening(step, side)
            following = [one for one in following if one.has_enough]
            for one in following:
                one.close()
        return self._fuse(step, side, tuple(notes))

    def _count_opening(self, step: RoundStep, side: ServerSide) -> None:
        """Put a sum with noise into the ledger before shares are asked for."""
        if side.is_opened and step.model.releaser:
            step.opened_tag = side.attempt.context.hex()
            step.model.releaser.count_opening(step.round, step.opened_tag)

    def _give_up(
        self, step: RoundStep, side: ServerSide, why: str, is_resumed: bool
    ) -> RoundResult:
        """End a round whose sum cannot be opened now; the next process tries again.

        If that fails too the attempt is over: where the sum was opened the round is
        skipped, else it may be run again.
        """
        if self.actors.stop.is_set():
            return Failed("the run was stopped")
        if is_resumed:
            side.fail(why)
            if side.is_opened:
                return self._skip(step, why)
        return Failed(why)

    def _fuse(
        self, step: RoundStep, side: ServerSide, notes: tuple[str, ...]
    ) -> RoundResult:
        """What the global model steps on with, from the opened sum."""
        opened, model = side.result(), step.model
        n_parties = len(opened.names)
        plan = VectorPlan(clip_norm_of(step.config), side.attempt.parameters)
        if plan.has_noise:
            update = Update({SUM: opened.total}, opened.weight, n_parties)
            return Fused(update, notes=notes)
        weights = plan.decode(opened.total, model.weights, opened.weight)
        return Fused(Update(weights, opened.weight, n_parties), notes=notes)

    def _skip(self, step: RoundStep, why: str) -> Skipped:
        self.attempts.restore_record(step)
        step.record.settle(step.record.chosen, IN_LOST_SUM)
        return Skipped(why)

    def _ask_all(
        self, sides: Sequence[ServerSide], timeout_s: float
    ) -> tuple[Problems, int]:
        """One trip to all of whom an answer is missing; of several attempts at once.

        The first attempt is the one that matters: once it has enough answers where not
        everyone has to answer, the others have `LAST_ANSWERS_S`.

        Returns
        -------
        Why parties have not answered, and the last round that one of them has opened.
        """
        side, requests, problems, opened = sides[0], bundle(*sides), Problems(), -1
        calls: dict[ActorCall, str] = {}
        for name in side.waits_for:
            if name in self.actors.actors:
                call = self.actors.call(name, "secure_answers", requests[name])
                calls[call] = name
            else:
                problems[name] = Outcome(FAILED, "call", "it has left")
        until, can_hurry = time.monotonic() + timeout_s, side.step > Step.MASKED
        while ended := wait_for_one(calls, until, self.actors.stop):
            name = calls.pop(ended[0])
            if isinstance(ended[1], SecureAnswers):
                opened = max(opened, ended[1].opened_round)
            if why := _take(name, ended[1], sides):
                problems[name] = Outcome(FAILED, "call", why)
            if can_hurry and side.has_enough:
                can_hurry = False
                until = min(until, time.monotonic() + LAST_ANSWERS_S)
        late = Outcome(LATE, detail=f"no answer within {timeout_s:g} s")
        return problems | dict.fromkeys(calls.values(), late), opened


def _take(name: str, answer: Any, sides: Sequence[ServerSide]) -> str:
    """Pass a party's answers to their attempts; why the first got none."""
    if isinstance(answer, Exception):
        return reason(answer)
    if not isinstance(answer, SecureAnswers):
        return f"its answer is a {type(answer).__name__}"
    is_waiting = name in sides[0].waits_for
    problems = route(name, answer.answers, *sides)
    is_missing = is_waiting and name in sides[0].waits_for
    return "; ".join(problems) or ("no answer" if is_missing else "")


def _describe(
    step: RoundStep, side: ServerSide, problems: Mapping[str, Outcome]
) -> str:
    """Why a step of an attempt cannot be ended, and what all may know of who is why."""
    if step.config.hides_parties or not problems:
        return side.shortage
    whose = "; ".join(f"{name}: {why.detail}" for name, why in problems.items())
    return f"{side.shortage} ({whose})"
