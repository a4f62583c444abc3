"""Checkpoints of a run in its folder: config, history, atomic saves, locking."""

from fedray.checkpoint.frozen import (
    FrozenRecord,
    forget_frozen,
    read_frozen,
    read_record,
    write_frozen,
)
from fedray.checkpoint.model_folder import BEST, LAST, find_model_files, model_name
from fedray.checkpoint.operator_log import append_for_operator, read_for_operator
from fedray.checkpoint.run_folder import (
    Checkpoint,
    RunFolder,
    read_with_digest,
    write_file,
    write_remedy,
    write_with_digest,
)
from fedray.checkpoint.run_inputs import (
    RunInputs,
    add_inputs,
    digest_inputs,
    digest_party_inputs,
    earlier_digests,
    read_run_id,
)
from fedray.checkpoint.run_lock import (
    changed_settings,
    is_locked,
    lock_folder,
    open_run_folder,
    runs_folder,
    with_membership_changes,
    write_config,
)

__all__ = [
    "BEST",
    "LAST",
    "Checkpoint",
    "FrozenRecord",
    "RunFolder",
    "RunInputs",
    "add_inputs",
    "append_for_operator",
    "changed_settings",
    "digest_inputs",
    "digest_party_inputs",
    "earlier_digests",
    "find_model_files",
    "forget_frozen",
    "is_locked",
    "lock_folder",
    "model_name",
    "open_run_folder",
    "read_for_operator",
    "read_frozen",
    "read_record",
    "read_run_id",
    "read_with_digest",
    "runs_folder",
    "with_membership_changes",
    "write_config",
    "write_file",
    "write_frozen",
    "write_remedy",
    "write_with_digest",
]
