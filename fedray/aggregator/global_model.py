"""One global model over the rounds: weights, state of its fusion rule, run folder."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import ray

from fedray.aggregator.validation import UpdateValidator, checkpoint_flaw
from fedray.checkpoint import Checkpoint, RunFolder
from fedray.errors import WeightsMismatch, format_count
from fedray.fusion import FusionRule, State
from fedray.messages import RoundReport, Update
from fedray.weights import Weights, cast, encoding, non_finite


class Broadcast:
    """One version of the global weights, put in the object store once as it travels.

    weights : the same before encoding: views of the store, not a copy, unless fewer
        bits travel. Steps go on from these; parties train from what was decoded.
    """

    def __init__(self, weights: Weights, dtype: str):
        payload = encoding.pack(weights, dtype)
        self.ref = ray.put(payload)
        self.weights: Weights = ray.get(self.ref) if payload is weights else weights
        self._nodes: set[str] = set()

    def count_bytes(self, node: str, size: int) -> int:
        """Bytes that a node pulled: `size` for its first actor, 0 for the others."""
        is_first = node not in self._nodes
        self._nodes.add(node)
        return size if is_first else 0


class GlobalModel:
    """The weights that a group of parties shares, and what is kept of them.

    parties : the group's, ascending places in the config.
    done : the last round whose result is fused, and saved or being saved.
    last : report of the last round that is over; None before round 1.
    last_broadcast : the weights as parties get them, since the last `broadcast`.
    """

    last_broadcast: Broadcast
    weights: Weights
    state: State

    def __init__(
        self,
        parties: np.ndarray,
        rule: FusionRule,
        validator: UpdateValidator,
        folder: RunFolder,
    ):
        self.parties, self.rule = parties, rule
        self.validator, self.folder = validator, folder
        self.done = 0
        self.last: RoundReport | None = None
        self._saving: Future = Future()
        self._saving.set_result(None)

    @property
    def group(self) -> str | None:
        """Name of the group that shares this model; None: all parties."""
        return self.folder.group

    def restore(self, initial: Weights) -> tuple[list[RoundReport], list[str]]:
        """Start from the newest checkpoint, or from `initial` if there is none.

        Returns
        -------
        Reports of the rounds that are done, and notes about them for people.

        Raises
        ------
        CheckpointError, WeightsMismatch
            If the run cannot go on from what its folder holds.
        """
        self.weights, self.state = initial, self.rule.init(initial)
        checkpoint, notes = self.folder.newest_checkpoint()
        reports = self.folder.rewind(checkpoint)
        self.done = checkpoint.round if checkpoint else 0
        if len(reports) != self.done:
            lost = format_count(self.done - len(reports), "line is", "lines are")
            notes.append(f"{lost} lost from history.jsonl, no weights")
        if checkpoint:
            flaw = checkpoint_flaw(checkpoint, self.validator.schema, self.state)
            if flaw:
                raise WeightsMismatch(f"checkpoint in {self.folder.path}", flaw)
            self.weights, self.state = checkpoint.weights, checkpoint.state
            self.last = checkpoint.report
            of_group = f" of {self.group}" if self.group else ""
            notes.append(f"going on after round {checkpoint.round}{of_group}")
        return reports, notes

    def broadcast(self) -> None:
        """Put the weights into the object store, where parties find them."""
        self.last_broadcast = Broadcast(self.weights, self.validator.wire_dtype)
        self.weights = self.last_broadcast.weights

    def advance(self, update: Update) -> str | None:
        """Step from the old global weights to new ones, and broadcast these.

        Returns
        -------
        The name of a tensor that would not be finite: then nothing has changed.
        """
        weights, state = self.rule.step(self.weights, update, self.state)
        weights = cast(weights, self.validator.schema)
        name = non_finite(weights)
        if name:
            return name
        self.weights, self.state = weights, state
        self.broadcast()
        return None

    def save(self, report: RoundReport, writer: ThreadPoolExecutor) -> None:
        """Write a round down while the next one runs; waits for the one before.

        Raises
        ------
        CheckpointError
            If the round before could not be written.
        """
        self._saving.result()
        self.last = report
        if not report.aggregated:
            self._saving = writer.submit(self.folder.append_line, report)
            return
        checkpoint = Checkpoint(report.round, self.weights, self.state, report)
        self._saving = writer.submit(self.folder.save, checkpoint)
        self.done = report.round

    def wait_until_saved(self) -> None:
        """Wait for the last `save`; raises what went wrong with it."""
        self._saving.result()
