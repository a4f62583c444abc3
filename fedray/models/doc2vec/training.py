"""gensim's training routines, called document by document."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from gensim.models import Doc2Vec
from gensim.models.doc2vec import train_document_dbow, train_document_dm

from fedray.config import Doc2VecSpec
from fedray.models.base import ProgressCallback, no_progress
from fedray.models.doc2vec.initialisation import number_for, start_rows

MIN_ALPHA = 1e-4  # gensim's: where the learning rate ends
MAX_WORDS = 10_000  # of one call; gensim drops the rest in silence


class Described(Protocol):
    """What a gensim model is built from: a `Plan`, or what a file holds."""

    words: tuple[str, ...]
    counts: tuple[int, ...]
    spec: Doc2VecSpec
    seed: int
    learning_rate: float
    passes: int


def built(plan: Described) -> Doc2Vec:
    """A gensim model with these words in this order, and no documents."""
    spec = plan.spec
    model = Doc2Vec(
        vector_size=spec.vector_size,
        window=spec.window,
        negative=spec.negative,
        sample=spec.sample,
        dm=spec.dm,
        alpha=plan.learning_rate,
        min_alpha=min(MIN_ALPHA, plan.learning_rate),
        epochs=plan.passes,
        seed=plan.seed % (1 << 32),
        min_count=1,  # rare words are gone already
        sorted_vocab=0,  # the order is ours
        workers=1,
    )
    model.build_vocab_from_freq(dict(zip(plan.words, plan.counts, strict=True)))
    return model


def pieces(words: Sequence[str], known: dict[str, int]) -> list[list[str]]:
    """The known words of a document, in pieces that gensim takes whole."""
    words = [word for word in words if word in known]
    return [words[i : i + MAX_WORDS] for i in range(0, len(words), MAX_WORDS)]


class Engine:
    """One gensim model, its documents' vectors handed in with each call."""

    def __init__(self, plan: Described):
        self.model = built(plan)
        self.dm = bool(plan.spec.dm)
        self.plan = plan
        size = self.model.layer1_size
        self.scratch = [np.zeros(size, np.float32) for _ in range(1 + self.dm)]
        self.free = np.ones(1, np.float32)  # no vector is locked
        self.on_progress: ProgressCallback = no_progress

    def learn(
        self,
        texts: Sequence[list[list[str]]],
        vectors: np.ndarray,
        rates: Sequence[tuple[float, float]],
        seed: int,
        frozen: bool = False,
    ) -> None:
        """Train a pass for each pair of rates (first, last), in place.

        Parameters
        ----------
        texts : pieces of each document
        vectors : (N, size), of the documents
        frozen : only `vectors` learn.
        """
        self.model.random = np.random.RandomState(seed % (1 << 32))
        order = np.random.default_rng(seed)
        n_done, n_all = 0, len(rates) * len(texts)
        for first, last in rates:
            turns = order.permutation(len(texts)).tolist()
            steps = np.linspace(first, last, len(turns), endpoint=False).tolist()
            for i, rate in zip(turns, steps, strict=True):
                for words in texts[i]:
                    self._train(words, i, vectors, rate, not frozen)
                n_done += 1
                self.on_progress(n_done / n_all)

    def infer(self, words: list[list[str]]) -> np.ndarray:
        """The vector of a new document: follows from its words and the model alone."""
        plan = self.plan
        seed = number_for(plan.seed, *(word for piece in words for word in piece))
        vector = start_rows(seed, ("",), plan.spec.vector_size)
        first, last = plan.learning_rate, min(MIN_ALPHA, plan.learning_rate)
        self.model.random = np.random.RandomState(seed % (1 << 32))
        for rate in np.linspace(first, last, plan.passes).tolist():
            for piece in words:
                self._train(piece, 0, vector, rate, False)
        return vector[0]

    def _train(
        self, words: list[str], i: int, vectors: np.ndarray, rate: float, learn: bool
    ) -> None:
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
            doctags_lockf=self.free,
        )
