"""After the last round: every party's documents that are nearest to a text."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import ray

from fedray import models, placement
from fedray.checkpoint import runs_folder
from fedray.config import FederationConfig, parse, read_yaml
from fedray.data import tokenize
from fedray.errors import ConfigError, DataError, JoinFailed, RunFolderError
from fedray.federation.actors import connected
from fedray.federation.node_tasks import plans_of, visit
from fedray.messages import SearchHit
from fedray.models import SearchStep
from fedray.party import nearest

MAX_TEXT = 1 << 20  # letters
MAX_K = 10_000


def query(
    run_dir: str | Path, text: str, k: int = 10
) -> tuple[list[SearchHit], dict[str, str]]:
    """Ask every party of a finished doc2vec run for its documents nearest to a text.

    Parties answer with tags and scores, never with text. The same text gets the same
    answer. The first query takes longer: a party then infers its documents' vectors
    from the finished model, and keeps them on its node.

    Parameters
    ----------
    run_dir : the run's folder, or the name of one in ``~/.fedray/runs``.
    k : documents of each party.

    Returns
    -------
    `k` documents of each party, the nearest of all first; and for each party that did
    not answer the reason.

    Raises
    ------
    RunFolderError
        If there is no finished doc2vec run.
    DataError
        If the model knows no word of the text.
    JoinFailed
        If no party answered.
    """
    found, failed = queries(run_dir, [text], k)
    return found[0], failed


def queries(
    run_dir: str | Path, texts: Sequence[str], k: int = 10
) -> tuple[list[list[SearchHit]], dict[str, str]]:
    """`query` of many texts at once: an answer for each."""
    folder = _folder(run_dir)
    config = _config(folder)
    search, file = _search_step(folder, config)
    blueprint, weights = search.read_model(file, config)
    asked = _known(texts, search.words(blueprint), k)
    with connected() as may_join:
        wait_s = config.placement_timeout_s if may_join else 0
        pools = placement.wait_for_placement(wait_s, config, config.rounds)
        plans = list(plans_of(config, blueprint, pools))
        arguments = ray.put(weights), asked, k
        answers, failed = visit(plans, nearest, arguments, config.round_timeout_s)
    if failed and not answers:
        raise JoinFailed(failed)
    return [_ranked(parts) for parts in zip(*answers, strict=True)], failed


def _ranked(parts: tuple[list[SearchHit], ...]) -> list[SearchHit]:
    """All parties' documents, nearest first; equal ones in an order of their own."""
    everything = itertools.chain(*parts)
    return sorted(everything, key=lambda one: (-one.score, one.party, one.tag))


def _config(folder: Path) -> FederationConfig:
    config, found = parse(read_yaml(folder / "config.yaml"))
    if found:
        raise ConfigError(found)
    return config


def _search_step(folder: Path, config: FederationConfig) -> tuple[SearchStep, Path]:
    """How this run's model is queried, and its file."""
    adapter = models.named(config.model_type)
    if adapter.search is None:
        reason = f"model_type is {config.model_type}; only doc2vec can be queried"
        raise RunFolderError(str(folder), reason)
    file = folder / f"global_model{adapter.suffix}"
    if not file.is_file():
        reason = f"has no {file.name} yet: let it end, or go on with --resume"
        raise RunFolderError(str(folder), reason)
    return adapter.search, file


def _folder(run_dir: str | Path) -> Path:
    folder = Path(run_dir).expanduser()
    if not folder.is_dir() and len(folder.parts) == 1:
        folder = runs_folder() / folder
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(str(folder), "there is no run in it")
    return folder


def _known(texts: Sequence[str], words: Sequence[str], k: int) -> list[list[str]]:
    """Words of each text that have a vector."""
    if not 1 <= k <= MAX_K:
        raise ConfigError([f"k must be between 1 and {MAX_K}, got {k}"])
    there, asked = set(words), []
    for text in texts:
        if len(text) > MAX_TEXT:
            got = f"{len(text)} characters"
            raise DataError("of the query", got, f"at most {MAX_TEXT}")
        asked.append([word for word in tokenize(text) if word in there])
        if not asked[-1]:
            needed = "at least one word that the parties' documents share"
            raise DataError("of the query", "no word that the model knows", needed)
    return asked
