"""Vocabulary of doc2vec: built before round 1 from the word counts of all parties.

It is saved in the run's folder, from where a resumed run takes it: each word keeps its
row of the weights.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from fedray import models, placement
from fedray.aggregator import AggregatorPlan
from fedray.checkpoint import RunFolder, write_file
from fedray.config import FederationConfig
from fedray.errors import JoinFailed, RunFolderError, Stopped
from fedray.federation.actors import Watch, startup_progress
from fedray.federation.node_tasks import party_tasks, run_on_nodes
from fedray.messages import WordCounts
from fedray.models import Blueprint, VocabularyStep
from fedray.party import count_words
from fedray.weights import Weights

FILE = "vocabulary.json"


def complete_plan(
    plan: AggregatorPlan,
    weights: dict[str | None, Weights],
    watch: Watch,
    may_join: bool,
) -> tuple[AggregatorPlan, dict[str | None, Weights]]:
    """Complete a plan's blueprint; returns the plan and initial weights by group.

    Counts the parties' words if the model depends on them.

    Raises
    ------
    JoinFailed
        Naming every party that could not count its words.
    RunFolderError
        If rounds are done and their vocabulary is lost or altered.
    """
    if plan.blueprint.schema:
        return plan, weights
    folder = Path(plan.folder)
    step = _vocabulary_step(plan.config)
    is_new = not RunFolder(folder).is_started()
    if is_new:
        counts = _count_words(plan, watch, may_join)
        run = plan.run_id  # names the parties' folders
    else:
        counts, run = _load(folder)
    blueprint, initial = step.complete(plan.config, counts, run)
    if is_new:
        _save(folder, blueprint.plan.words, counts, run)
    return dataclasses.replace(plan, blueprint=blueprint), {None: initial}


def load_blueprint(folder: Path, config: FederationConfig) -> Blueprint:
    """Load the complete blueprint of a run that has begun.

    Raises
    ------
    RunFolderError
        If the vocabulary is lost or altered.
    """
    blueprint, _ = models.named(config.model_type).read(config)
    if not blueprint.schema:
        blueprint, _ = _vocabulary_step(config).complete(config, *_load(folder))
    return blueprint


def _vocabulary_step(config: FederationConfig) -> VocabularyStep:
    step = models.named(config.model_type).vocabulary
    if step is None:
        raise TypeError(f"model_type {config.model_type} reads no complete blueprint")
    return step


def _count_words(plan: AggregatorPlan, watch: Watch, may_join: bool) -> WordCounts:
    config = plan.config
    wait_s = config.placement_timeout_s if may_join else 0

    def poll(stage: str, waited_s: float, timeout_s: float) -> None:
        watch(startup_progress(stage, plan, waited_s, timeout_s))

    progress = startup_progress("counting words", plan)
    try:
        pools = placement.wait_for_placement(wait_s, config, poll=poll)
        tasks = party_tasks(config, plan.blueprint, pools, count_words)
        counts, failures = run_on_nodes(
            tasks, config.round_timeout_s, poll=lambda: watch(progress)
        )
    except KeyboardInterrupt:
        raise Stopped(0, config.rounds, plan.folder) from None
    if failures:
        raise JoinFailed(failures, config.errors_log)
    return _vocabulary_step(config).merge(list(counts.values()))


def _save(folder: Path, words: tuple[str, ...], counts: WordCounts, run: str) -> None:
    """Save the counts of the model's words only: rare words stay at the parties."""
    saved = {word: [counts.counts[word], counts.parties[word]] for word in words}
    text = json.dumps({"run": run, "words": saved}, ensure_ascii=False)
    write_file(folder, FILE, f"{_digest(text)}\n{text}\n")


def _load(folder: Path) -> tuple[WordCounts, str]:
    try:
        digest, text = (folder / FILE).read_text(encoding="utf-8").splitlines()
        if digest != _digest(text):
            raise ValueError("digest")
        saved = json.loads(text)
    except (OSError, ValueError):
        reason = f"its {FILE} is lost or altered: rows would get other words"
        raise RunFolderError(str(folder), f"cannot go on, {reason}") from None
    counts = {word: count for word, (count, _) in saved["words"].items()}
    parties = {word: n_parties for word, (_, n_parties) in saved["words"].items()}
    return WordCounts(counts, parties), saved["run"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
