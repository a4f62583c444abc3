"""What a run's central releases have in common: fixed at the first, kept in its ledger.

A ledger of a run has a `settings` line with the fields of `CentralSettings` and `group`
for each global model, and a `release` line with those of `ReleaseLine` for each time
that noise was added to a sum. One round has several where it was repeated otherwise.
A `torn` line has none of these fields and counts as a release of every global model.

Cyclic noise is one sequence under one key: where the key, or the noise of the rounds
before, was lost, a new sequence begins with a new key, for which `participations` is
counted anew.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedray.config import FederationConfig
from fedray.config.privacy import ADAPTIVE_CLIP
from fedray.privacy.banded import band_size, n_participations
from fedray.privacy.cohorts import n_turns
from fedray.privacy.grid import GRID
from fedray.privacy.ledger import Ledger


@dataclass(frozen=True)
class CentralSettings:
    """Parameters of the noise that is added to a sum of clipped differences.

    mechanism : central | distributed.
    sampling : all | cyclic | poisson.
    noise_multiplier : z; of all that is released of one party together.
    clip_norm : S; where it is adaptive, that of round 1.
    grid : G.
    dimension : d, values of a difference.
    expected : m, parties by which a sum is divided, however many are in it.
    rate : q, the chance that a round is with a party; 1 but for poisson.
    cycle : b, rounds after which a party trains again; 1 but for cyclic.
    band : p, rounds whose noise is correlated; 1 but for cyclic.
    participations : k, rounds with one party that the noise is made for; cyclic only.
    is_adaptive : whether the clip norm follows the parties' norms.
    """

    mechanism: str
    sampling: str
    noise_multiplier: float
    clip_norm: float
    dimension: int
    expected: float
    grid: int = GRID
    rate: float = 1.0
    cycle: int = 1
    band: int = 1
    participations: int = 1
    is_adaptive: bool = False

    def to_line(self) -> dict[str, Any]:
        """Plain values, for a ledger's line and a release's tag."""
        return dataclasses.asdict(self)


class ReleaseLine(NamedTuple):
    """One release of a noised sum, as the ledger has it.

    run : id of the run.
    tag : names what was released, in hex; see `keys.release_binding`.
    key : id of the key that made its noise.
    noise_multiplier, clip_norm, rate : z, S and q of this round.
    """

    run: str
    group: str | None
    round: int
    tag: str
    key: str
    noise_multiplier: float
    clip_norm: float
    rate: float


def settings_of(
    config: FederationConfig, n_parties: int, dimension: int, noise_multiplier: float
) -> CentralSettings:
    """What a config asks for, before anything is released.

    n_parties : that share the global model as the run begins.
    dimension : numbers in a difference.
    noise_multiplier : the config's, or what its epsilon needs.
    """
    privacy = config.privacy
    if privacy is None or config.noise_for_parties is None:
        raise ValueError("this config asks for no noise for parties")
    is_adaptive = privacy.clip_norm == ADAPTIVE_CLIP
    clip_norm = privacy.clip_start if is_adaptive else privacy.clip_norm
    wanted = CentralSettings(
        config.noise_for_parties,
        privacy.sampling,
        noise_multiplier,
        float(clip_norm or 0.0),
        dimension,
        float(n_parties),
        is_adaptive=is_adaptive,
    )
    if privacy.sampling == "poisson":
        rate = config.party_fraction
        return dataclasses.replace(wanted, rate=rate, expected=rate * n_parties)
    if privacy.sampling == "cyclic":
        cycle = n_turns(config.party_fraction)
        return dataclasses.replace(
            wanted,
            expected=n_parties / cycle,
            cycle=cycle,
            band=band_size(cycle, privacy.band),
            participations=n_participations(config.rounds, cycle),
        )
    return wanted


def central_settings(ledger: Ledger, group: str | None) -> CentralSettings | None:
    """What the ledger has fixed for the releases of a global model; None: nothing."""
    line = ledger.settings(group=group)
    return from_line(line) if line else None


def from_line(line: Mapping[str, Any]) -> CentralSettings:
    """The settings that a ledger's line holds."""
    names = [field.name for field in dataclasses.fields(CentralSettings)]
    return CentralSettings(**{name: line[name] for name in names if name in line})
