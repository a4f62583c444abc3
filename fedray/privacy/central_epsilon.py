"""Epsilon of a run's ledger, and the noise that a run's epsilon needs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedray.privacy import accounting
from fedray.privacy.accounting import Plan
from fedray.privacy.central import CentralSettings, ReleaseLine
from fedray.privacy.ledger import TORN


def epsilon_of_lines(
    settings: CentralSettings, lines: Sequence[Mapping[str, Any]], delta: float
) -> float:
    """What one global model's parties have spent by these lines of its ledger.

    A line that was cut off counts as another release of the round that follows it in
    the ledger, or else of the one before: those who were drawn for that are in both.
    """
    return accounting.epsilon_of(_releases(settings, lines), delta)


def plan_of(settings: CentralSettings, rounds: int) -> Plan:
    """What a run with these settings would release."""
    return Plan(
        rounds,
        settings.mechanism,
        settings.sampling,
        settings.rate,
        settings.cycle,
        settings.band,
    )


def calibrate(
    settings: CentralSettings, rounds: int, epsilon: float, delta: float
) -> float:
    """The least noise multiplier with which so many rounds keep to this epsilon.

    Raises
    ------
    ConfigError
        If no noise does.
    """
    return accounting.noise_multiplier_for(epsilon, delta, plan_of(settings, rounds))


def _releases(
    settings: CentralSettings, lines: Sequence[Mapping[str, Any]]
) -> Iterator[accounting.Release]:
    whole = [line for line in lines if line["kind"] != TORN]
    n_before = 0
    for line in lines:
        if line["kind"] != TORN:
            n_before += 1
            yield release_of(line, settings)
        elif whole:
            yield release_of(whole[min(n_before, len(whole) - 1)], settings)
        else:
            yield accounting.Release(settings.noise_multiplier, settings.mechanism)


def release_of(
    line: Mapping[str, Any], settings: CentralSettings
) -> accounting.Release:
    """What accounting needs of a release: its line, and what all have in common.

    line : with the fields of `ReleaseLine`.
    """
    own = ReleaseLine(**{name: line[name] for name in ReleaseLine._fields})
    return accounting.Release(
        own.noise_multiplier,
        settings.mechanism,
        settings.sampling,
        own.rate,
        settings.cycle,
        settings.band,
        settings.participations,
        run=own.run,
        group=own.group,
        round=own.round,
        key=own.key,
    )
