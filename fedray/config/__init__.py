"""One frozen config of flat keys, the same in YAML, CLI overrides, Python and REST."""

from fedray.config.buffered import VirtualClockSpec, lease_of, n_at_work, step_size
from fedray.config.conditions import DOCUMENT_MODELS, PARTY_DIR
from fedray.config.declaration import CUSTOM, MECHANISMS, Key, keys_of
from fedray.config.goals import goal_name, mode_of
from fedray.config.learning_rates import (
    RateFunction,
    is_plateau,
    length_problems,
    rate_function,
    schedule_of,
)
from fedray.config.loading import (
    PATH_KEYS,
    drop_without_effect,
    join_mappings,
    key_like,
    parse,
    read_overrides,
    read_party,
    read_yaml,
)
from fedray.config.local_solvers import local_solver_problems
from fedray.config.membership import change_rounds, members_in_round
from fedray.config.mistakes import describe_unknown, describe_unknown_key, key_at
from fedray.config.privacy import DpSgdSpec, PrivacySpec, describe_mechanisms
from fedray.config.reference import (
    nested_resume_settings,
    rest_settings,
    resume_settings,
    split_by_default,
)
from fedray.config.settings import ERRORS_LOG, FederationConfig, RunConfig
from fedray.config.specs import (
    MEMBER_KEYS,
    SIMILARITY,
    AttackSpec,
    Doc2VecSpec,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
)
from fedray.config.suggestions import suggest_key

__all__ = [
    "CUSTOM",
    "DOCUMENT_MODELS",
    "ERRORS_LOG",
    "MECHANISMS",
    "MEMBER_KEYS",
    "PARTY_DIR",
    "PATH_KEYS",
    "SIMILARITY",
    "AttackSpec",
    "Doc2VecSpec",
    "DpSgdSpec",
    "FederationConfig",
    "GroupsSpec",
    "Key",
    "PartitionSpec",
    "PartySpec",
    "PrivacySpec",
    "RateFunction",
    "RunConfig",
    "VirtualClockSpec",
    "change_rounds",
    "describe_mechanisms",
    "describe_unknown",
    "describe_unknown_key",
    "drop_without_effect",
    "goal_name",
    "is_plateau",
    "join_mappings",
    "key_at",
    "key_like",
    "keys_of",
    "lease_of",
    "length_problems",
    "local_solver_problems",
    "members_in_round",
    "mode_of",
    "n_at_work",
    "nested_resume_settings",
    "parse",
    "rate_function",
    "read_overrides",
    "read_party",
    "read_yaml",
    "rest_settings",
    "resume_settings",
    "schedule_of",
    "split_by_default",
    "step_size",
    "suggest_key",
]
