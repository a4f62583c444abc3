"""One global model through the rounds: its weights, its rule's state, its folder."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fedray.aggregator.node_combiner import Terms
from fedray.aggregator.party_actors import Broadcast
from fedray.aggregator.validation import checkpoint_flaw
from fedray.checkpoint import Checkpoint, RunFolder
from fedray.errors import WeightsMismatch
from fedray.fusion import State
from fedray.messages import RoundReport, Update
from fedray.weights import Weights, cast, non_finite


class Lineage:
    """What the parties that share a global model go on from, and what is kept of it.

    parties : ascending places in the config.
    done : the last round whose result is fused, and saved or being saved.
    last : the last round that is over; None before round 1.
    """

    broadcast: Broadcast
    weights: Weights
    state: State

    def __init__(self, parties: np.ndarray, terms: Terms, folder: RunFolder):
        self.parties, self.terms, self.folder = parties, terms, folder
        self.rule = terms.rule
        self.needed, self.dtype = terms.needed, terms.dtype
        self.done = 0
        self.last: RoundReport | None = None
        self.growth: float | None = None  # of disagreement, once round 1 has told it
        self.one = (0.0, 0.0)  # disagreement of the first round since the last fusion
        self.saving: Future = Future()
        self.saving.set_result(None)

    @property
    def group(self) -> str | None:
        """Whose global model this is; None: everyone's."""
        return self.folder.group

    def go_on(self, weights: Weights) -> tuple[list[RoundReport], list[str]]:
        """Start from the newest checkpoint, or from `weights` if there is none.

        Returns
        -------
        The rounds that are done, and what there is to say about them.
        """
        self.weights, self.state = weights, self.rule.init(weights)
        checkpoint, notes = self.folder.newest()
        told = self.folder.rewind(checkpoint)
        self.done = checkpoint.round if checkpoint else 0
        if len(told) != self.done:
            lost = self.done - len(told)
            notes.append(f"{lost} lines of history.jsonl are lost, no weights")
        of_group = f" of {self.group}" if self.group else ""
        if checkpoint:
            different = checkpoint_flaw(checkpoint, self.needed, self.state)
            if different:
                where = f"checkpoint in {self.folder.path}"
                raise WeightsMismatch(where, different)
            self.weights, self.state = checkpoint.weights, checkpoint.state
            self.last = checkpoint.report
            self.growth = self.last.growth
            notes.append(f"going on after round {checkpoint.round}{of_group}")
        return told, notes

    def send(self) -> None:
        """Put the weights where parties find them."""
        self.broadcast = Broadcast(self.weights, self.dtype)
        self.weights = self.broadcast.weights

    def advance(self, update: Update) -> str | None:
        """From the old global weights to the new; or the tensor that would not do."""
        weights, state = self.rule.step(self.weights, update, self.state)
        weights = cast(weights, self.needed)
        name = non_finite(weights)
        if name:
            return name
        self.weights, self.state = weights, state
        self.send()
        return None

    def save(self, report: RoundReport, writer: ThreadPoolExecutor) -> None:
        """Write the round down while the next one runs."""
        self.saving.result()  # a full disk is told here, one round late at most
        self.last = report
        if not report.aggregated:
            self.saving = writer.submit(self.folder.note, report)
            return
        checkpoint = Checkpoint(report.round, self.weights, self.state, report)
        self.saving = writer.submit(self.folder.save, checkpoint)
        self.done = report.round
