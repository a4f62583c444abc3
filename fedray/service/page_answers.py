"""What the live page is told of federations: fields of the list, and a client's own."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedray.errors import CallRefused, FedrayError, format_count
from fedray.experiments import Question, RunRecord, read_run
from fedray.runs_page import (
    MAX_COMPARED,
    RunDetails,
    RunReader,
    comparison_answer,
)
from fedray.runs_page.run_reader import setting_text, short_settings
from fedray.service import client_words, schemas
from fedray.service.store import FAILED, STOPPED, TRAINED, State

MAX_READERS = 1_000  # federations whose lines of the list are kept
MAX_OPEN = 32  # federations whose details are kept
CALLED = (  # as GET /aggregators says them
    *("name", "fusion_algorithm", "model_type", "num_parties", "remaining_parties"),
    *("rounds", "created", "elapsed_s"),
)


def federation_fields(state: State) -> dict[str, Any]:
    """Fields of a federation that its run's folder does not have, or not yet."""
    summary = schemas.summarize(state)
    is_done = summary["round"] >= summary["rounds"] or summary["stop_reason"]
    states = [summary["state"]]
    if states == [STOPPED] and state.error:
        states = [FAILED, STOPPED]
    elif states == [STOPPED] and is_done:
        states = [TRAINED, STOPPED]
    error = state.error or {}
    texts = [str(error[key]) for key in ("detail", "hint") if error.get(key)]
    is_over = state.state in (STOPPED, TRAINED, FAILED)
    return {name: summary[name] for name in CALLED} | {
        "states": states,
        "is_live": not is_over,
        "failure": "\n".join(texts),
        "problem": "",
        "settings": short_settings(state.settings),
    }


class FederationPages:
    """Folders of federations, read as they grow, in the words of their clients."""

    def __init__(self, root: Path):
        self.root = root
        self.lock = threading.Lock()  # held by whoever reads
        self.readers: OrderedDict[str, RunReader] = OrderedDict()
        self.details: OrderedDict[str, RunDetails] = OrderedDict()

    def entry(self, state: State) -> dict[str, Any]:
        """A federation's line of the list."""
        reader = _recent(
            self.readers, state.id, MAX_READERS,
            lambda: RunReader(self.root / state.id, state.name),
        )  # fmt: skip
        reader.refresh()
        entry = reader.entry() | federation_fields(state)
        models, has_report = entry.pop("models"), entry.pop("has_report")
        path = f"/aggregators/{state.id}"
        is_over = not state.is_in_training
        return entry | {
            "id": state.id,
            "report": f"{path}/report" if has_report and is_over else None,
            "model": f"{path}/weights" if models and is_over else None,
        }

    def detail(self, state: State, live: Mapping[str, Any]) -> dict[str, Any]:
        """A federation's own view.

        live : of the round under way.
        """
        details = _recent(
            self.details, state.id, MAX_OPEN, lambda: RunDetails(self.root / state.id)
        )
        details.refresh()
        plain = details.plain()
        changed = [(k, setting_text(v)) for k, v in state.settings.items()]
        entry = self.entry(state)
        size = plain["models"][0][1] if plain["models"] else None
        models = [[entry["model"], "model", size]] if entry["model"] else []
        words = {"parties": _parties(state, plain["parties"])}
        words |= {name: plain[name] for name in ("notes", "findings")}
        hidden = client_words.hide_paths_in_data(
            words, state.words, self.root / state.id
        )
        more = {
            "changed_settings": changed,
            "models": models,
            "under_way": live or None,
        }
        return entry | plain | hidden | more

    def compare(self, states: Sequence[State], question: Question) -> dict[str, Any]:
        """Federations compared, by the settings that their clients gave.

        Raises
        ------
        ConfigError
            If no run has the metric or the setting that the question names.
        """
        records: list[RunRecord] = []
        ids, problems = [], []
        for state in states:
            try:
                own = read_run(self.root / state.id, state.name)
            except (FedrayError, OSError):
                own = []
            if not any(one.rounds for one in own):
                problems.append(f"{state.name}: no round is over")
                continue
            settings = {k: v for k, v in state.settings.items() if k != "num_parties"}
            settings |= {"num_parties": state.num_parties, "rounds": own[0].rounds[-1]}
            settings |= {k: v for k, v in state.settings.items() if k == "rounds"}
            records += [replace(one, settings=settings, problem="") for one in own]
            ids += [state.id] * len(own)
        return comparison_answer(records, question, problems) | {"ids": ids}


def check_count(ids: Sequence[str]) -> None:
    """Raise CallRefused unless as many runs are named as can be compared."""
    if not 1 <= len(ids) <= MAX_COMPARED:
        got = format_count(len(ids), "run is", "runs are")
        detail = f"{got} named; a comparison takes 1 to {MAX_COMPARED}."
        raise CallRefused(422, detail, "Name each by run=ID.")


def _parties(state: State, measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parties as they have joined, with what was measured of them."""
    by_name = {one["name"]: one for one in measured}
    own = [
        {"strip": "", "tests": {}, "trouble": "", "chosen": 0}
        | by_name.pop(party["name"], {})
        | {
            "name": party["name"],
            "handler": schemas.handler_words(party["data_handler"], state),
        }
        | {key: party[key] for key in ("joined", "left") if party.get(key)}
        for party in state.parties
    ]
    return [*own, *by_name.values()]


def _recent(kept_ones: OrderedDict[str, Any], key: str, most: int, make: Any) -> Any:
    """The entry of a key, made if need be; the least recent ones are dropped."""
    if key not in kept_ones:
        kept_ones[key] = make()
    kept_ones.move_to_end(key)
    while len(kept_ones) > most:
        kept_ones.popitem(last=False)
    return kept_ones[key]
