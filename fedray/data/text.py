"""Tagged documents: tokenizer, and checks of what a text handler returns.

No error here quotes a document: errors leave the party, text does not.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from sys import intern
from typing import Any, NamedTuple

import numpy as np

from fedray.errors import DataError
from fedray.nested import Arrays
from fedray.untrusted_text import encodable, is_word

LETTERS = re.compile(r"[^\W\d]+")
WORD_LETTERS = (2, 15)  # shorter and longer words are left out
MAX_WORD = 100  # letters, of words that a custom handler made
MAX_TAG = 300  # letters
MAX_DOCUMENTS = 10_000_000
NEEDED = "documents: (tag, words or text[, group]), or objects with words and tags"


class Document(NamedTuple):
    """One document of a party.

    tag : unique among the party's documents, the same whenever it is read again.
    group : its label for `partition: dirichlet` and `shards`, where the source has one.
    """

    tag: str
    words: list[str]
    group: str | None = None


@dataclass(frozen=True, eq=False)
class Documents:
    """One party's documents, with the interface of `Samples`; there are no test data.

    x_train : (N,) of `Document`.
    y_train : (N,) int64 groups, or NaN without groups.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    n_train: int
    kind = "documents"
    n_test = 0

    @property
    def train(self) -> Arrays:
        """The documents and their groups."""
        return Arrays(self.x_train, self.y_train)

    @property
    def test(self) -> Arrays:
        """No document."""
        return Arrays(self.x_test, self.y_test)

    @property
    def x_test(self) -> np.ndarray:
        """No document: doc2vec is not evaluated."""
        return self.x_train[:0]

    @property
    def y_test(self) -> np.ndarray:
        """No group."""
        return self.y_train[:0]

    def digest(self) -> str:
        """sha256 of tags, groups and words, in hex."""
        sha = hashlib.sha256(str(self.n_train).encode())
        for tag, words, group in self.x_train:
            line = "\n".join((tag, repr(group), *words))  # none is in a word or tag
            sha.update(f"{line}\n\n".encode("utf-8", "surrogatepass"))
        return sha.hexdigest()

    def take(self, train_idx: np.ndarray, test_idx: np.ndarray) -> "Documents":
        """The documents at these indices."""
        x, y = self.x_train[train_idx], self.y_train[train_idx]
        return Documents(x, y, len(train_idx))


def tokenize(text: str) -> list[str]:
    """Split text into words as gensim's `simple_preprocess` does, without gensim.

    Runs of letters in lower case, of 2 to 15 letters, not beginning with ``_``.
    """
    low, high = WORD_LETTERS
    runs = LETTERS.findall(text.lower())
    return [intern(w) for w in runs if low <= len(w) <= high and w[0] != "_"]


def are_documents(data: Any) -> bool:
    """Whether `get_data()` returned documents: a generator, or by the first item."""
    if hasattr(data, "__next__"):
        return True
    if not isinstance(data, list | tuple) or not data:
        return False
    first = data[0]
    if isinstance(first, list | tuple) and not hasattr(first, "words"):
        return bool(first) and isinstance(first[0], str)
    return hasattr(first, "words")


def check_documents(items: Iterable[Any], source: str) -> Documents:
    """Check documents one by one; those without a word are left out.

    Raises
    ------
    DataError
        If one is not a document, two have one tag, or none has a word.
    """
    documents: dict[str, Document] = {}
    groups: dict[str | None, int] = {}
    for i, item in enumerate(islice(items, MAX_DOCUMENTS + 1)):
        if i == MAX_DOCUMENTS:
            raise DataError(source, "more", f"at most {MAX_DOCUMENTS} documents")
        document = _check_document(item, f"document {i + 1}", source)
        if document.tag in documents:
            got = f"document {i + 1} with the tag of another one"
            raise DataError(source, got, "a tag of its own for every document")
        if document.words:
            documents[document.tag] = document
            groups.setdefault(document.group, len(groups))
    if not documents:
        needed = "at least one with a word: look at the path, or leave this party out"
        raise DataError(source, "no documents", needed)
    x = np.empty(len(documents), object)
    x[:] = list(documents.values())
    y = np.full(len(x), np.nan)
    if None not in groups:
        y = np.array([groups[document.group] for document in x], np.int64)
    return Documents(x, y, len(x))


def _check_document(item: Any, name: str, source: str) -> Document:
    tag, words, group = _fields(item, name, source)
    if not isinstance(tag, str) or not 0 < len(tag) <= MAX_TAG:
        needed = f"a tag of 1 to {MAX_TAG} characters"
        raise DataError(source, f"{name} with another tag", needed)
    tag = encodable(tag)
    if group is not None and (not isinstance(group, str) or len(group) > MAX_TAG):
        raise DataError(source, f"{name} with a group of another kind", "a short text")
    if isinstance(words, str):
        return Document(tag, tokenize(words), group)
    return Document(tag, list(_check_words(words, name, source)), group)


def _fields(item: Any, name: str, source: str) -> tuple[Any, Any, Any]:
    """Tag, words and group of a document in any of the forms of `NEEDED`."""
    if isinstance(item, Document):
        return item
    if hasattr(item, "words") and hasattr(item, "tags"):  # as gensim's TaggedDocument
        tags = item.tags
        if not isinstance(tags, list | tuple) or len(tags) != 1:
            raise DataError(source, f"{name} with not just one tag", "one tag each")
        return tags[0], item.words, getattr(item, "group", None)
    if isinstance(item, list | tuple) and len(item) in (2, 3):
        tag, words, group = (*item, None)[:3]
        return tag, words, group
    raise DataError(source, f"{name} of type {type(item).__name__}", NEEDED)


def _check_words(words: Any, name: str, source: str) -> Iterator[str]:
    needed = f"words of 1 to {MAX_WORD} characters, without spaces and line ends"
    if not isinstance(words, list | tuple):
        raise DataError(source, f"{name} with words of another kind", needed)
    for word in words:
        if not isinstance(word, str) or not 0 < len(word) <= MAX_WORD:
            raise DataError(source, f"{name} with a word of another kind", needed)
        if not is_word(word):
            raise DataError(source, f"{name} with a word of several parts", needed)
        yield intern(word)
