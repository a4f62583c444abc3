"""Releases: noise is added to each round's sum once, before anything leaves.

The noised sum is on disk, and its line in the ledger, before the global model moves. A
round that is run again takes its file, asks nobody and spends nothing; where the file
is gone, the noise is bound to everything that could differ, and what differs counts.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedray.aggregator.round_record import RoundRecord
from fedray.config import FederationConfig
from fedray.errors import ConfigError, LedgerError, format_count
from fedray.fusion.private_mean import SUM
from fedray.messages import BUDGET_SPENT, FUSED
from fedray.privacy.adaptive_clip import noise_scale, vector_multiplier
from fedray.privacy.banded import BandedNoise
from fedray.privacy.central import (
    CentralSettings,
    ReleaseLine,
    central_settings,
    settings_of,
)
from fedray.privacy.central_epsilon import calibrate, epsilon_of_lines
from fedray.privacy.cohorts import cyclic_cohort, poisson_cohort
from fedray.privacy.keys import release_binding, require_cryptography
from fedray.privacy.ledger import RELEASE, SETTINGS, Anchor, Line
from fedray.privacy.noise import add_noise
from fedray.privacy.release_files import Release, ReleaseFiles
from fedray.privacy.run_ledger import RunLedger
from fedray.weights import Weights, digest


@dataclass(frozen=True, eq=False)
class RoundSum:
    """The sum of a round's clipped differences, before noise; it leaves as a release.

    total : integers; with an adaptive clip norm the last one is a count.
    weights : that the parties were sent.
    clip_norm : S of this round.
    tag : of a sum that was counted when it was opened; else empty.
    """

    round: int
    total: np.ndarray
    weights: Weights
    clip_norm: float
    record: RoundRecord
    tag: str = ""

    @property
    def reporters(self) -> list[str]:
        """Names of the parties in the sum, in config order."""
        places = self.record.places_of(FUSED).tolist()
        return [self.record.config.party_name(place) for place in places]


class Releaser:
    """Makes the releases of one global model; all of a run share its ledger and key.

    Parameters
    ----------
    run : the run's ledger and key.
    config : with noise for parties.
    group : whose model it is; None: of all.
    n_parties : that share it as the run begins: a public number.
    dimension : numbers in a difference.

    Raises
    ------
    ConfigError
        If the noise that the config asks for cannot be made, or is no longer the noise
        that the run began with.
    MissingExtra
        If the package cryptography is not installed.
    """

    def __init__(
        self,
        run: RunLedger,
        config: FederationConfig,
        group: str | None,
        n_parties: int,
        dimension: int,
    ):
        require_cryptography()
        self.run, self.group, self.rounds = run, group, config.rounds
        privacy = config.privacy
        self.delta = privacy.delta or 0.0 if privacy else 0.0
        self.limit = privacy.epsilon if privacy else None
        self.files = ReleaseFiles(run.folder, group)
        self.settings = self._settings(config, n_parties, dimension)

    @property
    def anchor(self) -> Anchor:
        """Of the ledger as it is now, for a checkpoint."""
        return self.run.ledger.anchor

    @property
    def spent(self) -> dict[str, Any]:
        """What each party of this model has spent until now, as reports have it."""
        n_releases = len(self._counted)
        return {
            "epsilon": self._epsilon(),
            "delta": self.delta,
            "releases": n_releases,
        }

    def find(self, round: int) -> Release | None:
        """The release of a round that was made before; its line is there then.

        Raises
        ------
        LedgerError
            If its file is damaged or of another run, or the disk refuses.
        """
        release = self.files.read(round)
        if release is not None and not self.run.has_made(release.line):
            reason = f"the release of round {round} is of another run"
            remedy = "Restore this run's own, or delete it: the round is run again"
            raise LedgerError(str(self.files.folder), reason, remedy)
        if release is not None:
            self._record(release.line)
        return release

    def choose(self, names: Sequence[str], round: int) -> np.ndarray:
        """Which of the parties present a round asks, (K,) bool; again the same ones."""
        settings = self.settings
        if settings.sampling == "cyclic":
            return cyclic_cohort(names, settings.cycle, round)
        if settings.sampling == "poisson":
            key = self.run.key().draw_key(self.run.run_id, self.group or "", round)
            return poisson_cohort(names, settings.rate, key)
        return np.ones(len(names), bool)

    def release(self, of: RoundSum) -> Release:
        """Add noise to a sum; on disk, and in the ledger, when this returns.

        Raises
        ------
        LedgerError
            If the disk refuses: nothing is released.
        """
        past = self._past_noise(of)
        total = of.total.astype(np.int64)
        line = self._line(of, total)
        self._note_repetition(line, of.record)
        if self.settings.mechanism == "central":
            self._add_noise(total, line, past)
        release = Release(line, {SUM: total}, of.record.to_json())
        self.files.write(release)
        self._record(line)
        return release

    def count_opening(self, round: int, tag: str) -> None:
        """Count a sum to which the parties have added noise, before it is opened.

        tag : in hex; names what is opened.

        Raises
        ------
        LedgerError
            If the disk refuses: nothing may be opened.
        """
        key = self.run.key()
        self._record(self._line_of(round, tag, key.id, self.settings.clip_norm))

    def remove_old(self, saved_rounds: Collection[int]) -> None:
        """Delete the files of releases whose checkpoints are gone."""
        self.files.remove_old(saved_rounds, self.settings.band)

    def spent_reason(self, next_round: int) -> str:
        """Why the next round may not be released; empty if it may."""
        if self.limit is None or next_round > self.rounds or self.files.has(next_round):
            return ""
        key_id, clip_norm = self._key_id(), self.settings.clip_norm
        line = self._line_of(next_round, "", key_id, clip_norm)
        after = self._epsilon({"kind": RELEASE, **line._asdict()})
        if after <= self.limit:
            return ""
        n_releases, now = format_count(len(self._counted), "release"), self._epsilon()
        above = f"above privacy.epsilon: {self.limit:g}"
        spent = f"{BUDGET_SPENT}: epsilon is {now:.4g} after {n_releases}"
        if now > self.limit:
            return f"{spent}, {above}"
        return f"{spent}; one more would make it {after:.4g}, {above}"

    def require_budget(self) -> None:
        """See that a first round may be released.

        Raises
        ------
        ConfigError
        """
        reason = self.spent_reason(1)
        if reason:
            what = "there would be no model: raise privacy.epsilon or the noise"
            raise ConfigError([f"{reason}; {what}"])

    def require(self, anchor: Anchor | None, round: int) -> None:
        """See that the ledger has all that the checkpoint of a round knows.

        Raises
        ------
        LedgerError
        """
        whose = f"the checkpoint of round {round}"
        if anchor is None:
            reason = f"{whose} does not say how long it was"
            remedy = "Restore the checkpoint, with its ledger.json"
            raise LedgerError(str(self.run.ledger.path), reason, remedy)
        self.run.ledger.require(anchor, whose)

    def _settings(
        self, config: FederationConfig, n_parties: int, dimension: int
    ) -> CentralSettings:
        """Those that the ledger has fixed, else what the config asks for.

        All global models have the same noise multiplier, and expect as many rounds.
        """
        ledger, z = self.run.ledger, config.privacy and config.privacy.noise_multiplier
        wanted = settings_of(config, n_parties, dimension, z or 1.0)
        if ledger.settings():
            return self._fixed_settings(wanted)
        if z is None and self.limit is not None:
            z = calibrate(wanted, config.rounds, self.limit, self.delta)
            wanted = dataclasses.replace(wanted, noise_multiplier=z)
        if wanted.is_adaptive:
            try:
                vector_multiplier(wanted.noise_multiplier, wanted.expected)
            except ValueError as error:
                raise ConfigError([str(error)]) from None
        return wanted

    def _fixed_settings(self, wanted: CentralSettings) -> CentralSettings:
        """What the ledger has fixed; of a model that it does not know, the same noise.

        Raises
        ------
        ConfigError
            If the config asks for something else by now.
        """
        own = central_settings(self.run.ledger, self.group)
        first = dataclasses.replace(wanted, **_common(self.run.ledger.settings()))
        fixed = own or first
        names = ("mechanism", "sampling", "dimension", "clip_norm", "is_adaptive")
        pairs = {name: (getattr(fixed, name), getattr(wanted, name)) for name in names}
        changed = [
            f"privacy: {name} was {old} at the first release, is {new}: what is "
            "released under one ledger has one kind of noise; begin a new run"
            for name, (old, new) in pairs.items()
            if old != new
        ]
        if changed:
            raise ConfigError(changed)
        return fixed

    def _epsilon(self, *more: Line) -> float:
        """Of all lines that count for this model's parties, and more."""
        lines = [*self._counted, *more]
        return epsilon_of_lines(self.settings, lines, self.delta) if lines else 0.0

    @property
    def _counted(self) -> list[Line]:
        """Lines of this model's releases; a torn line may be one."""
        lines = self.run.ledger.releases
        return [x for x in lines if x.get("group", self.group) == self.group]

    def _lines(self, **fields: Any) -> list[Line]:
        """Lines of this model's releases that have these fields."""
        needed = {"run": self.run.run_id, "group": self.group, **fields}
        lines = self.run.ledger.releases
        return [line for line in lines if needed.items() <= line.items()]

    def _key_id(self) -> str:
        """The id of the key in use; of one that is still to be made, a new one."""
        key = self.run.ledger.key
        return key.id if key is not None else "new"

    def _line(self, of: RoundSum, total: np.ndarray) -> ReleaseLine:
        settings, key = self.settings, self.run.key()
        binding = release_binding(
            {**settings.to_line(), "clip_norm": of.clip_norm},
            (self.run.run_id, self.group, of.round),
            of.reporters,
            digest(of.weights),
            digest({SUM: total}),
        )
        tag = of.tag or key.release_tag(binding).hex()
        return self._line_of(of.round, tag, key.id, of.clip_norm)

    def _line_of(
        self, round: int, tag: str, key_id: str, clip_norm: float
    ) -> ReleaseLine:
        z, rate = self.settings.noise_multiplier, self.settings.rate
        run_id = self.run.run_id
        return ReleaseLine(run_id, self.group, round, tag, key_id, z, clip_norm, rate)

    def _past_noise(self, of: RoundSum) -> list[np.ndarray]:
        """The noise of the rounds before, newest first, that this round's goes by.

        Where it is lost, a new sequence of noise begins, under a new key.
        """
        past: list[np.ndarray] = []
        key, round = self.run.key(), of.round
        for before in range(round - 1, round - self.settings.band, -1):
            noise = self.files.read_noise(key.id, before)
            if noise is None and self._lines(round=before, key=key.id):
                self.run.renew_key()
                what = f"the noise of round {before} is lost: noise begins anew"
                of.record.release_notes.append(f"{what}, and costs more")
                return []
            if noise is None:
                break
            past.append(noise)
        return past

    def _add_noise(
        self, total: np.ndarray, line: ReleaseLine, past: Sequence[np.ndarray]
    ) -> None:
        """Add the noise of a tag, in place; keep it where later rounds go by it."""
        settings = self.settings
        z, m = settings.noise_multiplier, settings.expected
        scale = noise_scale(z, m, settings.is_adaptive)
        noise_key = self.run.key().noise_key(bytes.fromhex(line.tag))
        if settings.sampling != "cyclic":
            add_noise(total, noise_key, scale)
            return
        banded = BandedNoise(settings.band, settings.participations, past)
        noise = banded.next(len(total), noise_key, scale)
        total += noise
        if settings.band > 1:
            self.files.write_noise(line.key, line.round, noise)

    def _note_repetition(self, line: ReleaseLine, record: RoundRecord) -> None:
        """Tell of a round that was released before, otherwise."""
        is_same = self._lines(round=line.round, tag=line.tag)
        if self._lines(round=line.round) and not is_same:
            record.release_notes.append(
                f"round {line.round} was released before, and its file is gone: this "
                "is another release, which counts too"
            )

    def _record(self, line: ReleaseLine) -> None:
        """Put a release into the ledger, unless it is there."""
        ledger, fields = self.run.ledger, line._asdict()
        if any(x.get("tag") == line.tag for x in ledger.releases):
            return
        self.run.key()
        if not ledger.settings(group=self.group):
            self._append(SETTINGS, group=self.group, **self.settings.to_line())
        self._append(RELEASE, **fields)

    def _append(self, kind: str, **fields: Any) -> None:
        """Append a line, or make it whole if it was cut off by a crash."""
        ledger = self.run.ledger
        if ledger.completes(kind, **fields):
            ledger.drop_torn()
        ledger.append(kind, **fields)


def _common(line: Mapping[str, Any]) -> dict[str, Any]:
    """What all global models of a run have in common, of one's settings."""
    names = ("noise_multiplier", "participations")
    return {name: line[name] for name in names}
