"""Search of a finished doc2vec run: the documents nearest to a text, at all parties."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import ray

from fedray import models, placement
from fedray.checkpoint import runs_folder
from fedray.config import FederationConfig, parse, read_yaml
from fedray.data import tokenize
from fedray.errors import ConfigError, DataError, JoinFailed, RunFolderError
from fedray.federation.connection import cluster_connection
from fedray.federation.node_tasks import party_tasks, run_on_nodes
from fedray.messages import SearchHit
from fedray.models import SearchStep
from fedray.party import search_documents

MAX_TEXT = 1 << 20  # characters
MAX_K = 10_000
LOG = logging.getLogger("fedray")


def query(
    run_dir: str | Path, text: str, k: int = 10
) -> tuple[list[SearchHit], dict[str, str]]:
    """Search the documents of all parties of a finished doc2vec run.

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
    hits, failures = queries(run_dir, [text], k)
    return hits[0], failures


def queries(
    run_dir: str | Path, texts: Sequence[str], k: int = 10
) -> tuple[list[list[SearchHit]], dict[str, str]]:
    """Search for many texts at once; as `query`, with a list of hits for each."""
    folder = _find_folder(run_dir)
    config = _read_config(folder)
    search, file = _search_step(folder, config)
    blueprint, weights = search.read_model(file, config)
    tokens = _tokenize(texts, search.words(blueprint), k)
    with cluster_connection(job=f"fedray:query:{folder.name}") as may_join:
        wait_s = config.placement_timeout_s if may_join else 0
        pools = placement.wait_for_placement(wait_s, config, config.rounds, _tell)
        arguments = ray.put(weights), tokens, k
        tasks = party_tasks(config, blueprint, pools, search_documents, arguments)
        answers, failures = run_on_nodes(tasks, config.round_timeout_s)
    if failures and not answers:
        raise JoinFailed(failures, config.errors_log)
    by_text = zip(*answers.values(), strict=True)
    return [_rank(hits) for hits in by_text], failures


def _tell(stage: str, waited_s: float, timeout_s: float) -> None:
    """Log what is waited for, at the first of the calls that come twice a second."""
    if waited_s < 0.5:
        LOG.info("%s, up to %.0f s", stage, timeout_s)


def _rank(hits: tuple[list[SearchHit], ...]) -> list[SearchHit]:
    """Merge the hits of all parties, nearest first; ties by party and tag."""
    merged = itertools.chain(*hits)
    return sorted(merged, key=lambda hit: (-hit.score, hit.party, hit.tag))


def _read_config(folder: Path) -> FederationConfig:
    config, mistakes = parse(read_yaml(folder / "config.yaml"))
    if mistakes:
        raise ConfigError(mistakes)
    return config


def _search_step(folder: Path, config: FederationConfig) -> tuple[SearchStep, Path]:
    """The search step of the run's model type, and the model file."""
    adapter = models.named(config.model_type)
    if adapter.search is None:
        reason = f"model_type is {config.model_type}; only doc2vec can be queried"
        raise RunFolderError(str(folder), reason)
    file = folder / f"global_model{adapter.suffix}"
    if not file.is_file():
        reason = f"has no {file.name} yet: let it end, or go on with --resume"
        raise RunFolderError(str(folder), reason)
    return adapter.search, file


def _find_folder(run_dir: str | Path) -> Path:
    folder = Path(run_dir).expanduser()
    if not folder.is_dir() and len(folder.parts) == 1:
        folder = runs_folder() / folder
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(str(folder), "there is no run in it")
    return folder


def _tokenize(texts: Sequence[str], words: Sequence[str], k: int) -> list[list[str]]:
    """Split each text into words; those that have a vector."""
    if not 1 <= k <= MAX_K:
        raise ConfigError([f"k must be between 1 and {MAX_K}, got {k}"])
    known_words, tokens = set(words), []
    for text in texts:
        if len(text) > MAX_TEXT:
            got = f"{len(text)} characters"
            raise DataError("of the query", got, f"at most {MAX_TEXT}")
        tokens.append([word for word in tokenize(text) if word in known_words])
        if not tokens[-1]:
            needed = "at least one word that the parties' documents share"
            raise DataError("of the query", "no word that the model knows", needed)
    return tokens
