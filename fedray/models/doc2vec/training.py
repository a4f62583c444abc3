"""Trains doc2vec by calling gensim's training routines document by document."""

from collections.abc import Container, Sequence
from typing import Protocol

import numpy as np
from gensim.models import Doc2Vec
from gensim.models.doc2vec import train_document_dbow, train_document_dm

from fedray.config import Doc2VecSpec
from fedray.models.base import ProgressCallback, no_progress
from fedray.models.doc2vec.initialisation import initial_vectors, stable_hash

MIN_LEARNING_RATE = 1e-4  # where it ends, as in gensim
MAX_WORDS = 10_000  # of one call; gensim silently drops the rest


class GensimPlan(Protocol):
    """What a gensim model is built from: a `Doc2VecPlan` or a `StoredModel`."""

    @property
    def words(self) -> tuple[str, ...]: ...

    @property
    def counts(self) -> tuple[int, ...]: ...

    @property
    def spec(self) -> Doc2VecSpec: ...

    @property
    def seed(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def passes(self) -> int: ...


def make_gensim(plan: GensimPlan) -> Doc2Vec:
    """Make a gensim model with these words in this order, and no documents."""
    spec = plan.spec
    model = Doc2Vec(
        vector_size=spec.vector_size,
        window=spec.window,
        negative=spec.negative,
        sample=spec.sample,
        dm=spec.dm,
        alpha=plan.learning_rate,
        min_alpha=min(MIN_LEARNING_RATE, plan.learning_rate),
        epochs=plan.passes,
        seed=plan.seed % (1 << 32),
        min_count=1,  # `words` are selected already
        sorted_vocab=0,  # keep the order
        workers=1,
    )
    model.build_vocab_from_freq(dict(zip(plan.words, plan.counts, strict=True)))
    return model


def split_words(words: Sequence[str], vocabulary: Container[str]) -> list[list[str]]:
    """The words of a document that have vectors, in pieces of at most `MAX_WORDS`."""
    words = [word for word in words if word in vocabulary]
    return [words[i : i + MAX_WORDS] for i in range(0, len(words), MAX_WORDS)]


class GensimTrainer:
    """One gensim model; the documents' vectors are an argument of each call."""

    def __init__(self, plan: GensimPlan):
        self.model = make_gensim(plan)
        self.dm = bool(plan.spec.dm)
        self.plan = plan
        size = self.model.layer1_size
        self.scratch = [np.zeros(size, np.float32) for _ in range(1 + self.dm)]
        self.lock_factors = np.ones(1, np.float32)  # no vector is locked
        self.on_progress: ProgressCallback = no_progress

    def train(
        self,
        documents: Sequence[list[list[str]]],
        vectors: np.ndarray,
        rates: Sequence[tuple[float, float]],
        seed: int,
    ) -> None:
        """Train one pass for each pair of learning rates (first, last), in place.

        Parameters
        ----------
        documents : words of each of N documents, in pieces (`split_words`)
        vectors : (N, size) float32, of the documents; overwritten
        """
        self.model.random = np.random.RandomState(seed % (1 << 32))
        order = np.random.default_rng(seed)
        n_done, n_all = 0, len(rates) * len(documents)
        for first, last in rates:
            shuffled = order.permutation(len(documents)).tolist()
            steps = np.linspace(first, last, len(shuffled), endpoint=False).tolist()
            for i, rate in zip(shuffled, steps, strict=True):
                for words in documents[i]:
                    self._train_piece(words, i, vectors, rate, True)
                n_done += 1
                self.on_progress(n_done / n_all)

    def infer(self, document: list[list[str]]) -> np.ndarray:
        """Vector (size,) of a new document, given as pieces of words.

        It is determined by the words and the model alone, whichever process infers it.
        """
        plan = self.plan
        words = (word for piece in document for word in piece)
        seed = stable_hash(plan.seed, *words)
        vector = initial_vectors(seed, ("",), plan.spec.vector_size)
        first, last = plan.learning_rate, min(MIN_LEARNING_RATE, plan.learning_rate)
        self.model.random = np.random.RandomState(seed % (1 << 32))
        for rate in np.linspace(first, last, plan.passes).tolist():
            for piece in document:
                self._train_piece(piece, 0, vector, rate, False)
        return vector[0]

    def _train_piece(
        self, words: list[str], i: int, vectors: np.ndarray, rate: float, learn: bool
    ) -> None:
        """Train row `i` of `vectors`; with `learn` also the model's own rows."""
        train = train_document_dm if self.dm else train_document_dbow
        train(
            self.model,
            words,
            [i],
            rate,
            *self.scratch,
            learn_words=learn,
            learn_hidden=learn,
            doctag_vectors=vectors,
            doctags_lockf=self.lock_factors,
        )
