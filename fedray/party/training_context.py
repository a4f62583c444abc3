"""All that decides the result of a private training, and the data set that it is of."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedray.config import PartySpec, RunConfig, resume_settings
from fedray.models import PartySlice
from fedray.party.loading import GroupPlan, LocalData
from fedray.privacy.data_accounts import DataSet
from fedray.privacy.keys import SecretKey, canonical
from fedray.user_code import is_in_memory
from fedray.weights import Weights, digest

RATES = {"learning_rate", "scheduler", "scheduler_args", "scheduler_every"}
OF_OTHERS = {"parties", "num_parties", "groups"}  # keys about other parties too
OF_PLACE = ("labels", "fields", "joined", "left")  # of a party's own, about no training


class TrainingContext(NamedTuple):
    """What all parties of one call have in common.

    run : id of the run.
    weights : digest of the weights received, those that travelled once among them.
    arithmetic : of the model's device, libraries and processor.
    """

    run: str
    round: int
    weights: str
    settings: str
    arithmetic: str

    def bind(self, part: PartySlice, own: Mapping[str, Any]) -> bytes:
        """All that decides the result of a party's training, as bytes.

        own : what is beside this of the party alone.
        """
        correction = digest(part.correction()).hex() if part.correction else ""
        start = digest(part.start).hex() if part.start else ""
        return canonical(
            {
                **self._asdict(),
                "party": part.party,
                "seed": part.seed,
                "learning_rate": part.learning_rate,
                "pull": part.pull,
                "start": start,
                "correction": correction,
                **own,
            }
        )


def run_of(plan: GroupPlan) -> str:
    """Id of the run; empty of a dry run."""
    return Path(plan.own_folder).name


def group_of(plan: GroupPlan, place: int) -> str:
    """Whose global model a party trains; empty: of all."""
    by = plan.config.groups.by if plan.config.groups else ""
    return plan.config.parties[place].fields.get(by, "") if plan.config.parties else ""


def digest_settings(config: RunConfig, place: int) -> str:
    """SHA-256 of every setting that may reach a party's training."""
    plain = config.to_dict()
    may_differ = resume_settings() - RATES - ({"rounds"} if config.scheduler else set())
    for key in may_differ | OF_OTHERS:
        plain.pop(key, None)
    plain.get("dp_sgd", {}).pop("epsilon", None)  # noise is bound by itself
    if config.parties:
        own: PartySpec = config.parties[place]
        plain["party"] = own.model_dump(exclude=set(OF_PLACE), mode="json")
    return hashlib.sha256(canonical(plain)).hexdigest()


def digest_weights(weights: Weights, frozen: Weights) -> str:
    """SHA-256 of all that a training starts from."""
    return hashlib.sha256(digest(weights) + digest(frozen)).hexdigest()


def data_set_of_party(
    plan: GroupPlan, data: LocalData, place: int, key: SecretKey | None
) -> DataSet:
    """How the ledger tells a party's data apart.

    place : of the party in the config.
    key : of the books; a bare fingerprint of few possible values would tell them. None:
        there are none, so that nothing is compared with it.
    """
    source, cut = source_of(plan, place)
    content = data.fingerprints[place - plan.parties.start]
    if content and key:
        content = key.tag("content", content)[:32]
    return DataSet(source, content, cut, place if cut else 0)


def source_of(plan: GroupPlan, place: int) -> tuple[str, str]:
    """Where a party's data is read from on this node, and how a partition cuts it.

    The file or folder with all links resolved, or what else the config names; empty for
    data in memory. The cut is empty without a partition.
    """
    config, partition = plan.config, plan.config.partition
    source = config.source_of(place)
    if is_in_memory(source):
        source = ""
    else:
        path = os.path.expanduser(source)
        source = os.path.realpath(path) if os.path.exists(path) else source
    if partition is None:
        return source, ""
    how = partition.model_dump(exclude={"source"}, mode="json")
    cut = canonical({**how, "n": config.num_parties, "seed": config.seed})
    return source, hashlib.sha256(cut).hexdigest()[:16]
