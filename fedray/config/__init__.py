"""One frozen config of flat keys, the same in YAML, CLI overrides, Python and REST."""

from fedray.config.declaration import Key, keys_of
from fedray.config.loading import PATHS, parse, read_overrides, read_party, read_yaml
from fedray.config.membership import changes, present
from fedray.config.mistakes import unknown
from fedray.config.reference import rest_settings, resume_settings
from fedray.config.settings import FederationConfig, RunConfig
from fedray.config.specs import (
    MEMBER,
    NAME,
    SIMILARITY,
    AttackSpec,
    Doc2VecSpec,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
)

__all__ = [
    "MEMBER",
    "NAME",
    "PATHS",
    "SIMILARITY",
    "AttackSpec",
    "Doc2VecSpec",
    "FederationConfig",
    "GroupsSpec",
    "Key",
    "PartitionSpec",
    "PartySpec",
    "RunConfig",
    "changes",
    "keys_of",
    "parse",
    "present",
    "read_overrides",
    "read_party",
    "read_yaml",
    "rest_settings",
    "resume_settings",
    "unknown",
]
