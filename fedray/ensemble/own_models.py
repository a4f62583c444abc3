"""A party's own model: the global one, with what the party keeps over it.

It is read on the party's node, where `party_dir` is.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedray import policy
from fedray.checkpoint import read_run_id
from fedray.config import SIMILARITY, FederationConfig
from fedray.ensemble.members import Member
from fedray.errors import RunFolderError
from fedray.party import FINETUNED, STATE, PartyStateStore, own_model_folder
from fedray.untrusted_text import MAX_NAME

NONE = (
    "its parties have no models of their own: personal, ditto_lambda and "
    "finetune_epochs give them some"
)
GROUPS = "groups.json"  # in a run's folder: places of each group's parties
N_NAMED = 5


def read_own_model(
    folder: Path,
    config: FederationConfig,
    party: str,
    read_global: Callable[[str | None], Member],
) -> Member:
    """The model that a party has for itself after the last round of a run.

    Parameters
    ----------
    folder : of the run.
    read_global : reads the global model of a group; None: of all.

    Raises
    ------
    RunFolderError
        If there is no such party, or it has no such model on this machine.
    """
    if not config.has_own_models:
        raise RunFolderError(str(folder), NONE, "Leave party out")
    place = config.party_place(party)
    if place is None:
        n_parties = config.num_parties or 0
        some = [config.party_name(i) for i in range(min(N_NAMED, n_parties))]
        more = ", ..." * (n_parties > N_NAMED)
        reason = f"has no party {party[:MAX_NAME]!r}, but {', '.join(some)}{more}"
        raise RunFolderError(str(folder), reason)
    member = read_global(_group_of(folder, config, place))
    own = _open_folder(folder, config) / own_model_folder(config)
    (state,) = PartyStateStore(own, 1).recall([party], config.rounds + 2)
    if not state.round:
        why = state.problem or f"nothing of party {party} is in {own}"
        reason = f"{why}: it stays in party_dir on the party's own node"
        raise RunFolderError(str(folder), reason, "Load it there")
    tied, weights = member.blueprint.tied, dict(member.weights)
    for name in weights:
        weights[name] = state.arrays.get(tied.get(name, name), weights[name])
    return replace(member, name=party, weights=weights)


def _group_of(folder: Path, config: FederationConfig, place: int) -> str | None:
    """The group of the party at this place; None: there are none."""
    if config.groups is None:
        return None
    groups = {}
    if (folder / GROUPS).is_file():
        groups = json.loads((folder / GROUPS).read_text("utf-8"))
    elif config.groups.by != SIMILARITY:
        groups = policy.by_field(config)
    return next((name for name, places in groups.items() if place in places), None)


def _open_folder(folder: Path, config: FederationConfig) -> Path:
    """Where parties keep what is theirs of this run, on this machine.

    A folder of party_dir itself has what a party needs to use its model there.
    """
    if any((folder / name).is_dir() for name in (STATE, FINETUNED)):
        return folder
    party_folder = config.party_folder
    if party_folder is None:
        reason = "party_dir is not given, and this user has no home folder"
        raise RunFolderError(str(folder), reason)
    return party_folder / read_run_id(folder)
