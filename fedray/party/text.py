"""What parties are asked about their documents, before round 1 and after the last."""

from collections import Counter

import numpy as np

from fedray.messages import SearchHit, WordCounts
from fedray.models import PartySlice, SearchableModel
from fedray.party.loading import GroupPlan, load, read, told
from fedray.weights import Weights


def count_words(plan: GroupPlan) -> WordCounts:
    """How often the parties of one site use each word; no text, no order, no tag."""
    with told(plan.name, "counting words"):
        samples, pieces = read(plan)
        total = WordCounts(Counter(), Counter())
        for piece in pieces:
            counts = Counter(w for d in samples.x_train[piece] for w in d.words)
            total.counts.update(counts)
            total.parties.update(counts.keys())
        return WordCounts(dict(total.counts), dict(total.parties))


def count_documents(plan: GroupPlan) -> int:
    """Documents that weigh the parties of one site; reads and checks them all."""
    with told(plan.name, "reading"):
        return read(plan)[0].n_train


def nearest(
    plan: GroupPlan, weights: Weights, queries: list[list[str]], k: int
) -> list[list[SearchHit]]:
    """For each query every party's `k` documents that are most like it.

    Parameters
    ----------
    weights : the finished global model's
    queries : words of each

    Source: cosine of vectors inferred from the same model, as in Le and Mikolov 2014,
    arXiv:1405.4053, section 3.3.
    """
    with told(plan.name, "searching"):
        ready = load(plan, "cpu")
        model = ready.model
        if not isinstance(model, SearchableModel):
            raise TypeError(f"{type(model).__name__} has no document vectors")
        found: list[list[SearchHit]] = [[] for _ in queries]
        for i, party in enumerate(plan.parties):
            rows = ready.places[ready.starts[i] : ready.starts[i + 1]]
            name, after = plan.config.party_name(party), plan.config.rounds + 1
            part = PartySlice(rows, 0, name, after)
            vectors = model.vectors_of(weights, part, ready.train[0])
            tags = [ready.train[0][row].tag for row in rows]
            for words, answer in zip(queries, found, strict=True):
                scores = _cosines(vectors, model.vector_of(words))
                answer += _best(name, tags, scores, k)
        return found


def _best(party: str, tags: list[str], scores: np.ndarray, k: int) -> list[SearchHit]:
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
