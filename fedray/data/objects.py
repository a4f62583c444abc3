"""Data objects of a Python caller, as train and test data of a party.

Arrays, tensors, DataFrames, data sets of PyTorch and Hugging Face.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedray.data.arrays import to_array
from fedray.data.structure import as_inputs
from fedray.datasets import is_library_dataset
from fedray.errors import DataError

TARGET = "target"  # a DataFrame's column
PARTS = {"train", "test"}
FORMS = (
    "(x, y), a data set, a DataFrame with a column 'target', or "
    '{"train": ..., "test": ...} of these'
)


def read_parts(who: str, value: Any, allows_missing: bool = False) -> tuple[Any, Any]:
    """Train and test data of what was given for a party; None where there is no test.

    who : as errors name it.
    allows_missing : whether NaN in inputs may stand for a value that is missing.

    Raises
    ------
    DataError
        If it has another form, or x and y have other lengths.
    """
    if isinstance(value, Mapping):
        return _read_mapping(who, value, allows_missing)
    if _is_two_pairs(value):  # as `load_data` of Keras gives them
        value = dict(zip(("train", "test"), value, strict=True))
        return _read_mapping(who, value, allows_missing)
    return read_part(who, value, allows_missing), None


def _read_mapping(
    who: str, value: Mapping[str, Any], allows_missing: bool
) -> tuple[Any, Any]:
    if unknown := sorted(map(str, value.keys() - PARTS)):
        got = f"a mapping with {', '.join(map(repr, unknown))}"
        raise DataError(who, got, FORMS)
    if value.get("train") is None:
        raise DataError(who, "a mapping without 'train'", FORMS)
    train, test = value["train"], value.get("test")
    part = read_part(f"{who} (train)", train, allows_missing)
    if test is None:
        return part, None
    test_part = read_part(f"{who} (test)", test, allows_missing)
    columns, others = columns_of(train), columns_of(test)
    if columns and others and columns != others:
        raise DataError(f"{who} (test)", *_differ(others, columns, "train"))
    return part, test_part


def read_part(who: str, value: Any, allows_missing: bool = False) -> Any:
    """Samples and targets of one part; data sets stay as they are.

    Raises
    ------
    DataError
        If it has another form, or x and y have other lengths.
    """
    if is_frame(value):
        return _read_frame(who, value, allows_missing)
    if is_library_dataset(value):
        return value
    if is_array(value):  # of inputs that are the targets, too
        return _to_numpy(who, "x", value, allows_missing), None
    if not isinstance(value, tuple | list) or len(value) != 2:
        kind = type(value).__name__
        size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise DataError(who, f"a {kind}{size}", FORMS)
    x = value[0]
    if isinstance(x, list) and is_array(value[1]):  # several inputs, as of Keras
        x = as_inputs(x, {len(value[1])})
    x = _to_numpy(who, "x", x, allows_missing)
    y = None if value[1] is None else _to_numpy(who, "y", value[1])
    if y is not None and _lengths(x) != _lengths(y):
        n_x, n_y = (sorted(_lengths(part)) for part in (x, y))
        got = f"{_join(n_x)} samples x and {_join(n_y)} targets y"
        raise DataError(who, got, "one y for each x")
    if _lengths(x) == {0}:
        raise DataError(who, "no samples", "at least one")
    return x, y


def take_column(who: str, value: Any, name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """A DataFrame, or its parts, without a column; its values for train and test.

    Values are texts, as those of tables in files.

    Raises
    ------
    DataError
        If it has no such column, or a row without a value there.
    """
    if not isinstance(value, Mapping):
        value = {"train": value}
    values, rest = dict[str, np.ndarray](), dict[str, Any]()
    for part in sorted(value.keys() & PARTS):
        frame = value[part]
        if not is_frame(frame) or name not in frame.columns:
            kind = "a DataFrame" if is_frame(frame) else f"a {type(frame).__name__}"
            raise DataError(who, f"{kind} without a column {name!r}", "one to go by")
        if frame[name].isna().any():
            got = f"column {name!r} with no value in {int(frame[name].isna().sum())}"
            raise DataError(who, f"{got} rows", "a party for each row")
        values[part] = np.array(frame[name].tolist()).astype(str)
        rest[part] = frame.drop(columns=[name])
    none = np.array([], str)
    return {**value, **rest}, values.get("train", none), values.get("test", none)


def check_columns(frames: Mapping[str, Any]) -> None:
    """Compare the columns of all parties that are DataFrames.

    Raises
    ------
    DataError
        Naming the first party whose columns are not the first one's.
    """
    columns = {name: columns_of(frame) for name, frame in frames.items()}
    columns = {name: own for name, own in columns.items() if own}
    first = next(iter(columns), "")
    for name, own in columns.items():
        if own != columns[first]:
            raise DataError(f"of party {name}", *_differ(own, columns[first], first))


def is_frame(value: Any) -> bool:
    """Whether it is a pandas DataFrame; pandas is not imported for that."""
    kinds = [
        (base.__module__.partition(".")[0], base.__name__) for base in _bases(value)
    ]
    return ("pandas", "DataFrame") in kinds


def is_array(value: Any) -> bool:
    """Whether it is an array of any library."""
    return hasattr(value, "__array__") and hasattr(value, "shape")


def columns_of(value: Any) -> list[str]:
    """Columns of a DataFrame, of one with a train part that part's; else none."""
    if isinstance(value, Mapping):
        value = value.get("train")
    return [str(column) for column in value.columns] if is_frame(value) else []


def _bases(value: Any) -> tuple[type, ...]:
    return type(value).__mro__


def _is_two_pairs(value: Any) -> bool:
    """Whether it is ((x, y), (x, y)): of (x, y) all arrays would have one length."""
    if not _is_pair(value) or not all(map(_is_pair, value)):
        return False
    sizes = [[_length(part) for part in pair] for pair in value]
    is_whole = all(x == y and x is not None for x, y in sizes)
    return is_whole and sizes[0] != sizes[1]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _length(value: Any) -> int | None:
    return value.shape[0] if is_array(value) and len(value.shape) else None


def _to_numpy(who: str, name: str, value: Any, allows_missing: bool = False) -> Any:
    """Arrays of numbers, nested as they were: numpy travels without a copy."""
    if isinstance(value, Mapping):
        items = {
            key: _to_numpy(who, f"{name}[{key!r}]", one, allows_missing)
            for key, one in value.items()
        }
        return _of_one_length(who, name, items)
    if isinstance(value, tuple):
        arrays = tuple(
            _to_numpy(who, f"{name}[{i}]", one, allows_missing)
            for i, one in enumerate(value)
        )
        return _of_one_length(who, name, arrays)
    return to_array(value, name, who, allows_missing)


def _of_one_length(who: str, name: str, arrays: Any) -> Any:
    lengths = _lengths(arrays)
    if len(lengths) > 1:
        got = f"arrays of {_join(sorted(lengths))} samples in {name}"
        raise DataError(who, got, "arrays of as many samples each")
    if not lengths:
        raise DataError(who, f"{name} without an array", FORMS)
    return arrays


def _lengths(nested: Any) -> set[int]:
    if isinstance(nested, Mapping):
        return set().union(*map(_lengths, nested.values()))
    if isinstance(nested, tuple):
        return set().union(*map(_lengths, nested))
    return {len(nested)}


def _join(numbers: list[int]) -> str:
    return " and ".join(f"{n:,}" for n in numbers)


def _read_frame(
    who: str, frame: Any, allows_missing: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a DataFrame: x float32 (N, columns), y its column `target`."""
    columns = columns_of(frame)
    if columns.count(TARGET) != 1:
        listed = ", ".join(map(repr, columns[:10])) or "no column"
        needed = f"one column '{TARGET}': df.rename(columns={{'...': '{TARGET}'}})"
        raise DataError(who, f"a DataFrame with {listed}", needed)
    if len(columns) < 2:
        raise DataError(who, "a DataFrame of one column", "columns beside 'target'")
    inputs = frame.drop(columns=[TARGET])
    arrays = [_column(who, name, inputs[name], allows_missing) for name in inputs]
    x = np.stack([array.astype(np.float32) for array in arrays], axis=1)
    return x, _column(who, TARGET, frame[TARGET])


def _column(
    who: str, name: str, column: Any, allows_missing: bool = False
) -> np.ndarray:
    array = column.to_numpy()
    if array.dtype.kind not in "fiub":
        array = np.array([None if v is None else v for v in array.tolist()])
    return to_array(array, f"column {name!r}", who, allows_missing)


def _differ(own: list[str], other: list[str], whose: str) -> tuple[str, str]:
    """What was got and needed of columns that are not another's."""
    missing = [name for name in other if name not in own]
    more = [name for name in own if name not in other]
    parts = []
    if missing:
        parts.append(f"no column {', '.join(map(repr, missing[:5]))}")
    if more:
        parts.append(f"a column {', '.join(map(repr, more[:5]))} more")
    got = " and ".join(parts) or "the same columns in another order"
    return got, f"the columns of {whose}, in their order"
