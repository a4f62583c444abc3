"""The config of a federation, checked as a whole; and a run's resolved config."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from fedray.config import rules
from fedray.config.declaration import conditions, keys_of, setting
from fedray.config.keys import PARTY_DIR, FederationKeys
from fedray.config.membership import membership_problems

ERRORS_LOG = "errors.log"


class FederationConfig(FederationKeys):
    """All settings of one federation; `fedray config` lists and explains the keys."""

    def problems(self, unread: Collection[str] = ()) -> list[str]:
        """Every mistake in how keys go together; no framework, file or cluster needed.

        Each key by itself was checked when the config was made. `unread` names keys
        that could not be read: what follows from them is not checked.
        """
        problems = rules.ensemble_problems(self)
        needs_model = self.model_file is None and self.architecture is None
        needs_model &= not self.takes_documents  # made of its parties' words
        needs_model &= not self.has_member_models  # each member has its own
        if needs_model and not {"model_file", "architecture"} & set(unread):
            problems.append("model_file is missing: give it, or an architecture")
        problems += rules.name_problems(self)
        problems += rules.adaptive_problems(self)
        problems += rules.document_problems(self)
        if not {"parties", "partition", "num_parties"} & set(unread):
            problems += rules.party_problems(self)
            problems += rules.group_problems(self)
            problems += membership_problems(self)
        return problems + rules.attack_problems(self)

    @property
    def closes_after_s(self) -> float:
        """When a round waits for nobody any more, seconds from its start."""
        return min(self.deadline_s or self.round_timeout_s, self.round_timeout_s)

    @property
    def late_text(self) -> str:
        """Why a party that has not answered in time is late, and what to do."""
        time_s = f"{self.round_timeout_s:g} s"
        return f"did not report within round_timeout_s: {time_s}; raise it"

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

    def handler_of(self, index: int) -> str:
        """Data handler of one party: its own, or the one that all have."""
        own = self.parties[index].data_handler if self.parties else None
        return own or self.data_handler

    def handlers(self) -> list[str]:
        """Every data handler that is used, each once."""
        used = [self.handler_of(i) for i in range(len(self.parties))]
        if self.test_data or not used:
            used.append(self.data_handler)
        return list(dict.fromkeys(used))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal config."""
        values = self.model_dump()
        values["parties"] = [
            {key: value for key, value in party.items() if value is not None}
            for party in values["parties"]
        ]
        if self.attack is not None:
            values["attack"]["parties"] = list(self.attack.parties)
        return {key: value for key, value in values.items() if value not in (None, [])}

    def without_effect(self) -> list[str]:
        """Keys that were set but change nothing in this config, and what they need."""
        problems = []
        for name, key in keys_of(type(self)).items():
            applies = dict(key.setting.applies)
            if self.has_member_models:
                applies.pop("model_type", None)  # each member has its own
            is_set = name in self.model_fields_set
            if is_set and any(getattr(self, k) not in v for k, v in applies.items()):
                needed = conditions(applies)
                problems.append(f"{name} has no effect here: it is for {needed}")
        return problems

    def resolve(self, settings: Mapping[str, Any]) -> "RunConfig":
        """The config with what it leaves open filled in from `settings`.

        settings : learning_rate, optimizer, loss and their arguments, as a model file
            or else the model type's adapter has them.
        """
        values = {key: getattr(self, key) for key in type(self).model_fields}
        is_open = {key for key in settings if values[key] in (None, {})}
        values |= {key: settings[key] for key in is_open}
        if isinstance(self, RunConfig):
            return self.with_changes(**{key: settings[key] for key in is_open})
        for key in ("optimizer", "loss"):
            values[key] = values[key] or ""
        return RunConfig(**values)


class RunConfig(FederationConfig):
    """A federation's config with everything in it that training uses; no None there.

    A model adapter is given this: it need not ask again what the model file or its own
    defaults say.
    """

    learning_rate: Annotated[float, setting("step of the parties' optimizer")]
    optimizer: Annotated[str, setting("optimizer; empty: the model type takes none")]
    loss: Annotated[str, setting("loss; empty: the model type takes none")]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back; optimizer and loss only where used."""
        values = super().to_dict()
        return {key: value for key, value in values.items() if value != ""}
