"""One doc2vec model inside a party: shared word rows and private document vectors.

Document vectors never leave the party's node: they are saved there between rounds.
"""

import contextlib
import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedray import durable_files
from fedray.config import FederationConfig
from fedray.errors import DataError
from fedray.models.base import Blueprint, PartySlice, ProgressCallback, no_progress
from fedray.models.doc2vec.build import USE_COUNTS, Doc2VecPlan
from fedray.models.doc2vec.initialisation import initial_vectors
from fedray.models.doc2vec.training import (
    MIN_LEARNING_RATE,
    GensimTrainer,
    split_words,
)
from fedray.nested import Arrays
from fedray.weights import Weights

SEARCH_FILE = "searched.npz"  # a party's vectors under the finished model
FINGERPRINT = "mark"  # name of its array in a file


class TrainingDocument(NamedTuple):
    """A document as it is trained: its words that have vectors, in pieces."""

    tag: str
    pieces: list[list[str]]


@dataclass(frozen=True, eq=False)
class DocumentSamples:
    """A party's documents, as one model trains on them."""

    documents: list[TrainingDocument]

    def __len__(self) -> int:
        return len(self.documents)

    def take(self, rows: np.ndarray | slice) -> "DocumentSamples":
        """The documents at these places."""
        places = np.arange(len(self.documents))[rows].tolist()
        return DocumentSamples([self.documents[place] for place in places])

    def describe(self) -> tuple[str, str]:
        """Nothing: documents have no shape."""
        return "", ""

    def first(self) -> None:
        """Nothing: a document is no array."""


class Doc2VecModel:
    """A gensim model for an actor's life; word rows are overwritten in place.

    Document vectors of the last rounds are saved in `party_dir` on this node, so that a
    party that was killed, or repeats a round, starts from the same bits. `notes` says
    for which parties that was not possible; the caller reads and clears it.
    """

    device = "cpu"

    def __init__(self, blueprint: Blueprint, config: FederationConfig, device: str):
        self.plan: Doc2VecPlan = blueprint.plan
        self.config = blueprint.settle(config)
        self.on_progress: ProgressCallback = no_progress
        self.trainer = GensimTrainer(self.plan)
        self.row_of_word = self.trainer.model.wv.key_to_index
        self.shared = blueprint.parameters
        self.initial_wv = initial_vectors(self.plan.seed, self.plan.words, self._size)
        # word vectors that are not shared are saved with the document vectors
        self.has_own_words = bool(self.plan.spec.dm) and "wv" not in self.shared
        self.sends_counts = USE_COUNTS in blueprint.schema
        self.use_counts = np.zeros(len(self.plan.words), np.float32)
        folder = config.require_party_folder() / self.plan.run
        self.store = DocumentVectorStore(folder, config.n_repeatable_rounds)
        self.notes: dict[str, str] = {}
        self.load({})

    @property
    def _size(self) -> int:
        return self.plan.spec.vector_size

    def ready(self, part: Arrays) -> DocumentSamples:
        """Documents as they are trained; their groups are not used."""
        return DocumentSamples(
            [
                TrainingDocument(d.tag, split_words(d.words, self.row_of_word))
                for d in part.x
            ]
        )

    def probe(self, source: str, samples: DocumentSamples) -> None:
        """Raise DataError where no document has a word of the vocabulary."""
        if not any(document.pieces for document in samples.documents):
            got = "documents without a word that is common enough"
            needed = "at least one word that has doc2vec.min_count and min_parties"
            raise DataError(source, got, needed)
        self.store.check()

    def weights(self) -> Weights:
        """Shared rows: views of the live model, and use counts for `share: mean`."""
        rows = self._rows()
        shared = {name: rows[name] for name in self.shared}
        return shared | ({USE_COUNTS: self.use_counts} if self.sends_counts else {})

    def load(self, weights: Weights) -> None:
        """Overwrite rows in place; tensors not in `weights` become the initial ones."""
        for name, rows in self._rows().items():
            rows[:] = weights.get(name, self.initial_wv if name == "wv" else 0)

    def train_each(
        self, weights: Weights, parts: Sequence[PartySlice], samples: DocumentSamples
    ) -> Iterator[tuple[np.ndarray, Weights]]:
        """Train every part from `weights`, in order; losses are NaN."""
        for part in parts:
            documents = samples.take(part.rows).documents
            if self.sends_counts:
                self.use_counts = self._count_uses(documents)
            state = self._load_state(part, documents)
            self.load({**weights, **state})
            vectors = state["vectors"]
            words = [document.pieces for document in documents]
            self.trainer.on_progress = self.on_progress
            self.trainer.train(words, vectors, self._rates(part.round), part.seed)
            new_state = {"vectors": vectors}
            if self.has_own_words:
                new_state["wv"] = self._rows()["wv"]
            fingerprint = _fingerprint(documents)
            self.store.save(part.party, part.round, new_state, fingerprint)
            yield np.full(1, np.nan), {n: a[None] for n, a in self.weights().items()}

    def tags_of(self, part: PartySlice, samples: DocumentSamples) -> list[str]:
        """Tags of a party's documents, in the order of their vectors."""
        return [document.tag for document in samples.take(part.rows).documents]

    def vectors_of(
        self, weights: Weights, part: PartySlice, samples: DocumentSamples
    ) -> np.ndarray:
        """Vectors (N, size) of a party's documents under the finished weights.

        They are inferred as a query's vector is: those of the training fit the party's
        own last rows, not the fused ones. Inferred once, then saved on this node.

        Raises
        ------
        DataError
            With `share: output_only`, if the party's own word vectors are missing.
        """
        documents = samples.take(part.rows).documents
        state = self._load_state(part, documents) if self.has_own_words else {}
        if self.has_own_words and "wv" not in state:
            got = "no word vectors of this run in party_dir on its node"
            raise DataError(part.party, got, "those that output_only leaves there")
        self.load({**weights, **state})
        rows = [array.tobytes() for array in self._rows().values()]
        fingerprint = _fingerprint(documents) + _digest(*rows)
        file = self.store.folder / part.party / SEARCH_FILE
        cached = self.store.read(file, fingerprint)
        if cached is not None:
            return cached["vectors"]
        words = [document.pieces for document in documents]
        vectors = np.array(list(map(self.trainer.infer, words)))
        self.store.try_write(file, {"vectors": vectors}, fingerprint)
        return vectors

    def vector_of(self, words: list[str]) -> np.ndarray:
        """Vector (size,) of a new document under the rows that are loaded."""
        return self.trainer.infer(split_words(words, self.row_of_word))

    def _rows(self) -> Weights:
        model = self.trainer.model
        return {"wv": model.wv.vectors, "syn1neg": model.syn1neg}

    def _load_state(
        self, part: PartySlice, documents: list[TrainingDocument]
    ) -> Weights:
        """The party's saved arrays of its last round, or initial ones.

        If they are missing or older than expected, `notes` says so.
        """
        party, round = part.party, part.round
        made_in, arrays, reason = self.store.load_before(
            party, round, _fingerprint(documents)
        )
        if arrays is None or arrays["vectors"].shape != (len(documents), self._size):
            tags = [f"document/{document.tag}" for document in documents]
            vectors = initial_vectors(self.plan.seed, tags, self._size)
            if round > 1:
                reason = reason or "none are on its node from before"
                note = f"began its document vectors anew in round {round}: {reason}"
                self.notes[party] = note
            return {"vectors": vectors}
        if made_in < round - 1 and self.config.party_fraction == 1:
            note = f"trained round {round} from its document vectors of round {made_in}"
            self.notes[party] = note
        return arrays

    def _rates(self, round: int) -> list[tuple[float, float]]:
        """First and last learning rate of each pass of a round.

        The rate decreases linearly once over all passes of the federation.
        """
        first, epochs = self.plan.learning_rate, self.config.epochs
        last = min(MIN_LEARNING_RATE, first)
        rates = np.linspace(first, last, self.config.rounds * epochs + 1)
        start = (round - 1) * epochs
        return list(itertools.pairwise(rates[start : start + epochs + 1].tolist()))

    def _count_uses(self, documents: list[TrainingDocument]) -> np.ndarray:
        """How often each word of the vocabulary is used, (V,) float32."""
        pieces = (piece for document in documents for piece in document.pieces)
        uses = np.zeros(len(self.row_of_word), np.float32)
        for word, n_uses in Counter(itertools.chain.from_iterable(pieces)).items():
            uses[self.row_of_word[word]] = n_uses
        return uses


@dataclass(frozen=True)
class DocumentVectorStore:
    """Files `folder`/<party>/round-00003.npz of one run, each written atomically.

    A file holds the arrays after a round. It is kept while a later round may be trained
    again: a killed aggregator goes back by up to `n_kept` - 1 rounds. Each file has a
    fingerprint of the data that its arrays belong to; files of other data are not read.
    """

    folder: Path
    n_kept: int

    def check(self) -> None:
        """Raise DataError if the folder cannot be written."""
        try:
            durable_files.make_folder(self.folder, 0o700)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            needed = "a folder that can be written, on the party's own node (party_dir)"
            raise DataError(str(self.folder), str(error.strerror), needed) from None

    def load_before(
        self, party: str, round: int, fingerprint: str
    ) -> tuple[int, Weights | None, str]:
        """Load a party's newest arrays from before a round.

        Returns
        -------
        The round that made them (0 if there are none), the arrays, and the reason why
        the newest file could not be used.
        """
        for made_in in reversed(self._rounds(party)):
            if made_in < round:
                arrays = self.read(self._file(party, made_in), fingerprint)
                if arrays is not None:
                    return made_in, arrays, ""
                reason = f"what it has of round {made_in} is damaged or of other"
                return 0, None, f"{reason} documents"
        return 0, None, ""

    def read(self, file: Path, fingerprint: str) -> Weights | None:
        """Arrays of a file; None if it is missing, damaged, or of other data."""
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            is_same = arrays.pop(FINGERPRINT).tobytes().decode() == fingerprint
        except Exception:  # a damaged zip raises of many kinds
            return None
        return arrays if is_same else None

    def save(self, party: str, round: int, arrays: Weights, fingerprint: str) -> None:
        """Write the arrays after a round; delete files that no round can need again."""
        file = self._file(party, round)
        durable_files.make_folder(file.parent, 0o700)
        self.write(file, arrays, fingerprint)
        rounds = self._rounds(party)
        old = [other for other in rounds if other <= round - self.n_kept]
        newer = [other for other in rounds if other > round]  # before a restart
        for other in old[:-1] + newer:
            self._file(party, other).unlink(missing_ok=True)

    def write(self, file: Path, arrays: Weights, fingerprint: str) -> None:
        """Write one file atomically."""
        data = np.frombuffer(fingerprint.encode(), np.uint8)
        members: dict[str, Any] = {FINGERPRINT: data, **arrays}
        with durable_files.replace_file(file, 0o600) as path, path.open("wb") as opened:
            np.savez(opened, **members)

    def try_write(self, file: Path, arrays: Weights, fingerprint: str) -> None:
        """Write a file that can be computed again; nothing happens on a disk error."""
        with contextlib.suppress(OSError):
            durable_files.make_folder(file.parent, 0o700)
            self.write(file, arrays, fingerprint)

    def _file(self, party: str, round: int) -> Path:
        return self.folder / party / f"round-{round:05d}.npz"

    def _rounds(self, party: str) -> list[int]:
        folder = self.folder / party
        if not folder.is_dir():
            return []
        names = [file.stem.removeprefix("round-") for file in folder.glob("round-*")]
        return sorted(int(name) for name in names if name.isdigit())


def _fingerprint(documents: list[TrainingDocument]) -> str:
    """A hash of the documents' tags and numbers of words."""
    lines = [f"{d.tag}/{sum(map(len, d.pieces))}" for d in documents]
    return _digest("\n".join(lines).encode())


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
