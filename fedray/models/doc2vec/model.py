"""One doc2vec model inside a party: shared word rows, document vectors that stay."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedray.config import FederationConfig
from fedray.errors import DataError
from fedray.models.base import Blueprint, PartySlice, ProgressCallback, no_progress
from fedray.models.doc2vec.build import SEEN
from fedray.models.doc2vec.document_vectors import DEFAULT, Memory
from fedray.models.doc2vec.initialisation import start_rows
from fedray.models.doc2vec.training import MIN_ALPHA, Engine, pieces
from fedray.weights import Weights

SEARCHED = "searched.npz"  # vectors of a party's documents under the finished model


class Text(NamedTuple):
    """A document as it is trained: its known words, in pieces that gensim takes."""

    tag: str
    pieces: list[list[str]]


class Doc2VecModel:
    """A gensim model for an actor's life; word rows are overwritten in place.

    Document vectors of the last rounds lie in `party_dir` on this node, so that a party
    that was killed, or asked again for a round, goes on from the same bits. `notes`
    says for which parties that could not be, and is read and cleared by the caller.
    """

    device = "cpu"

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.plan, self.config = blueprint.plan, blueprint.settle(config)
        self.on_progress: ProgressCallback = no_progress
        self.engine = Engine(self.plan)
        self.known = self.engine.model.wv.key_to_index
        self.shared = blueprint.parameters
        self.first = start_rows(self.plan.seed, self.plan.words, self._size)
        # word vectors that nobody shares stay with each party's document vectors
        self.keeps_words = bool(self.plan.spec.dm) and "wv" not in self.shared
        self.counted = SEEN in blueprint.schema
        self.seen = np.zeros(len(self.plan.words), np.float32)
        where = Path(config.party_dir or DEFAULT).expanduser() / self.plan.run
        self.memory = Memory(where, max(3, config.keep_checkpoints + 1))
        self.notes: dict[str, str] = {}
        self.load({})

    @property
    def _size(self) -> int:
        return self.plan.spec.vector_size

    def ready(self, x: np.ndarray, y: np.ndarray) -> tuple[list[Text], np.ndarray]:
        """Documents as they are trained; groups are of no use any more."""
        return [Text(d.tag, pieces(d.words, self.known)) for d in x], y

    def probe(self, source: str, x: list[Text], y: np.ndarray) -> None:
        """Raise DataError where no document has a word of the vocabulary."""
        if not any(text.pieces for text in x):
            got = "documents without a word that is common enough"
            needed = "at least one word that has doc2vec.min_count and min_parties"
            raise DataError(source, got, needed)
        self.memory.check()

    def weights(self) -> Weights:
        """Shared rows: views of the live model, and counts where a mean needs them."""
        rows = self._rows()
        found = {name: rows[name] for name in self.shared}
        return found | ({SEEN: self.seen} if self.counted else {})

    def load(self, weights: Weights) -> None:
        """Overwrite rows in place; those not given are the initial ones."""
        for name, rows in self._rows().items():
            rows[:] = weights.get(name, self.first if name == "wv" else 0)

    def train_each(
        self,
        weights: Weights,
        parts: Sequence[PartySlice],
        x: list[Text],
        y: np.ndarray,
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights`, in order; there is no loss to tell."""
        for part in parts:
            texts = [x[row] for row in part.rows]
            if self.counted:
                self.seen = self._counts(texts)
            own = self._recalled(part, texts)
            self.load({**weights, **own})
            vectors = own["vectors"]
            inner = [text.pieces for text in texts]
            self.engine.on_progress = self.on_progress
            self.engine.learn(inner, vectors, self._rates(part.round), part.seed)
            kept = {"vectors": vectors}
            if self.keeps_words:
                kept["wv"] = self._rows()["wv"]
            self.memory.save(part.party, part.round, kept, _mark(texts))
            yield np.full(1, np.nan), {n: a[None] for n, a in self.weights().items()}

    def vectors_of(
        self, weights: Weights, part: PartySlice, x: list[Text]
    ) -> np.ndarray:
        """Vectors of a party's documents under the finished weights, (N, size).

        Inferred as a query's is: what training left fits the party's own last rows,
        not the fused ones. Made once, then kept on this node.
        """
        texts = [x[row] for row in part.rows]
        own = self._recalled(part, texts) if self.keeps_words else {}
        if self.keeps_words and "wv" not in own:
            got = "no word vectors of this run in party_dir on its node"
            raise DataError(part.party, got, "those that output_only leaves there")
        self.load({**weights, **own})
        mark = _mark(texts) + _digest(
            *(rows.tobytes() for rows in self._rows().values())
        )
        file = self.memory.folder / part.party / SEARCHED
        found = self.memory.read(file, mark)
        if found is None:
            inner = [text.pieces for text in texts]
            found = {"vectors": np.array(list(map(self.engine.infer, inner)))}
            self.memory.try_write(file, found, mark)
        return found["vectors"]

    def vector_of(self, words: list[str]) -> np.ndarray:
        """Vector of a new document under the rows that are loaded, (size,)."""
        return self.engine.infer(pieces(words, self.known))

    def _rows(self) -> Weights:
        model = self.engine.model
        return {"wv": model.wv.vectors, "syn1neg": model.syn1neg}

    def _recalled(self, part: PartySlice, texts: list[Text]) -> Weights:
        """What the party has from its last round, or a start; a loss is noted."""
        mark, before = _mark(texts), part.round
        round, arrays, wrong = self.memory.recall(part.party, before, mark)
        if arrays is None or arrays["vectors"].shape != (len(texts), self._size):
            seed, tags = self.plan.seed, [f"document/{text.tag}" for text in texts]
            arrays = {"vectors": start_rows(seed, tags, self._size)}
            if before > 1:
                why = wrong or "none are on its node from before"
                told = f"began its document vectors anew in round {before}: {why}"
                self.notes[part.party] = told
        elif round < before - 1 and self.config.party_fraction == 1:
            told = f"trained round {before} from its document vectors of round {round}"
            self.notes[part.party] = told
        return arrays

    def _rates(self, round: int) -> list[tuple[float, float]]:
        """First and last learning rate of each pass; one fall over the federation."""
        first, epochs = self.config.learning_rate, self.config.epochs
        last = min(MIN_ALPHA, first)
        ends = np.linspace(first, last, self.config.rounds * epochs + 1)
        start = (round - 1) * epochs
        mine = ends[start : start + epochs + 1].tolist()
        return list(itertools.pairwise(mine))

    def _counts(self, texts: list[Text]) -> np.ndarray:
        counts = Counter(w for text in texts for piece in text.pieces for w in piece)
        seen = np.zeros(len(self.known), np.float32)
        for word, n in counts.items():
            seen[self.known[word]] = n
        return seen


def _mark(texts: list[Text]) -> str:
    """Tells these documents from others: their tags and how many words each has."""
    lines = [f"{t.tag}/{sum(map(len, t.pieces))}" for t in texts]
    return _digest("\n".join(lines).encode())


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
