"""One frozen config of flat keys, the same in YAML, CLI overrides, Python and REST."""

from fedray.config.reading import PATHS, parse, read_overrides, read_yaml
from fedray.config.settings import FederationConfig
from fedray.config.specs import (
    NAME,
    SIMILARITY,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
    unknown,
)

__all__ = [
    "NAME",
    "PATHS",
    "SIMILARITY",
    "FederationConfig",
    "GroupsSpec",
    "PartitionSpec",
    "PartySpec",
    "parse",
    "read_overrides",
    "read_yaml",
    "unknown",
]
