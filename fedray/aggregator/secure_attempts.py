"""Attempts of secure sums: who may take part, and what of them is in the run's folder.

An attempt that was opened is finished, whoever is there now. One that was not is gone
on with if the same parties take part and train from the same weights; else another one
begins, for which they make new keys.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from fedray.aggregator.party_actors import PartyActors
from fedray.aggregator.round import RoundStep
from fedray.errors import SecureSumError
from fedray.messages import FAILED, Outcome
from fedray.privacy.grid import n_coordinates
from fedray.secure_sum import Attempt, FolderStorage, Member, ServerSide, Step
from fedray.secure_sum.server import journal_name, sum_name
from fedray.secure_sum.vectors import fewest_parties, plan_sum
from fedray.weights import digest

FOLDER = "secure_sum"  # within the run's
PINS = "parties.json"
NOT_JOINED = "it has not joined yet"
CHANGED = (
    "its identity is not the one with which it joined, so that the others refuse it: "
    "restore its party_dir, or let it leave and join under another name"
)


class SecureAttempts:
    """The attempts of one global model.

    pins : by name the identity, in hex, and the sample count that a party declared when
        it first joined.
    """

    def __init__(self, actors: PartyActors):
        self.actors = actors
        self.pins: dict[str, tuple[str, int]] = {}

    def open(self, step: RoundStep) -> ServerSide:
        """The attempt to go on with in a round, or a new one, which is on disk then.

        Raises
        ------
        SecureSumError
            If those who are there are too few for a sum.
        """
        storage = self._storage(step)
        self._read_pins(storage)
        self._forget_old(step, storage)
        before = ServerSide.restore(storage, step.round)
        if before is not None and before.is_opened:
            return before
        wanted = self._attempt(step, step.round, self._admitted(step, storage))
        number = before.attempt.number if before else 0
        if before is not None and self._goes_on(step, before, wanted):
            return before
        return ServerSide.begin(replace(wanted, number=number + 1), storage)

    def begin_next(self, step: RoundStep) -> list[ServerSide]:
        """The next round's attempt, whose keys and shares ride on this round's steps.

        None where it is not known who will take part, or no round follows.
        """
        config, round = step.config, step.round + 1
        if round > config.rounds or config.party_fraction < 1:
            return []
        storage = self._storage(step)
        try:
            wanted = self._attempt(step, round, step.record.chosen)
            before = ServerSide.restore(storage, round)
            if before is None:
                return [ServerSide.begin(wanted, storage)]
        except SecureSumError:  # of too few parties; that round will say so
            return []
        is_open = not before.failure and before.step < Step.MASKED
        return [before] if is_open and self._is_alike(before, wanted) else []

    def most_samples(self, attempt: Attempt) -> int:
        """A number that the sample counts of none of its parties exceed."""
        return max(self.pins[member.name][1] for member in attempt.roster)

    def save_record(self, step: RoundStep) -> None:
        """Keep what the round has noted so far, for a restarted aggregator."""
        text = json.dumps(step.record.to_json())
        self._storage(step).write(_record_name(step.round), [text.encode()])

    def restore_record(self, step: RoundStep) -> None:
        """Take over what was noted before a crash, if it was."""
        text = self._storage(step).read(_record_name(step.round))
        if text is not None:
            step.record.restore(json.loads(text))

    def _goes_on(self, step: RoundStep, before: ServerSide, wanted: Attempt) -> bool:
        """Whether an attempt that was not opened can serve those who are there now."""
        if before.failure or not self._is_alike(before, wanted):
            return False
        if before.weights not in (b"", payload_digest(step)):
            return False
        has_all = set(before.waits_for) == {member.name for member in wanted.roster}
        return before.step != Step.MASKED or has_all

    def _is_alike(self, before: ServerSide, wanted: Attempt) -> bool:
        return before.attempt == replace(wanted, number=before.attempt.number)

    def _attempt(self, step: RoundStep, round: int, places: np.ndarray) -> Attempt:
        """An attempt of these parties; its number is 1."""
        config, names = step.config, map(step.config.party_name, places.tolist())
        roster = tuple(
            Member(name, bytes.fromhex(self.pins[name][0]))
            for name in names
            if name in self.pins
        )
        size, n_parties = n_coordinates(step.model.weights), len(roster)
        least = fewest_parties(config, len(step.record.chosen))
        if n_parties < least:
            got = f"{n_parties} parties that can take part in a sum"
            raise SecureSumError(f"round {round}", got, f"{least} (min_sum)")
        releaser = step.model.releaser
        z = releaser.settings.noise_multiplier if releaser else 0.0
        parameters = plan_sum(config, size, n_parties, least, z)
        group = step.model.group or ""
        return Attempt(self.actors.run_id, group, round, 1, roster, parameters)

    def _admitted(self, step: RoundStep, storage: FolderStorage) -> np.ndarray:
        """Places of those whose identity is the one that was pinned; pins new ones."""
        admitted, n_pins = list[int](), len(self.pins)
        for item in list(step.items):
            name, place = item.actor, int(item.parties[0])
            identity = self.actors.identities.get(name, b"").hex()
            if identity and name not in self.pins:
                n_samples = int(self.actors.declared_samples(item.parties)[0])
                self.pins[name] = identity, n_samples
            # who has not joined since a restart proves by its signatures who it is
            pinned = self.pins[name][0] if name in self.pins else ""
            if pinned and identity in (pinned, ""):
                admitted.append(place)
                continue
            why = CHANGED if identity else NOT_JOINED
            step.record.settle(item.parties, Outcome(FAILED, "call", why))
            step.items.remove(item)
        if len(self.pins) > n_pins:
            storage.write(PINS, [json.dumps(self.pins).encode()])
        return np.array(admitted, np.int64)

    def _read_pins(self, storage: FolderStorage) -> None:
        if not self.pins and (text := storage.read(PINS)) is not None:
            self.pins = {name: tuple(pin) for name, pin in json.loads(text).items()}

    def _forget_old(self, step: RoundStep, storage: FolderStorage) -> None:
        """Delete sums of rounds to which no checkpoint can go back."""
        folder = step.model.folder
        newest = sorted(folder.saved_rounds())[-folder.keep :]
        for path in self._path(step).glob("round-*.journal"):
            round = int(path.stem.removeprefix("round-"))
            if newest and round <= newest[0]:
                names = journal_name(round), sum_name(round), _record_name(round)
                storage.remove(*names)

    def _storage(self, step: RoundStep) -> FolderStorage:
        return FolderStorage(self._path(step))

    def _path(self, step: RoundStep) -> Path:
        group = step.model.group
        own = f"group-{group}" if group else "all"
        return step.model.folder.path / FOLDER / own


def payload_digest(step: RoundStep) -> bytes:
    """Digest of the weights as parties get them."""
    return digest(ray.get(step.model.last_broadcast.ref))


def _record_name(round: int) -> str:
    return f"round-{round:05d}.record"
