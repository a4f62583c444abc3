"""Privacy that an operator requires of clients' federations: a file of bounds.

```yaml
privacy: {mechanism: [central, distributed], epsilon: 8, delta: 1e-5}
secure_aggregation: true
```
Every federation then needs all of that: noise for parties by one of these mechanisms,
a limit of at most epsilon 8 at a delta of at most 1e-5, and masked updates. A list of
such mappings is of alternatives, of which one must be met.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml

from fedray import policy
from fedray.config import FederationConfig, yaml_text
from fedray.config.conversion import convert_values
from fedray.config.declaration import SAFE, setting
from fedray.config.specs import LIST_OR_TUPLE, Settings
from fedray.errors import ConfigError
from fedray.secure_sum import default_min_sum

MAX_BYTES = 64 << 10  # of the file
SAMPLINGS = ("all", "cyclic", "poisson")
NOISE = ("central", "distributed")


class NoiseBound(Settings):
    """The most that single samples may lose: `dp_sgd`."""

    epsilon: Annotated[float, setting("limit, at most", gt=0, private=SAFE)]
    delta: Annotated[float, setting("delta, at most", gt=0, le=0.5, private=SAFE)]

    def problems(self, place: str, spec: Any) -> list[str]:
        """What a config's keys at this place lack."""
        problems = []
        for name in ("epsilon", "delta"):
            value, most = getattr(spec, name, None), getattr(self, name)
            if value is None or value > most:
                got = "nothing" if value is None else f"{value:g}"
                problems.append(f"{place}.{name} of at most {most:g}, got {got}")
        return problems


class PartyNoiseBound(NoiseBound):
    """The most that parties may lose: `privacy`."""

    mechanism: Annotated[
        tuple[str, ...], LIST_OR_TUPLE, setting("one of these", private=SAFE)
    ] = NOISE
    sampling: Annotated[
        tuple[str, ...], LIST_OR_TUPLE, setting("one of these", private=SAFE)
    ] = SAMPLINGS

    def problems(self, place: str, spec: Any) -> list[str]:
        """What a config's keys at this place lack."""
        problems = []
        for name in ("mechanism", "sampling"):
            value, allowed = getattr(spec, name, "none"), getattr(self, name)
            if value not in allowed and (name == "mechanism" or spec is not None):
                problems.append(f"{place}.{name}: {' or '.join(allowed)}, got {value}")
        return problems + super().problems(place, spec)


class PrivacyRequirement(Settings):
    """What one config must have, all of it."""

    privacy: Annotated[
        PartyNoiseBound | None, setting("noise for parties", private=SAFE)
    ] = None
    dp_sgd: Annotated[NoiseBound | None, setting("noise for samples", private=SAFE)] = (
        None
    )
    secure_aggregation: Annotated[bool, setting("masked updates", private=SAFE)] = False
    min_sum: Annotated[
        int | None, setting("parties of a sum, at least", ge=2, private=SAFE)
    ] = None

    def problems(self, config: FederationConfig) -> list[str]:
        """What a config lacks; nothing if it has all that is required."""
        problems = []
        if self.privacy:
            problems += self.privacy.problems("privacy", config.privacy)
        if self.dp_sgd:
            problems += self.dp_sgd.problems("dp_sgd", config.dp_sgd)
        if self.secure_aggregation and not config.secure_aggregation:
            problems.append("secure_aggregation: true")
        n_least = _min_sum(config)
        if self.min_sum is not None and n_least < self.min_sum:
            problems.append(f"min_sum of at least {self.min_sum}, got {n_least}")
        return problems


def _min_sum(config: FederationConfig) -> int:
    """Parties of a sum that is opened: those asked for, or as many as by default."""
    if not config.secure_aggregation:
        return 1
    n_parties = config.num_parties or 0
    n_asked = policy.count_chosen(n_parties, config.party_fraction)
    return config.min_sum or default_min_sum(n_asked)


def read_requirements(path: str | Path | None) -> tuple[PrivacyRequirement, ...]:
    """Read an operator's file; alternatives, of which a config must meet one.

    path : None: nothing is required.

    Raises
    ------
    ConfigError
        If it cannot be read, or is not what it should be.
    """
    if path is None:
        return ()
    name = f"require_privacy {path}"
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError([f"{name} is larger than {MAX_BYTES} bytes"])
        data, mistakes = yaml_text.load(text)
    except OSError as error:
        raise ConfigError([f"{name} cannot be read: {error.strerror}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError([f"{name} is not YAML: {why}"]) from None
    if mistakes:
        raise ConfigError([f"{name}, {mistake}" for mistake in mistakes])
    return _parse(name, data if isinstance(data, list) else [data])


def _parse(name: str, alternatives: Sequence[Any]) -> tuple[PrivacyRequirement, ...]:
    requirements = []
    for data in alternatives:
        if not isinstance(data, dict) or not data:
            needed = "a mapping of bounds such as privacy: {epsilon: 8, delta: 1e-5}"
            raise ConfigError([f"{name} must be {needed}, or a list of them"])
        try:
            values = convert_values(data, PrivacyRequirement)
            one = PrivacyRequirement(**values)
        except ConfigError as error:
            raise ConfigError([f"{name}: {why}" for why in error.problems]) from None
        _require_words(name, one)
        requirements.append(one)
    if not requirements:
        raise ConfigError([f"{name} requires nothing: leave it out"])
    return tuple(requirements)


def _require_words(name: str, one: PrivacyRequirement) -> None:
    """Raise ConfigError for mechanisms and samplings that do not exist."""
    if one == PrivacyRequirement():
        raise ConfigError([f"{name} requires nothing: leave it out"])
    if one.privacy is None:
        return
    for key, choices in (("mechanism", NOISE), ("sampling", SAMPLINGS)):
        words = getattr(one.privacy, key)
        if not words or not set(words) <= set(choices):
            got = f"got {', '.join(words) or 'nothing'}"
            raise ConfigError([f"{name}: privacy.{key} needs {choices}, {got}"])


def check_requirements(
    requirements: Sequence[PrivacyRequirement], config: FederationConfig
) -> None:
    """See that a client's federation has the privacy that is required here.

    Raises
    ------
    ConfigError
        Naming what it lacks of each alternative; nothing is required without any.
    """
    lacks = [one.problems(config) for one in requirements]
    if not lacks or not all(lacks):
        return
    needed = "; or ".join(", ".join(problems) for problems in lacks)
    raise ConfigError([f"this service requires privacy: needed {needed}"])
