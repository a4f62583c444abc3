"""BufferedFusion: asynchronous fusion (FedBuff); a round is a step of the server.

Parties train at any time, each from the weights of the moment it was asked; after every
`buffer_size` updates the global model takes a step. Calls outlive the rounds that made
them.

Source: Nguyen et al. 2022 (FedBuff), arXiv:2106.06639, Algorithm 1.
"""

import numpy as np

from fedray.aggregator.global_model import BASES, Broadcast
from fedray.aggregator.round import Base, Failed, Fused, RoundResult, RoundStep
from fedray.aggregator.strategies.always import AlwaysFuse
from fedray.aggregator.update_buffer import UpdateBuffer
from fedray.aggregator.update_sources import (
    RealArrivals,
    RecordedArrivals,
    SimulatedArrivals,
    UpdateSource,
)
from fedray.checkpoint.recorded_order import RecordedOrder
from fedray.config import step_size
from fedray.messages import WAITING, Outcome
from fedray.policy import Leases, Simulation, VirtualClock, slow_parties


class BufferedFusion(AlwaysFuse):
    """Parties train and send at any time; the buffer is fused whenever it is full."""

    _source: UpdateSource | None = None
    _bases: dict[int, Base]  # by version: the steps that the weights had taken

    def n_wanted(self, n_present: int, n_chosen: int) -> int:
        """Updates of which a step is made."""
        return step_size(self.config, n_present)

    def dispatch(self, step: RoundStep) -> None:
        """Begin a step: with today's weights, and the parties that are there now."""
        source, model, record = self._source, step.model, step.record
        if source is None:
            source = self._source = self._open(step)
        record.settle(record.chosen, Outcome(WAITING))
        record.n_wanted = step.n_wanted
        today = Base(step.round, model.last_broadcast, model.learning_rate)
        self._bases[step.round - 1] = today
        source.begin_step(step, self._bases)
        needed = {step.round - 1, *self._needed_bases(source, step.round - 1)}
        for version in self._bases.keys() - needed:
            del self._bases[version]

    def collect(self, step: RoundStep, until: float) -> RoundResult:
        """Wait for as many updates as a step is made of, however long they take."""
        buffer, source = UpdateBuffer(step, self.calls.actors), self._source
        if source is None:
            raise ValueError(f"round {step.round} has not begun")
        why = source.fill(buffer, step.n_wanted, self._bases)
        if why or self.calls.actors.stop.is_set():
            return Failed(why or "the run was stopped")
        record, order = step.record, buffer.order
        record.note_arrivals(order, source.n_expired, source.virtual_s)
        bases = np.array(self._needed_bases(source, step.round), np.int64)
        step.model.pending = source.to_arrays(step.round) | {BASES: bases}
        if step.round < self.config.rounds:  # who is at work is not waited for
            pending = self.calls.pending(step)
            step.late_actors |= {one.item.actor for one in pending}
        return Fused(buffer.accumulator.result())

    def _needed_bases(self, source: UpdateSource, version: int) -> list[int]:
        """Versions from which updates may be trained that still count after a step."""
        oldest = version - self.config.max_staleness
        versions = source.to_arrays(version)["version"].tolist()
        return sorted({one for one in versions if one >= oldest})

    def _open(self, step: RoundStep) -> UpdateSource:
        """Begin, or go on from what the last checkpoint says was under way."""
        model, group = step.model, step.record.group
        self._bases = {}
        rates, dtype = model.past_rates(), model.validator.wire_dtype
        for version, weights in model.bases.items():
            rate = rates.get(version + 1, model.learning_rate)
            self._bases[version] = Base(version + 1, Broadcast(weights, dtype), rate)
        model.bases = {}
        source = self._make_source(step, RecordedOrder.read(model.folder.path, group))
        if model.pending:
            source.restore(model.pending)
        return source

    def _make_source(
        self, step: RoundStep, recorded: RecordedOrder | None
    ) -> UpdateSource:
        config, group = self.config, step.record.group or ""
        has_clock = config.virtual_clock is not None
        if recorded is not None:
            return RecordedArrivals(self.calls, recorded, are_together=has_clock)
        leases = Leases(config, group)
        if not has_clock:
            return RealArrivals(self.calls, leases)
        clock = VirtualClock(config, slow_parties(config, step.model.parties), group)
        return SimulatedArrivals(self.calls, Simulation(leases, clock))
