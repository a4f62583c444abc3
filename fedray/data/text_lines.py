"""Data handler `text_lines`: JSON lines of text and label to padded tokens.

Errors name lines and keys, never a text or a label.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedray.data.holdout import draw_tests
from fedray.data.options import Origin, TextLinesOptions, read_options
from fedray.data.table_files import find_files
from fedray.data.text_files import get_text, read_objects
from fedray.errors import DataError, MissingExtra
from fedray.survey import DataCodes, DataSurvey, ValueCounts

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.bz2", ".json")
TOKENS = "tokens"  # as `label`: the text's own tokens
IGNORED = -100  # label of a padded place, which losses of positions leave out
LINE = '{"text": ..., "label": ...} on each line'
PADDING = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")  # names of tokens that pad
MAX_NUMBER = 1 << 53
BLOCK = 1024  # texts that are encoded at a time

Encode = Callable[[list[str]], list[list[int]]]


class Lines(NamedTuple):
    """What lines have: texts, labels (texts or numbers), values of another key."""

    texts: list[str]
    labels: list[Any]
    others: list[str]


class TextLines:
    """Data handler of texts in JSON lines, as token numbers for a transformer.

    Inputs are ``{"input_ids", "attention_mask"}``, int64 (N, max_length). Labels that
    are texts become class numbers by codes that all parties share; whole numbers stay,
    other numbers are float32. With ``label: tokens`` they are the token numbers
    themselves, -100 where a text is padded.

    Parameters
    ----------
    path : a file, a folder of files, or a pattern.
    options : `TextLinesOptions` has them.

    Raises
    ------
    DataError
        Naming file and line.
    """

    options_class = TextLinesOptions

    def __init__(self, path: str, *, origin: Origin | None = None, **options: Any):
        self.path, self.origin = path, origin or Origin()
        self.options: TextLinesOptions = read_options(TextLinesOptions, options)
        self._codes: DataCodes | None = None

    def get_survey(self, rows: np.ndarray | None = None) -> DataSurvey:
        """Names of the labels, where they are texts."""
        train, test = self._parts
        chosen = range(len(train.texts)) if rows is None else rows.tolist()
        if not _has_names(train):
            return DataSurvey(n_samples=len(chosen))
        labels = [train.labels[row] for row in chosen]
        counts = ValueCounts.of(labels, test.labels if rows is None else ())
        return DataSurvey(labels=counts, n_samples=len(chosen))

    def use_codes(self, codes: DataCodes) -> None:
        """Number the labels as all parties do."""
        self._codes = codes

    def get_data(self) -> tuple[Any, Any]:
        """Return ``(x_train, y_train), (x_test, y_test)``."""
        codes = self._codes or self.get_survey().codes()
        pairs = [self._encode(part, codes) for part in self._parts]
        return pairs[0], pairs[0 if self.origin.is_test else 1]

    def get_column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of a key that parties go by, of training and test samples."""
        train, test = (np.array(part.others, str) for part in self._parts)
        return train, test

    def get_values(self, name: str) -> list[str]:
        """All values of a key, in their order."""
        return sorted({*self._read(self.path, name).others})

    @functools.cached_property
    def _parts(self) -> tuple[Lines, Lines]:
        """Lines for training and for tests; their labels are all texts or numbers."""
        lines, test = self._read(self.path, self.origin.by), self.options.test
        nothing = Lines([], [], [])
        if self.origin.is_test:
            return lines, nothing
        if isinstance(test, str):
            return lines, self._read(test, self.origin.by)
        groups = np.unique(lines.others, return_inverse=True)[1]
        by_party = groups if self.origin.by else None
        tests = draw_tests(len(lines.texts), test, self.origin, by_party)
        is_test = np.isin(np.arange(len(lines.texts)), tests)
        return _take(lines, ~is_test), _take(lines, is_test)

    def _read(self, path: str, by: str | None) -> Lines:
        lines = Lines([], [], [])
        for file in find_files(path, SUFFIXES, self.origin):
            for name, value in read_objects(file, LINE):
                self._add(lines, value, f"{file}, {name}", by)
        if not lines.texts:
            raise DataError(path, "no lines", LINE)
        return lines

    def _add(
        self, lines: Lines, value: dict[str, Any], where: str, by: str | None
    ) -> None:
        """Add a line's text, label and value of `by`."""
        key, label_key = self.options.text, self.options.label
        text = get_text(value, key, "a line", where)
        if text is None:
            keys = [str(name)[:40] for name in list(value)[:10]]
            raise DataError(where, f"no {key!r} among its keys {keys}", LINE)
        lines.texts.append(text)
        if label_key not in (None, TOKENS) and not self.origin.may_lack_targets:
            label = value.get(label_key)
            first = lines.labels[0] if lines.labels else label
            _check_label(label, first, where, label_key)
            lines.labels.append(label)
        if by is not None:
            other = value.get(by)
            if other is None or isinstance(other, dict | list):
                raise DataError(where, f"no {by!r}", "a party for each line")
            lines.others.append(str(other))

    def _encode(self, lines: Lines, codes: DataCodes) -> tuple[dict[str, Any], Any]:
        """Inputs and targets of some lines."""
        shape = (len(lines.texts), self.options.max_length)
        encode, padding = self._tokenizer
        ids, mask = np.full(shape, padding), np.zeros(shape, np.int64)
        for start in range(0, len(lines.texts), BLOCK):
            block = encode(lines.texts[start : start + BLOCK])
            for i, tokens in enumerate(block, start):
                n_tokens = min(len(tokens), shape[1])
                ids[i, :n_tokens], mask[i, :n_tokens] = tokens[:n_tokens], 1
        x = {"input_ids": ids, "attention_mask": mask}
        if self.options.label is None or self.origin.may_lack_targets:
            return x, None
        if self.options.label == TOKENS:
            return x, np.where(mask == 1, ids, IGNORED)
        if _has_names(lines):
            return x, codes.encode_labels(lines.labels, self.path)
        is_whole = all(isinstance(label, int) for label in self._parts[0].labels)
        return x, np.array(lines.labels, np.int64 if is_whole else np.float32)

    @functools.cached_property
    def _tokenizer(self) -> tuple[Encode, int]:
        """A function that gives the tokens of texts, and the one that pads."""
        if self.options.tokenizer is None:
            return _encode_bytes, 0
        folder = Path(self.options.tokenizer)
        if not folder.is_dir():
            needed = "a folder that a tokenizer's save_pretrained(folder) writes"
            raise DataError(str(folder), "no folder there", needed)
        try:
            if (folder / "tokenizer.json").is_file():
                return _read_fast(folder, self.options.max_length)
            return _read_slow(folder, self.options.max_length)
        except ImportError:
            raise MissingExtra("a tokenizer of text_lines", "lora") from None
        except Exception as error:
            got = f"a tokenizer that cannot be read ({type(error).__name__})"
            needed = "what a tokenizer's save_pretrained(folder) writes"
            raise DataError(str(folder), got, needed) from None


def _take(lines: Lines, is_chosen: np.ndarray) -> Lines:
    rows = np.flatnonzero(is_chosen).tolist()
    return Lines(*([one[row] for row in rows] if one else [] for one in lines))


def _encode_bytes(texts: list[str]) -> list[list[int]]:
    """Tokens 1 to 256 for the bytes of UTF-8; 0 pads."""
    return [[byte + 1 for byte in _to_bytes(text)] for text in texts]


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _read_fast(folder: Path, max_length: int) -> tuple[Encode, int]:
    """The tokenizer of tokenizer.json, by the package tokenizers."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    file = folder / "tokenizer_config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    own = saved.get("pad_token")
    own = own.get("content") if isinstance(own, dict) else own
    numbers = map(tokenizer.token_to_id, filter(None, (own, *PADDING)))
    padding = next((number for number in numbers if number is not None), 0)

    def encode(texts: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch(texts)]

    return encode, padding


def _read_slow(folder: Path, max_length: int) -> tuple[Encode, int]:
    """A tokenizer of other files, by the package transformers; no code is run."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

    return encode, tokenizer.pad_token_id or 0


def _has_names(lines: Lines) -> bool:
    return bool(lines.labels) and isinstance(lines.labels[0], str)


def _check_label(label: Any, first: Any, where: str, key: str) -> None:
    """Refuse a label that is none, or of another kind than the first one."""
    if label is None:
        needed = f"{LINE}; data_args: {{label: tokens}} learns the texts, [] is none"
        raise DataError(where, f"no {key!r}", needed)
    is_number = isinstance(label, int | float) and abs(label) < MAX_NUMBER  # not NaN
    if not is_number and not isinstance(label, str):
        got = f"a {key!r} of type {type(label).__name__}"
        raise DataError(where, got, "text, or a finite number")
    if isinstance(label, str) != isinstance(first, str):
        got = f"a {key!r} that is {'text' if isinstance(label, str) else 'a number'}"
        needed = "labels of one kind: the first line's is of another"
        raise DataError(where, got, needed)
