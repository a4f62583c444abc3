"""Options of the ready data handlers (`data_args`), each declared once."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

from fedray.config import describe_unknown
from fedray.config.declaration import setting
from fedray.config.mistakes import problems_of
from fedray.config.specs import Settings, Text
from fedray.errors import ConfigError

MAX_SIDE = 16_384  # pixels
MAX_TOKENS = 1 << 20
NUMBERS = ("float32", "float64", "int64", "int32")
CATEGORY = "category"


@dataclass(frozen=True)
class Origin:
    """Whose data a handler reads: what its options do not say.

    party : name, which draws its test samples with `seed`.
    root : folder that no file may lie outside of; empty: anywhere.
    is_test : all samples are tests, and may be trained on by nobody.
    may_lack_targets : for predictions nobody needs them.
    channels_last : of images, where the options leave it open.
    by : the column that parties of a partition go by.
    """

    party: str = ""
    seed: int = 0
    root: str = ""
    is_test: bool = False
    may_lack_targets: bool = False
    channels_last: bool = False
    by: str | None = None


def _refuse(needed: str) -> PydanticCustomError:
    return PydanticCustomError("option", "needed {needed}", {"needed": needed})


def _to_name(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise _refuse("a column's name, in quotes if it looks like something else")
    return value


def _to_label(value: Any) -> str | None:
    return None if value is None or value in ([], ()) else _to_name(value)


def _to_names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = value if isinstance(value, list | tuple) else [value]
    if len(set(map(str, names))) < len(names):
        raise _refuse("each name once")
    return tuple(map(_to_name, names))


def _to_target(value: Any) -> str | tuple[str, ...] | None:
    if value is None or isinstance(value, list | tuple):
        return _to_names(value)
    return _to_name(value)


def _to_dtypes(value: Any) -> dict[str, str]:
    """A dtype for every column, under the empty name, or for each by its name."""
    by_column = value if isinstance(value, Mapping) else {"": value}
    for dtype in by_column.values():
        if dtype not in (*NUMBERS, CATEGORY):
            raise _refuse(f"{', '.join(NUMBERS)} or {CATEGORY}, for all or by column")
    return {str(name): dtype for name, dtype in by_column.items()}


def _to_share(value: Any) -> float | str:
    is_share = isinstance(value, int | float) and not isinstance(value, bool)
    if (isinstance(value, str) and value) or (is_share and 0 <= value < 1):
        return value
    raise _refuse("a share of the samples from 0 to below 1, or the path of a file")


def _to_missing(value: Any) -> float | str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value in (None, "error", "drop", "mean") or (is_number and math.isfinite(value)):
        return value
    raise _refuse("error, drop, mean or a number")


def _to_size(value: Any) -> tuple[int, int] | None:
    sides = value if isinstance(value, list | tuple) else [value, value]
    is_whole = all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides)
    if value is not None and (len(sides) != 2 or not is_whole):
        raise _refuse(f"pixels of a side, or [height, width], up to {MAX_SIDE}")
    return None if value is None else (sides[0], sides[1])


def _to_arrays(value: Any) -> Any:
    """Names of one array, of a tuple's, or of a dict's by key."""
    if isinstance(value, Mapping):
        return {str(key): _to_name(name) for key, name in value.items()}
    return _to_target(value)


def _to_one_character(value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or len(value) != 1):
        raise _refuse("one character")
    return value


Name = Annotated[Any, BeforeValidator(_to_name)]
Names = Annotated[Any, BeforeValidator(_to_names)]
Target = Annotated[Any, BeforeValidator(_to_target)]
Arrays = Annotated[Any, BeforeValidator(_to_arrays)]
Character = Annotated[Any, BeforeValidator(_to_one_character)]


class SplitOptions(Settings):
    """Options of every handler whose data is not in training and test samples yet."""

    test: Annotated[
        Any,
        BeforeValidator(_to_share),
        setting(
            "share of the samples that are tests, drawn by `seed` and the party's "
            "name; or the path of a file or folder of tests",
        ),
    ] = 0.2


class TableOptions(SplitOptions):
    """Options of tables: which columns are inputs and targets, of which kinds."""

    columns: Annotated[
        Names, setting("columns of the inputs", unset="all but the target's")
    ] = None
    target: Annotated[
        Target,
        setting(
            "column of the targets, or a list of columns; []: none",
            unset="the column named target, label or y",
        ),
    ] = None
    dtypes: Annotated[
        Any,
        BeforeValidator(_to_dtypes),
        setting(
            f"{', '.join(NUMBERS)} or {CATEGORY}, for all inputs or by column",
            unset="inputs float32; targets int64 if they are whole numbers, float32",
        ),
    ] = {}
    missing: Annotated[
        Any,
        BeforeValidator(_to_missing),
        setting(
            "what happens to missing values of inputs: error, mean (of all parties), a "
            "number; or drop, which leaves the row out",
            unset="error, unless normalize or a model's SimpleImputer fills them in",
        ),
    ] = None
    one_hot: Annotated[
        bool,
        setting("a column of 0 and 1 for each category instead of one of its codes"),
    ] = False


class CsvOptions(TableOptions):
    """Options of CSV files."""

    delimiter: Annotated[
        Character, setting("character between values", unset="a comma; of .tsv a tab")
    ] = None
    decimal: Annotated[Character, setting("decimal point of numbers")] = "."
    encoding: Annotated[
        Text, setting("the text's encoding, where no byte order mark tells it")
    ] = "utf-8"
    names: Annotated[
        Names, setting("names of the columns of a file without a header")
    ] = None
    na_values: Annotated[
        Names,
        setting("texts that are missing values", unset="empty, NA, NaN, null, ..."),
    ] = None


class ParquetOptions(TableOptions):
    """Options of Parquet files."""


class ImageFolderOptions(SplitOptions):
    """Options of folders of images, one folder for each class."""

    size: Annotated[
        Any,
        BeforeValidator(_to_size),
        setting(
            "pixels of a side, or [height, width], that images are resized to",
            unset="as they are, all of one size",
        ),
    ] = None
    channels: Annotated[
        Literal[1, 3, 4],
        setting("1: grey, 3: red, green and blue, 4: with transparency"),
    ] = 3
    channels_last: Annotated[
        bool | None,
        setting(
            "images as (height, width, channels)",
            unset="with Keras true, else false",
        ),
    ] = None
    in_memory: Annotated[
        bool,
        setting(
            "false: images stay in their files and are read batch by batch, anew in "
            "every pass"
        ),
    ] = True


class NpzOptions(SplitOptions):
    """Options of npz files: under which names the arrays are."""

    x: Annotated[
        Arrays,
        setting(
            "array of the inputs; a list gives a tuple, a mapping a dict of arrays",
            unset="x_train, else x",
        ),
    ] = None
    y: Annotated[
        Arrays, setting("array of the targets; []: none", unset="y_train, else y")
    ] = None
    x_test: Annotated[
        Arrays, setting("inputs of the tests", unset="x_test with x_train, else none")
    ] = None
    y_test: Annotated[
        Arrays, setting("targets of the tests", unset="y_test with y_train, else none")
    ] = None


class TextLinesOptions(SplitOptions):
    """Options of JSON lines of text and label."""

    text: Annotated[Name, setting("key of the text")] = "text"
    label: Annotated[
        Any,
        BeforeValidator(_to_label),
        setting("key of the label; tokens: the text's own tokens; []: none"),
    ] = "label"
    tokenizer: Annotated[
        Text | None,
        setting("folder of a Hugging Face tokenizer", unset="a token for each byte"),
    ] = None
    max_length: Annotated[
        int,
        setting(
            "tokens of a sample: longer texts are cut, shorter ones padded",
            ge=1,
            le=MAX_TOKENS,
        ),
    ] = 128


def read_options(kind: type[Settings], args: Mapping[str, Any]) -> Any:
    """Options of a ready handler.

    Raises
    ------
    ConfigError
        With every mistake in them.
    """
    if problems := option_problems(kind, args):
        raise ConfigError(problems)
    return kind.model_validate(dict(args))


def option_problems(kind: type[Settings], args: Mapping[str, Any]) -> list[str]:
    """Unknown options of a ready handler, and values that cannot be."""
    names = list(kind.model_fields)
    unknown = [name for name in args if name not in names]
    problems = [describe_unknown("option", name, names) for name in unknown]
    try:
        kind.model_validate({k: v for k, v in args.items() if k not in unknown})
    except ValidationError as error:
        problems += problems_of(error, kind)
    return problems


def unexpected_argument(handler: Callable[..., Any], args: Mapping[str, Any]) -> str:
    """The first of `args` that a handler does not take; empty if there is none.

    Also empty where a handler does not say what it takes.
    """
    try:
        parameters = [*inspect.signature(handler).parameters.values()]
    except (TypeError, ValueError):
        return ""
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return ""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [one.name for one in parameters[1:] if one.kind in by_name]
    return next((name for name in args if name not in names), "")
