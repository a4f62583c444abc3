"""One frozen config of flat keys, the same in YAML, CLI overrides, Python and REST."""

from fedray.config.loading import (
    PATHS,
    parse,
    read_overrides,
    read_party,
    read_yaml,
)
from fedray.config.membership import changes, present
from fedray.config.rules import doc2vec_problems
from fedray.config.settings import FederationConfig
from fedray.config.specs import (
    MEMBER,
    NAME,
    SIMILARITY,
    AttackSpec,
    Doc2VecSpec,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
    unknown,
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
    "PartitionSpec",
    "PartySpec",
    "changes",
    "doc2vec_problems",
    "parse",
    "present",
    "read_overrides",
    "read_party",
    "read_yaml",
    "unknown",
]
