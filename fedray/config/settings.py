"""The config of a federation, checked as a whole; and a run's resolved config."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from fedray.config import rules
from fedray.config.buffered import buffered_problems
from fedray.config.conditions import KNOWN_NAMES, PARTY_DIR
from fedray.config.declaration import (
    Condition,
    Key,
    conditions,
    describe_unmet,
    keys_of,
    name_of,
    setting,
    unmet,
)
from fedray.config.edge_rules import edge_problems
from fedray.config.goals import GOALS
from fedray.config.keys import FederationKeys
from fedray.config.learning_rates import schedule_problems
from fedray.config.local_solvers import local_solver_problems
from fedray.config.membership import membership_problems
from fedray.config.privacy_rules import privacy_problems
from fedray.errors import DataError, describe_late
from fedray.user_code import is_source

ERRORS_LOG = "errors.log"


class FederationConfig(FederationKeys):
    """All settings of one federation; `fedray config` lists and explains the keys."""

    def problems(self, unread: Collection[str] = ()) -> list[str]:
        """Every mistake in how keys go together; no framework, file or cluster needed.

        Each key by itself was checked when the config was made. `unread` names keys
        that could not be read, with dots where they stand in a mapping: what follows
        from them is not checked.
        """
        if self.partition and self.partition.by and not self.partition.values:
            unread = {*unread, "num_parties"}  # the data say what values there are
        problems = rules.ensemble_problems(self, unread)
        needs_model = self.model_file is None and self.architecture is None
        needs_model &= not self.takes_documents  # made of its parties' words
        needs_model &= not is_source(self.model_type)  # the class makes its own
        needs_model &= not self.has_member_models  # each member has its own
        if needs_model and not {"model_file", "architecture"} & set(unread):
            problems.append("model_file is missing: give it, or an architecture")
        problems += rules.name_problems(self)
        problems += rules.argument_problems(self)
        problems += schedule_problems(self) or rules.plateau_problems(self)
        problems += rules.step_problems(self)
        problems += local_solver_problems(self)
        problems += rules.metric_problems(self)
        problems += rules.adaptive_problems(self) + buffered_problems(self, unread)
        problems += rules.document_problems(self)
        problems += rules.personal_problems(self)
        problems += rules.deadline_problems(self)
        problems += rules.goal_problems(self, unread)
        problems += privacy_problems(self, unread)
        problems += self.without_effect(unread)
        has_parties = not {"parties", "partition", "num_parties", "edges"} & set(unread)
        if has_parties:
            problems += rules.party_problems(self)
            problems += edge_problems(self) if "parties.data" not in unread else []
            problems += membership_problems(self)
        if has_parties and not {"groups.by", "parties.fields"} & set(unread):
            problems += rules.group_problems(self)
        return problems + rules.attack_problems(self, unread)

    @property
    def has_edges(self) -> bool:
        """Whether some parties are outside the cluster."""
        return self.edges is not None or any(party.edge for party in self.parties)

    @property
    def hides_parties(self) -> bool:
        """Whether only the run's operator may read what tells of single parties."""
        return self.noise_for_parties is not None

    @property
    def bears_refusals(self) -> bool:
        """Whether a round goes on however many updates are refused.

        Noise for parties would be for nothing if a round that fails told of one.
        """
        return self.max_refused is not None or self.hides_parties

    @property
    def hides_choice(self) -> bool:
        """Whether only the run's operator may read who was chosen for a round."""
        return self.privacy is not None and (
            self.hides_parties and self.privacy.sampling == "poisson"
        )

    @property
    def scores_at_parties(self) -> bool:
        """Whether models are scored on the parties' own test samples.

        No noise covers such scores: with a privacy mechanism there are none.
        """
        return self.test_data is None and not self.privacy_mechanisms

    @property
    def closes_after_s(self) -> float:
        """When a round waits for nobody any more, seconds from its start."""
        return min(self.deadline_s or self.round_timeout_s, self.round_timeout_s)

    @property
    def late_text(self) -> str:
        """Why a party that has not answered in time is late, and what to do."""
        return describe_late(self.round_timeout_s)

    @property
    def errors_log(self) -> str:
        """Where a party's node keeps whole errors, for people."""
        return f"{self.party_dir or PARTY_DIR}/{ERRORS_LOG}"

    @property
    def party_folder(self) -> Path | None:
        """`party_dir` on this node; None where its user has no home."""
        try:
            return Path(self.party_dir or PARTY_DIR).expanduser()
        except RuntimeError:
            return None

    def require_party_folder(self) -> Path:
        """`party_dir` on this node, where parties keep what a run cannot do without.

        Raises
        ------
        DataError
            If it is not given, and this node's user has no home folder.
        """
        folder = self.party_folder
        if folder is None:
            needed = "party_dir: a folder that can be written, on the party's own node"
            raise DataError("party_dir", "a user without a home folder", needed)
        return folder

    @property
    def n_repeatable_rounds(self) -> int:
        """Rounds that an aggregator may go back by, and a party then trains again."""
        return max(3, self.keep_checkpoints + 1)

    def handler_of(self, index: int) -> str:
        """Data handler of one party: its own, or the one that all have."""
        own = self.parties[index].data_handler if self.parties else None
        return own or self.data_handler

    def data_args_of(self, index: int) -> dict[str, Any]:
        """Options of one party's data handler: its own over those that all have."""
        own = self.parties[index].data_args if self.parties else None
        return {**self.data_args, **(own or {})}

    def source_of(self, index: int) -> str:
        """What one party's data handler reads: its own data, or the partition's."""
        if self.partition is not None:
            return self.partition.source
        return self.parties[index].data if self.parties else ""

    def handlers(self) -> list[str]:
        """Every data handler that is used, each once."""
        used = [self.handler_of(i) for i in range(len(self.parties))]
        if self.test_data or not used:
            used.append(self.data_handler)
        return list(dict.fromkeys(used))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal config, as far as it applies.

        Keys that change nothing in this config are left out; so are batch_size and
        drop_last, if they were not given and a DataLoader may have its own.
        """
        values = self.model_dump()
        if any(map(is_source, self.handlers())):
            for key in {"batch_size", "drop_last"} - self.model_fields_set:
                values.pop(key)
        for place in self.keys_without_effect():
            *outer, name = place.split(".")
            (values[outer[0]] if outer else values).pop(name, None)
        return _plain(values)

    def explicit_values(self) -> dict[str, Any]:
        """Plain data of the keys that were given, for `parse`."""
        return _plain(self.model_dump(exclude_unset=True))

    def without_effect(self, unread: Collection[str] = ()) -> list[str]:
        """Keys that were given but change nothing in this config, and what they need.

        unread : dotted names of keys that could not be read.
        """
        problems = []
        for place, needs in self._unmet(unread).items():
            holder, name = self._holder(place)
            is_given = name in holder.model_fields_set
            if is_given and getattr(holder, name) not in (None, {}, (), ""):
                with_ = describe_unmet(needs, holder)
                keys = keys_of(FederationKeys if holder is self else type(holder))
                either = keys[name].setting.or_with
                also = f", or for {conditions(either)}" if either else ""
                problems.append(
                    f"{place} has no effect {with_}: it is for {conditions(needs)}"
                    f"{also}"
                )
        return problems + rules.member_keys_without_effect(self)

    def keys_without_effect(self) -> list[str]:
        """Dotted names of all keys, given or not, that change nothing here."""
        return list(self._unmet())

    def _unmet(self, unread: Collection[str] = ()) -> dict[str, dict[str, Condition]]:
        """The keys that change nothing, by dotted name, and what would have to be."""
        without: dict[str, dict[str, Condition]] = {}
        unknown = {
            k
            for k, names in KNOWN_NAMES.items()
            if name_of(getattr(self, k)) not in names
        }
        unread = {*unread, *unknown}
        for name, key in keys_of(FederationKeys).items():
            needs = unmet(key, self, unread)
            if self.has_member_models and self._has_member_for(key):
                needs.pop("model_type", None)
            value = getattr(self, name)
            if needs:
                without[name] = needs
            elif isinstance(value, BaseModel):
                own = {n.removeprefix(f"{name}.") for n in unread}
                for inner, inner_key in keys_of(type(value)).items():
                    if needs := unmet(inner_key, value, own):
                        without[f"{name}.{inner}"] = needs
        return without

    def _has_member_for(self, key: Key) -> bool:
        """Whether an ensemble has a member of a model type that takes this key."""
        takes = key.setting.applies.get("model_type", ())
        members = (party.model_type or self.model_type for party in self.parties)
        return any(name_of(model_type) in takes for model_type in members)

    def _holder(self, place: str) -> tuple[BaseModel, str]:
        outer, _, inner = place.rpartition(".")
        return (getattr(self, outer), inner) if outer else (self, place)

    def resolve(self, settings: Mapping[str, Any]) -> "RunConfig":
        """The config with what it leaves open filled in from `settings`.

        settings : learning_rate, optimizer, loss and their arguments, as a model file
            or else the model type's adapter has them.
        """
        is_open = {key for key in settings if getattr(self, key) in (None, {})}
        values = {key: getattr(self, key) for key in self.model_fields_set - is_open}
        values |= {key: settings[key] for key in is_open}
        for key in ("optimizer", "loss"):
            values[key] = values.get(key) or ""
        return RunConfig(**values)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as YAML has them; what is not set is left out."""
    plain = {key: value for key, value in values.items() if value not in (None, (), [])}
    if "parties" in plain:
        plain["parties"] = [
            {k: v for k, v in party.items() if v not in (None, False, "")}
            for party in plain["parties"]
        ]
    if "partition" in plain:
        own = {k: v for k, v in plain["partition"].items() if v not in (None, ())}
        plain["partition"] = {k: _listed(v) for k, v in own.items()}
    for key in GOALS:
        if key in plain:
            plain[key] = {k: v for k, v in plain[key].items() if v is not None}
    for key in ("privacy", "dp_sgd", "edges", "virtual_clock"):
        if key in plain:
            own = {k: v for k, v in plain[key].items() if v is not None}
            plain[key] = {k: _listed(v) for k, v in own.items()}
    if "attack" in plain:
        plain["attack"]["parties"] = list(plain["attack"]["parties"])
    return plain


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class RunConfig(FederationConfig):
    """A federation's config with everything in it that training uses; no None there.

    A model adapter is given this: it need not ask again what the model file or its own
    defaults say.
    """

    learning_rate: Annotated[
        float, setting("step of the parties' optimizer; 0: the model's own, or none")
    ]
    optimizer: Annotated[str, setting("optimizer; empty: the model type takes none")]
    loss: Annotated[str, setting("loss; empty: the model type takes none")]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back; learning rate and loss where used."""
        values = super().to_dict()
        no_step = {"learning_rate"} if self.learning_rate == 0 else set()
        return {k: v for k, v in values.items() if v != "" and k not in no_step}
