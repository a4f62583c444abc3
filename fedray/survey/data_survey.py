"""What parties are asked of their data before round 1, and what they answer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from fedray.errors import format_count
from fedray.survey.codes import DataCodes
from fedray.survey.moments import Moments, ValueCounts

NUMBER, CATEGORY, TEXT = "number", "category", "text"  # kinds of columns
MIN_COUNT, MIN_PARTIES = 5, 2  # of a label or category that `fedray stats` names
EMPTY = "empty"  # of a column without a value: of any kind


@dataclass(frozen=True)
class SurveyRequest:
    """What parties are asked for; of a run that needs nothing all is False.

    codes : label names, categories and columns, of handlers that have them.
    moments : of all numbers: count, mean, deviation, missing.
    extremes : also their lowest and highest value, which are values of samples.
    values : of every column of an array (N, D), each whole or broken number it has.
    classes : whole numbers that targets are.
    words : of documents.
    missing : whether inputs may have NaN, for a value that is missing.
    channels_first : whether images are (N, channels, ...).
    """

    codes: bool = False
    moments: bool = False
    extremes: bool = False
    values: bool = False
    classes: bool = False
    words: bool = False
    missing: bool = False
    channels_first: bool = False

    def __bool__(self) -> bool:
        names = {one.name for one in fields(self)} - {"missing", "channels_first"}
        return any(getattr(self, name) for name in names)

    def __or__(self, other: "SurveyRequest") -> "SurveyRequest":
        both = (getattr(self, f.name) or getattr(other, f.name) for f in fields(self))
        return SurveyRequest(*both)


@dataclass(frozen=True, eq=False)
class DataSurvey:
    """What parties tell of their data before round 1: of one, or merged of many.

    columns : kind of each column, in the order of the file: NUMBER, CATEGORY, TEXT or
        EMPTY; nothing where the data has no named columns. The target is among them.
    moments : by input, as `fedray.nested.arrays` names them: SINGLE of one array,
        "[0]" of a tuple's, "['ids']" of a dict's. The columns that they name are the
        first ones of the input.
    categories : values of columns that hold categories.
    values : numbers that columns of an array hold, by column, if they were asked for.
    labels : names of the targets; or whole numbers, where those were asked for.
    words : of documents.
    n_samples : training samples.
    """

    columns: dict[str, str] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    categories: dict[str, ValueCounts] = field(default_factory=dict)
    values: dict[str, ValueCounts] = field(default_factory=dict)
    labels: ValueCounts | None = None
    words: ValueCounts | None = None
    n_samples: int = 0
    n_parties: int = 1

    @classmethod
    def merge(cls, surveys: Sequence[Self]) -> Self:
        """The survey of several parties, whose columns are the same (`differences`)."""
        return cls(
            _merge_columns([survey.columns for survey in surveys]),
            _merge_each(Moments.merge, [survey.moments for survey in surveys]),
            _merge_each(ValueCounts.merge, [survey.categories for survey in surveys]),
            _merge_each(ValueCounts.merge, [survey.values for survey in surveys]),
            _merge_counts([survey.labels for survey in surveys]),
            _merge_counts([survey.words for survey in surveys]),
            sum(survey.n_samples for survey in surveys),
            sum(survey.n_parties for survey in surveys),
        )

    def codes(self, normalize: bool = False, allows_missing: bool = False) -> DataCodes:
        """The codes that follow from it, in an order that parties do not change."""
        labels = self.labels.parties if self.labels else {}
        categories = {
            name: tuple(sorted(map(str, counts.parties)))
            for name, counts in self.categories.items()
        }
        return DataCodes(
            self.columns,
            tuple(sorted(label for label in labels if isinstance(label, str))),
            {name: categories[name] for name in self.columns if name in categories}
            | categories,
            {key: self._in_order(part.total()) for key, part in self.moments.items()},
            normalize,
            allows_missing or normalize,
        )

    def _in_order(self, moments: Moments) -> Moments:
        """Moments of named columns in the order of `columns`, as inputs have them."""
        own = {*moments.names}
        names = [name for name in self.columns if name in own]
        is_named = len(names) == len(moments.names)
        return moments.select(names) if is_named else moments

    def to_json(self) -> dict[str, Any]:
        """Plain data of all parties together, without words."""
        return {
            "n_parties": self.n_parties,
            "n_samples": self.n_samples,
            "columns": self.columns,
            "inputs": {key: m.total().to_json() for key, m in self.moments.items()},
            "categories": {n: c.to_json() for n, c in self.categories.items()},
            "values": {name: c.to_json() for name, c in self.values.items()},
            "labels": self.labels and self.labels.to_json(),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Rebuild from what `to_json` gave."""
        labels = saved["labels"]
        return cls(
            dict(saved["columns"]),
            {key: Moments.from_json(m) for key, m in saved["inputs"].items()},
            {n: ValueCounts.from_json(c) for n, c in saved["categories"].items()},
            {n: ValueCounts.from_json(c) for n, c in saved["values"].items()},
            None if labels is None else ValueCounts.from_json(labels),
            None,
            saved["n_samples"],
            saved["n_parties"],
        )


def differences(surveys: Mapping[str, DataSurvey]) -> dict[str, str]:
    """How the columns of some parties differ from those that most have, by party."""
    forms = {name: _form(survey) for name, survey in surveys.items()}
    n_alike = Counter(tuple(sorted(form.items())) for form in forms.values())
    if len(n_alike) < 2:
        return {}
    most = max(n_alike.values())
    example, usual = next(
        (name, form)
        for name, form in forms.items()
        if n_alike[tuple(sorted(form.items()))] == most
    )
    texts = {name: _difference(form, usual) for name, form in forms.items()}
    return {
        name: f"{text} at party {example}: all parties need the same columns, of "
        "one kind each; data_args can name those to read, and their dtypes"
        for name, text in texts.items()
        if text
    }


def _form(survey: DataSurvey) -> dict[str, str]:
    """What must be the same at all parties: kinds of columns, numbers of columns."""
    form = {f"column {name!r}": kind for name, kind in survey.columns.items()}
    if not survey.columns:
        for key, moments in survey.moments.items():
            n_columns = format_count(len(moments.names), "column")
            form[f"x{key}"] = n_columns
    if survey.labels and survey.labels.parties:
        is_name = all(isinstance(label, str) for label in survey.labels.parties)
        form["y"] = "names" if is_name else "numbers"
    return form


def _difference(form: Mapping[str, str], usual: Mapping[str, str]) -> str:
    missing = [what for what in usual if what not in form]
    extra = [what for what in form if what not in usual]
    parts = [f"lacks {', '.join(missing)}"] if missing else []
    parts += [f"has {', '.join(extra)} too"] if extra else []
    parts += [
        f"{what} holds {form[what]}, not {usual[what]}"
        for what in form
        if what in usual and form[what] != usual[what]
        if EMPTY not in (form[what], usual[what])
    ]
    text = "; ".join(parts)
    return f"{text}, other than" if text else ""


def _merge_each(merge: Callable[[Any], Any], parts: Sequence[Mapping[str, Any]]) -> Any:
    """Merge what several mappings have under each key."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: merge([part[key] for part in parts if key in part]) for key in keys}


def _merge_counts(parts: Sequence[ValueCounts | None]) -> ValueCounts | None:
    present = [part for part in parts if part is not None]
    return ValueCounts.merge(present) if present else None


def _merge_columns(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Columns in the order that all parties have; sorted, if their orders differ."""
    orders = {tuple(part) for part in parts}
    names = list(orders.pop()) if len(orders) == 1 else sorted(set().union(*orders))
    kinds = {}
    for name in names:
        own = {part[name] for part in parts if name in part} - {EMPTY}
        kinds[name] = min(own, default=EMPTY)
    return kinds
