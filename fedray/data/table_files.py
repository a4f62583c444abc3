"""CSV and Parquet files, read by pyarrow in batches; and the files that a path names.

Errors say file, column and row, never a value. Rows are counted as spreadsheets do: of
a CSV with a header the first one is row 2.
"""

import glob
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedray.data.options import CsvOptions, Origin
from fedray.data.text_files import BoundedStream, marked_encoding, open_bounded
from fedray.errors import DataError, MissingExtra
from fedray.file_kinds import kind_of_start, read_start

BATCH_ROWS = 1 << 16
BATCH_VALUES = 1 << 22
BLOCK_BYTES = 16 << 20  # of a CSV read at a time; no row may be longer
MAX_BYTES = 1 << 40  # that a CSV decompresses to; what is read of it counts apart
MAX_FILES = 1_000_000
# kinds of columns; dates can be texts, what is OTHER (lists, bytes) can be nothing
WHOLE, NUMBER, BOOL, TEXT = "whole", "number", "bool", "text"
DATE, OTHER = "date", "other"
NUMBERS_NEEDED = (
    "numbers; dtypes: {{{0}: category}} codes names of categories, which then leave "
    "the party, and columns: [...] leaves others out"
)
RAGGED = re.compile(r".*?(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", re.DOTALL)
CONVERSION = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (\w+)"
)


class TableFile(Protocol):
    """One file of a table.

    kinds : WHOLE, NUMBER, BOOL, TEXT, DATE or OTHER by column, in the file's order; of
        a CSV as its first rows have it.
    first_row : how people count the first row of values.
    has_types : whether the file itself says what its columns hold.
    """

    path: Path
    kinds: dict[str, str]
    first_row: int
    has_types: bool

    def batches(self, columns: Mapping[str, str]) -> Iterator[Any]:
        """Record batches of these columns, each as NUMBER, BOOL or TEXT."""


def find_files(path: str, suffixes: Sequence[str], origin: Origin) -> list[Path]:
    """Files that a path names: itself, those of a folder or of a pattern, sorted.

    In a folder hidden files and those of other suffixes are left out.

    Raises
    ------
    DataError
        If there are none, or one is no regular file or leads out of the data root.
    """
    place = Path(path)
    if place.is_dir():
        files = _files_below(place, suffixes)
        needed = f"a folder with {' or '.join(suffixes[:2])} files"
    elif glob.has_magic(path) and not place.exists():
        files = sorted(map(Path, glob.glob(path, recursive=True)))
        needed = "a pattern of paths that fits some"
    else:
        files, needed = [place], "a file or folder that exists on the party's own node"
    files = [file for file in files if not file.is_dir()]
    if not files or not files[0].exists():
        raise DataError(path, "no file there", needed)
    for file in files:
        check_place(file, path, origin)
    return files


def _files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        names = [name for name in names if name[0] not in "._"]
        files += [Path(root, n) for n in names if n.lower().endswith(tuple(suffixes))]
        if len(files) > MAX_FILES:
            raise DataError(str(folder), "more files", f"at most {MAX_FILES:,}")
    return sorted(files)


def check_place(file: Path, source: str, origin: Origin) -> None:
    """Refuse what is no regular file, and a link that leads out of the data root.

    Raises
    ------
    DataError
        As above.
    """
    try:
        mode = file.stat().st_mode
        resolved = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "a link to itself"
        needed = "files that can be opened"
        raise DataError(str(file), str(why), needed) from None
    if not stat.S_ISREG(mode):
        raise DataError(str(file), "a device, pipe or socket", "regular files")
    root = Path(origin.root).resolve() if origin.root else None
    if root is not None and not resolved.is_relative_to(root):
        inner = os.path.relpath(file, source) if file != Path(source) else file.name
        needed = "files within the operator's data root"
        raise DataError(inner, "a link that leads out of the data root", needed)


def import_pyarrow(what: str) -> Any:
    """The package pyarrow.

    Raises
    ------
    MissingExtra
        If it is not installed.
    """
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(f"data_handler {what}", "tables") from None
    return pyarrow


class CsvFile:
    """A CSV file; .gz and .bz2 are decompressed, a byte order mark tells the encoding.

    Raises
    ------
    DataError
        If it is no CSV, or has no header.
    """

    has_types = False

    def __init__(self, path: Path, options: CsvOptions):
        self.path, self.options = path, options
        self.arrow = import_pyarrow("csv")
        self.first_row = 1 if options.names else 2
        start = self._start()
        self.encoding = marked_encoding(start) or options.encoding
        reader = self._open(None)
        names = reader.schema.names
        check_names(names, path)
        if options.names is None and all(not name.strip() for name in names):
            raise DataError(str(path), "no header", "names of columns in row 1")
        types = reader.schema.types
        kinds = [TEXT if "binary" in str(t) else _kind_of_type(t) for t in types]
        self.kinds = dict(zip(names, kinds, strict=True))

    def batches(self, columns: Mapping[str, str]) -> Iterator[Any]:
        """Record batches of these columns, each as NUMBER, BOOL or TEXT."""
        arrow = self.arrow
        types = {NUMBER: arrow.float64(), BOOL: arrow.bool_(), TEXT: arrow.string()}
        reader = self._open({name: types[kind] for name, kind in columns.items()})
        batch = None
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                self._refuse_open_quote(batch)
                return
            except Exception as error:
                raise self._to_data_error(error) from None
            yield batch

    def _refuse_open_quote(self, last: Any) -> None:
        """Refuse a file whose last value took in all lines below a quote.

        In any other column than the last one its row then lacks values.
        """
        name = [*self.kinds][-1]
        is_read = last is not None and last.num_rows and name in last.schema.names
        is_closed = self.stream.n_quotes % 2 == 0 or self.stream.end.endswith(b'"')
        if is_closed or not is_read:
            return
        value = last.column(name)[-1].as_py()
        if isinstance(value, str) and "\n" in value:
            got = f"a quote in column {name!r} that is not closed"
            raise DataError(str(self.path), got, "one at the end of the value")

    def _start(self) -> bytes:
        try:
            with open_bounded(self.path) as stream:
                start = stream.read(1024)
        except DataError:
            raise
        except (OSError, EOFError, ValueError) as error:
            why = getattr(error, "strerror", None) or "a file that is cut short"
            raise DataError(str(self.path), why, "a file that can be read") from None
        if not start.strip():
            raise DataError(str(self.path), "an empty file", "a CSV with a header")
        kind = kind_of_start(read_start(self.path), self.path.suffix)
        if b"\0" in start and not marked_encoding(start):
            what = kind.what if kind else "a file of bytes"
            raise DataError(str(self.path), what, "a CSV, which is text")
        return start

    def _open(self, types: Mapping[str, Any] | None) -> Any:
        """A reader of some columns; without types one that guesses those of all."""
        csv, options = self.arrow.csv, self.options
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        delimiter = options.delimiter or ("\t" if ".tsv" in suffixes else ",")
        stream = open_bounded(self.path)
        stream.n_most = max(stream.n_most, self.path.stat().st_size)
        self.stream = _Unlimited(stream)
        try:
            return csv.open_csv(
                self.arrow.PythonFile(self.stream, mode="r"),
                csv.ReadOptions(
                    use_threads=False,
                    block_size=BLOCK_BYTES,
                    column_names=options.names,
                    encoding=self.encoding,
                ),
                csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                csv.ConvertOptions(**self._conversion(types)),
            )
        except Exception as error:
            raise self._to_data_error(error) from None

    def _conversion(self, types: Mapping[str, Any] | None) -> dict[str, Any]:
        """Options of pyarrow's for what values become."""
        options: dict[str, Any] = {
            "column_types": types,
            "strings_can_be_null": True,
            "decimal_point": self.options.decimal,
        }
        if self.options.na_values is not None:
            options["null_values"] = self.options.na_values
        # a choice is slow to look up: the square of comparisons
        if types is not None and {*types} != {*self.kinds}:
            options["include_columns"] = [*types]
        return options

    def _to_data_error(self, error: Exception) -> DataError:
        """What pyarrow says of a file, without the values that it quotes."""
        if isinstance(error, DataError):
            return error
        path, text = str(self.path), str(error)
        if "UTF8" in text or isinstance(error, UnicodeError):
            got = f"text that is not {self.encoding}"
            return DataError(path, got, "data_args: {encoding: latin-1}, or another")
        if isinstance(error, LookupError) and "encoding" in text:
            got = f"an encoding {self.encoding[:40]!r} that Python does not know"
            return DataError(path, got, "data_args: {encoding: utf-8}, or another")
        if match := RAGGED.match(text):
            row, n_columns, n_values = match.groups()
            got = f"{n_values} values in row {row or '?'}"
            return DataError(path, got, f"{n_columns}, one for each column")
        if match := CONVERSION.search(text):
            names = list(self.kinds)
            column = names[int(match[1])] if int(match[1]) < len(names) else match[1]
            what = "true or false" if match[3] == "bool" else "a number"
            got = f"column {column!r} with something else than {what} in row {match[2]}"
            return DataError(path, got, NUMBERS_NEEDED.format(column))
        if "straddling" in text or "too large" in text:
            needed = f"rows of at most {BLOCK_BYTES >> 20} MiB"
            return DataError(
                path, "a longer row, or a quote that is not closed", needed
            )
        if isinstance(error, EOFError | OSError):
            return DataError(path, "a file that is cut short", "a whole CSV file")
        got = f"a file that cannot be read ({type(error).__name__})"
        return DataError(path, got, "a CSV with a header, a value for each column")


class _Unlimited(io.RawIOBase):
    """A bounded stream read in parts: no part is a member of an archive.

    n_quotes : that were read; `end` is the last that is no line's end.
    """

    def __init__(self, stream: BoundedStream):
        self.stream, self.n_quotes, self.end = stream, 0, b""

    def readable(self) -> bool:
        """True: it can be read, not written."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        self.stream.n_member_left = max(size, 0) + BLOCK_BYTES
        chunk = self.stream.read(size)
        self.n_quotes += chunk.count(b'"')
        self.end = chunk.rstrip()[-1:] or self.end
        return chunk

    def close(self) -> None:
        """Close the inner stream too."""
        self.stream.close()
        super().close()


class ParquetFile:
    """A Parquet file.

    Raises
    ------
    DataError
        If it is none, or truncated.
    """

    first_row = 1
    has_types = True

    def __init__(self, path: Path, options: Any = None):
        self.path, self.arrow = path, import_pyarrow("parquet")
        try:
            self.file = self.arrow.parquet.ParquetFile(path)
            schema = self.file.schema_arrow
        except Exception as error:
            raise self._to_data_error(error) from None
        check_names(schema.names, path)
        kinds = map(_kind_of_type, schema.types)
        self.kinds = dict(zip(schema.names, kinds, strict=True))

    def batches(self, columns: Mapping[str, str]) -> Iterator[Any]:
        """Record batches of these columns, in the types that the file has."""
        n_rows = max(1, min(BATCH_ROWS, BATCH_VALUES // max(1, len(columns))))
        batches = self.file.iter_batches(n_rows, columns=list(columns))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                raise self._to_data_error(error) from None
            yield batch

    def _to_data_error(self, error: Exception) -> DataError:
        kind = kind_of_start(read_start(self.path), self.path.suffix)
        is_other = kind is not None and "Parquet" not in kind.what
        got = f"a file that cannot be read ({type(error).__name__})"
        if kind is not None and is_other:
            got = kind.what
        elif not self.path.stat().st_size:
            got = "an empty file"
        return DataError(str(self.path), got, "a whole Parquet file")


def check_names(names: Sequence[str], path: Path) -> None:
    """Refuse columns of one name.

    Raises
    ------
    DataError
        Naming them.
    """
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        listed = ", ".join(repr(name[:40]) for name in twice[:5])
        raise DataError(str(path), f"more than one column {listed}", "one of each name")


def _kind_of_type(type: Any) -> str:
    """The kind of a column of one of pyarrow's types."""
    import pyarrow.types as types

    if types.is_dictionary(type):
        return _kind_of_type(type.value_type)
    if types.is_boolean(type):
        return BOOL
    if types.is_integer(type) or types.is_null(type):
        return WHOLE
    if types.is_floating(type) or types.is_decimal(type):
        return NUMBER
    if types.is_temporal(type):
        return DATE
    is_text = types.is_string(type) or types.is_large_string(type)
    return TEXT if is_text or types.is_string_view(type) else OTHER
