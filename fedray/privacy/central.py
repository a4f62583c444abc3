"""What a run's central releases have in common: fixed at the first, kept in its ledger.

A ledger of a run has a `settings` line with the fields of `CentralSettings` and `group`
for each global model, and a `release` line with those of `ReleaseLine` for each time
that noise was added to a sum. One round has several where it was repeated otherwise.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedray.privacy.ledger import SETTINGS, Ledger

GRID = 1 << 20  # G: norm of a clipped difference, in integers


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
    cycle : b, rounds after which a party is asked again; 1 but for cyclic.
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


def central_settings(ledger: Ledger, group: str | None) -> CentralSettings | None:
    """What the ledger has fixed for the releases of a global model; None: nothing."""
    line = ledger.settings(group=group)
    return from_line(line) if line else None


def from_line(line: Mapping[str, Any]) -> CentralSettings:
    """The settings that a ledger's line holds."""
    names = [field.name for field in dataclasses.fields(CentralSettings)]
    return CentralSettings(**{name: line[name] for name in names if name in line})


def add_settings(ledger: Ledger, group: str | None, settings: CentralSettings) -> None:
    """Fix what all releases of a global model have in common."""
    ledger.append(SETTINGS, group=group, **settings.to_line())
