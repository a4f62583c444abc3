"""Before round 1 of doc2vec: parties count their words, and the model is made of them.

What was agreed is kept in the run's folder: a resumed run takes it from there, so that
a word never gets another's row.
"""

import dataclasses
import hashlib
import json
import uuid
from pathlib import Path

from fedray import durable_files, models, placement
from fedray.aggregator import AggregatorPlan
from fedray.checkpoint import RunFolder
from fedray.config import FederationConfig
from fedray.errors import JoinFailed, RunFolderError, Stopped
from fedray.federation.actors import Watch
from fedray.federation.node_tasks import plans_of, visit
from fedray.messages import Progress, WordCounts
from fedray.models import Blueprint, VocabularyStep
from fedray.party import count_words
from fedray.weights import Weights

FILE = "vocabulary.json"


def completed(
    plan: AggregatorPlan,
    weights: dict[str | None, Weights],
    watch: Watch,
    may_join: bool,
) -> tuple[AggregatorPlan, dict[str | None, Weights]]:
    """The plan with a whole blueprint, and the initial weights by group.

    Parties are asked where the model depends on what they hold.

    Raises
    ------
    JoinFailed
        Naming every party that could not count its words.
    RunFolderError
        If rounds are done and the words they were done with are lost or altered.
    """
    if plan.blueprint.schema:
        return plan, weights
    folder = Path(plan.folder)
    step = _vocabulary_step(plan.config)
    is_new = not RunFolder(folder).is_started()
    if is_new:
        counts = _asked(plan, watch, may_join)
        run = f"{plan.run}-{uuid.uuid4().hex[:12]}"  # parties' folders: no other's
    else:
        counts, run = _kept(folder)
    blueprint, initial = step.complete(plan.config, counts, run)
    if is_new:
        _keep(folder, blueprint.plan.words, counts, run)
    return dataclasses.replace(plan, blueprint=blueprint), {None: initial}


def blueprint_of(folder: Path, config: FederationConfig) -> Blueprint:
    """The blueprint of a run that has begun, whole.

    Raises
    ------
    RunFolderError
        If the words that its parties agreed on are lost or altered.
    """
    blueprint, _ = models.named(config.model_type).read(config)
    if not blueprint.schema:
        blueprint, _ = _vocabulary_step(config).complete(config, *_kept(folder))
    return blueprint


def _vocabulary_step(config: FederationConfig) -> VocabularyStep:
    step = models.named(config.model_type).vocabulary
    if step is None:
        raise TypeError(f"model_type {config.model_type} reads no complete blueprint")
    return step


def _asked(plan: AggregatorPlan, watch: Watch, may_join: bool) -> WordCounts:
    config = plan.config
    wait_s = config.placement_timeout_s if may_join else 0
    plans = list(
        plans_of(config, plan.blueprint, placement.wait_for_placement(wait_s, config))
    )
    told = Progress([], 0, "counting words", 0, 0, {}, [])
    try:
        timeout_s = config.round_timeout_s
        counts, failed = visit(plans, count_words, (), timeout_s, lambda: watch(told))
    except KeyboardInterrupt:
        raise Stopped(0, config.rounds, plan.folder) from None
    if failed:
        raise JoinFailed(failed)
    return _vocabulary_step(config).merge(counts)


def _keep(folder: Path, words: tuple[str, ...], counts: WordCounts, run: str) -> None:
    """Words of the model only: the rare ones are told to nobody."""
    kept = {word: [counts.counts[word], counts.parties[word]] for word in words}
    text = json.dumps({"run": run, "words": kept}, ensure_ascii=False)
    durable_files.write_text(folder / FILE, f"{_digest(text)}\n{text}\n")


def _kept(folder: Path) -> tuple[WordCounts, str]:
    try:
        digest, text = (folder / FILE).read_text(encoding="utf-8").splitlines()
        if digest != _digest(text):
            raise ValueError("digest")
        kept = json.loads(text)
    except (OSError, ValueError):
        reason = f"its {FILE} is lost or altered: rows would get other words"
        raise RunFolderError(str(folder), f"cannot go on, {reason}") from None
    counts = {word: count for word, (count, _) in kept["words"].items()}
    parties = {word: n_parties for word, (_, n_parties) in kept["words"].items()}
    return WordCounts(counts, parties), kept["run"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
