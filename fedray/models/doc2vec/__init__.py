"""doc2vec models of gensim 4: paragraph vectors, their words agreed before round 1."""

from fedray.models.doc2vec.build import (
    answer,
    problems,
    read,
    read_file,
    surveyed,
    write,
)
from fedray.models.doc2vec.file import to_gensim
from fedray.models.doc2vec.model import Doc2VecModel
from fedray.models.doc2vec.vocabulary import merged

SUFFIX = ".npz"
TEXT = True  # trains on documents, not on arrays
make = Doc2VecModel

__all__ = [
    "SUFFIX",
    "TEXT",
    "answer",
    "make",
    "merged",
    "problems",
    "read",
    "read_file",
    "surveyed",
    "to_gensim",
    "write",
]
