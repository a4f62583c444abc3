"""A party's documents: word counts for the vocabulary, and search; no text leaves."""

from collections import Counter

import numpy as np

from fedray.data import Documents
from fedray.messages import SearchHit
from fedray.models import PartySlice, SearchableModel
from fedray.party.failures import sanitize_errors
from fedray.party.loading import GroupPlan, load_local_data, read_samples
from fedray.survey import ValueCounts
from fedray.weights import Weights


def count_words(plan: GroupPlan) -> ValueCounts:
    """Count how often the parties of one site use each word; no text, order or tag."""
    with sanitize_errors(plan, "counting words"):
        read = read_samples(plan)
        if not isinstance(read.samples, Documents):
            raise TypeError("words are counted in documents")
        total = ValueCounts(Counter(), Counter())
        for piece in read.pieces:
            documents = read.samples.x_train[piece]
            counts = Counter(word for one in documents for word in one.words)
            total.counts.update(counts)
            total.parties.update(counts.keys())
        return ValueCounts(dict(total.counts), dict(total.parties))


def count_documents(plan: GroupPlan) -> int:
    """Number of documents that weights one site; reads and checks them all."""
    return read_samples(plan).samples.n_train


def search_documents(
    plan: GroupPlan, weights: Weights, queries: list[list[str]], k: int
) -> list[list[SearchHit]]:
    """For each query, each party's `k` documents with the most similar vectors.

    Parameters
    ----------
    weights : the finished global model's
    queries : words of each

    Source: cosine of vectors inferred from the same model, as in Le and Mikolov 2014,
    arXiv:1405.4053, section 3.3.
    """
    with sanitize_errors(plan, "searching"):
        local_data = load_local_data(plan, "cpu")
        model = local_data.model
        if not isinstance(model, SearchableModel):
            raise TypeError(f"{type(model).__name__} has no document vectors")
        hits: list[list[SearchHit]] = [[] for _ in queries]
        for i, party in enumerate(plan.parties):
            rows = local_data.rows[local_data.starts[i] : local_data.starts[i + 1]]
            name, after = plan.config.party_name(party), plan.config.rounds + 1
            part = PartySlice(rows, 0, name, after)
            vectors = model.vectors_of(weights, part, local_data.train)
            tags = model.tags_of(part, local_data.train)
            for words, hits_of_query in zip(queries, hits, strict=True):
                scores = _cosines(vectors, model.vector_of(words))
                hits_of_query += _best_hits(name, tags, scores, k)
        return hits


def _best_hits(
    party: str, tags: list[str], scores: np.ndarray, k: int
) -> list[SearchHit]:
    """Each tag once: a partition with replacement may give a document twice."""
    best: dict[str, float] = {}
    for i in np.argsort(-scores, kind="stable").tolist():
        best.setdefault(tags[i], float(scores[i]))
        if len(best) == k:
            break
    return [SearchHit(party, tag, score) for tag, score in best.items()]


def _cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return vectors @ query / np.maximum(lengths, np.finfo(np.float32).tiny)
