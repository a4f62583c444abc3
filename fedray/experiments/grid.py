"""The runs of a sweep: every combination of the values that settings are to have."""

import copy
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedray.config import (
    FederationConfig,
    describe_unknown,
    join_mappings,
    key_at,
    read_overrides,
)
from fedray.config.conversion import convert_values
from fedray.errors import ConfigError
from fedray.experiments.records import SEED

SWEEP = "sweep"  # key of a config file: values by setting
MAX_RUNS = 10_000
MAX_TEXT, MAX_NAME = 40, 180  # characters of a value and of a run's name
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
CLOSING = {"[": "]", "{": "}", "(": ")"}
QUOTES = ("'", '"')


@dataclass(frozen=True)
class Grid:
    """What the runs of a sweep differ by, and what they have in common.

    axes : by setting (``partition.alpha``) the values that it has; by a name that is no
        setting's the names of `variants`.
    fixed : settings of all runs beside the file's.
    variants : by such a name, and that of a variant, its settings.
    """

    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(
        default_factory=dict
    )

    def settings_of(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a run, those first that others are nested in."""
        own = dict[str, Any]()
        for key, value in point.items():
            own |= self.variants[key][value] if key in self.variants else {key: value}
        return dict(sorted(own.items(), key=lambda item: item[0].count(".")))

    @property
    def n_runs(self) -> int:
        """How many runs there are."""
        return math.prod(map(len, self.axes.values()))

    def points(self) -> Iterator[dict[str, Any]]:
        """The values of each run; all settings of one seed before the next seed."""
        keys = sorted(self.axes, key=lambda key: key != SEED)
        for values in itertools.product(*(self.axes[key] for key in keys)):
            point = dict(zip(keys, values, strict=True))
            yield {key: point[key] for key in self.axes}


def read_words(words: Iterable[str]) -> tuple[Grid, list[str]]:
    """A grid of words ``key=a,b,c``; one value alone is for all runs. And mistakes."""
    axes, fixed, problems = dict[str, list[Any]](), dict[str, Any](), list[str]()
    for word in join_mappings(words):
        key, equals, text = word.partition("=")
        pieces = split_values(text) if equals else [text]
        if key in axes or key in fixed:
            problems.append(f"{key} is given twice: keep one")
            continue
        if len(pieces) > 1 and not all(piece.strip() for piece in pieces):
            problems.append(f"{word}: a value between commas is empty")
            continue
        values, mistakes = _read_pieces(key, pieces if equals else [], word)
        problems += mistakes
        if len(values) > 1 or (values and _is_list_of_values(key, values[0])):
            own = values if len(values) > 1 else values[0]
            axes[key], mistakes = _check_values(key, own)
            problems += mistakes
        elif values:
            fixed[key] = values[0]
    return Grid(axes, fixed), problems


def read_mapping(values: Any) -> tuple[Grid, list[str]]:
    """A grid of what stands under `sweep` in a file, and mistakes."""
    if not isinstance(values, Mapping) or not all(isinstance(k, str) for k in values):
        return Grid(), [f"{SWEEP} must be a mapping of settings to lists of values"]
    axes, problems = dict[str, list[Any]](), list[str]()
    variants = dict[str, Mapping[str, Mapping[str, Any]]]()
    for key, own in values.items():
        if isinstance(own, Mapping) and not _is_setting(key):
            variants[key], mistakes = _check_variants(own)
            axes[key] = list(variants[key])
            problems += [f"{SWEEP}: {key} {mistake}" for mistake in mistakes]
            continue
        if not isinstance(own, list | tuple):
            problems.append(f"{SWEEP}: {key} must be a list of values, got {own!r}")
            continue
        axes[key], mistakes = _check_values(key, own)
        problems += [f"{SWEEP}: {mistake}" for mistake in mistakes]
    for key, own in variants.items():
        twice = {name for one in own.values() for name in one} & axes.keys()
        problems += [
            f"{SWEEP}: {key} sets {name}, which has values of its own: keep one"
            for name in sorted(twice)
        ]
    return Grid(axes, {}, variants), problems


def complete_grid(
    of_file: Grid, of_words: Grid, n_seeds: int | None, first: int
) -> Grid:
    """Both together; words go before the file, and `n_seeds` adds the seeds.

    first : the seed that the runs have in common, from which they are counted.

    Raises
    ------
    ConfigError
        If there is nothing to vary, or too much.
    """
    axes = {key: values for key, values in of_file.axes.items()
            if key not in of_words.fixed} | dict(of_words.axes)  # fmt: skip
    if n_seeds is not None:
        if n_seeds < 1:
            raise ConfigError([f"seeds must be 1 or more, got {n_seeds}"])
        if SEED in axes:
            raise ConfigError(["seed has values, and seeds is given too: keep one"])
        axes[SEED] = list(range(first, first + n_seeds))
    of_file = Grid(of_file.axes, {}, {**of_file.variants, **of_words.variants})
    # a name that is no setting's chooses one of its variants
    chosen = dict[str, Any]()
    for key in of_file.variants.keys() & of_words.fixed.keys():
        chosen |= _variant(of_file, key, of_words.fixed[key])
    fixed = {k: v for k, v in of_words.fixed.items() if k not in of_file.variants}
    for key in of_file.variants.keys() & of_words.axes.keys():
        for name in of_words.axes[key]:
            _variant(of_file, key, name)
    grid = Grid(axes, {**chosen, **fixed}, of_file.variants)
    if problems := _clashes(grid, fixed):
        raise ConfigError(problems)
    if not axes:
        needed = "give a setting several values (learning_rate=0.01,0.1) or --seeds 5"
        raise ConfigError([f"nothing to sweep over: {needed}"])
    if grid.n_runs > MAX_RUNS:
        raise ConfigError([f"{grid.n_runs:,} runs: at most {MAX_RUNS:,} in a sweep"])
    return grid


def _clashes(grid: Grid, fixed: Mapping[str, Any]) -> list[str]:
    """Settings that variants have, and that are given beside them.

    fixed : settings of all runs that stand on the command line.
    """
    others = {*fixed, *(key for key in grid.axes if key not in grid.variants)}
    return [
        f"{key}={name} sets {one}, which is given beside it: leave it out, or take "
        f"other variants by {key}=..."
        for key in grid.variants.keys() & grid.axes.keys()
        for name in grid.axes[key]
        for one in grid.variants[key][name]
        if one in others
    ]


def _variant(grid: Grid, key: str, name: Any) -> Mapping[str, Any]:
    if name not in grid.variants[key]:
        raise ConfigError([describe_unknown(key, str(name), [*grid.variants[key]])])
    return grid.variants[key][name]


def split_values(text: str) -> list[str]:
    """Parts between commas that are in no brackets and no quotes."""
    parts, start, closing, quote = list[str](), 0, list[str](), ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        elif character in CLOSING:
            closing.append(CLOSING[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def with_value(settings: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of settings in which one, with a dotted name if nested, has a value.

    Raises
    ------
    ConfigError
        If what it would be in is no mapping.
    """
    changed = dict(settings)
    first, _, rest = key.partition(".")
    if rest:
        inner = changed.get(first)
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError([f"{key}: {first} is {inner!r}, no mapping"])
        value = with_value(inner or {}, rest, value)
    changed[first] = copy.deepcopy(value)
    return changed


def run_names(axes: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, str]]:
    """By setting and value (as JSON) how it is written in the names of folders."""
    names = dict[str, dict[str, str]]()
    for key, values in axes.items():
        texts = [_short_text(value) for value in values]
        names[key] = {
            to_json(value): text
            if texts.count(text) == 1
            else _with_digest(text, value)
            for value, text in zip(values, texts, strict=True)
        }
    return names


def name_run(point: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]) -> str:
    """A run's folder, such as ``learning_rate=0.1,seed=3``."""
    parts = [f"{key}={names[key][to_json(value)]}" for key, value in point.items()]
    name = ",".join(parts)
    if len(name) <= MAX_NAME:
        return name
    return _with_digest(name[: MAX_NAME - 10], dict(point))


def to_json(value: Any) -> str:
    """A value as text, by which values are compared."""
    return json.dumps(value, sort_keys=True, default=str)


def _read_pieces(
    key: str, pieces: Sequence[str], word: str
) -> tuple[list[Any], list[str]]:
    """The values of a word, and mistakes."""
    if not pieces:
        return [], read_overrides([word])[1]
    values, problems = list[Any](), list[str]()
    for piece in pieces:
        read, mistakes = read_overrides([f"{key}={piece.strip()}"])
        values += read.values()
        problems += mistakes
    return values, problems


def _is_list_of_values(key: str, value: Any) -> bool:
    """Whether ``key=[a, b]`` stands for two values: not where one is a list."""
    return isinstance(value, list | tuple) and not _takes_list(key)


def _is_setting(key: str) -> bool:
    return key_at(key.split(".")[:1], FederationConfig) is not None


def _check_variants(
    own: Mapping[Any, Any],
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Variants by name, and what is wrong with them."""
    problems = [] if own else ["has no variants"]
    variants = dict[str, Mapping[str, Any]]()
    for name, settings in own.items():
        settings = {} if settings is None else settings
        is_mapping = isinstance(settings, Mapping) and all(
            isinstance(key, str) for key in settings
        )
        if not is_mapping:
            problems.append(f"{name} must be a mapping of settings, got {settings!r}")
        else:
            variants[str(name)] = convert_values(settings, FederationConfig)
    return variants, problems


def _takes_list(key: str) -> bool:
    own = key_at(key.split("."), FederationConfig)
    return own is not None and own.is_list


def _check_values(key: str, values: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """The values of a setting as a list, and what is wrong with them."""
    values = [convert_values({key: one}, FederationConfig)[key] for one in values]
    problems = []
    if not values:
        problems.append(f"{key} has no values")
    if key == "name":
        problems.append("name is that of the sweep: give it one value")
    if _takes_list(key) and not all(isinstance(one, list | tuple) for one in values):
        needed = f"write each of its values as one, {key}=[a, b],[c]"
        problems.append(f"{key} takes a list: {needed}")
    texts = [to_json(value) for value in values]
    for twice in dict.fromkeys(text for text in texts if texts.count(text) > 1):
        problems.append(f"{key} has the value {twice} twice")
    return values, problems


def _short_text(value: Any) -> str:
    """A value as a folder's name has it."""
    if isinstance(value, float):
        text = f"{value:.12g}"
    elif isinstance(value, Mapping):
        text = "-".join(f"{k}-{_short_text(v)}" for k, v in value.items())
    elif isinstance(value, list | tuple):
        text = "-".join(map(_short_text, value))
    else:
        text = "none" if value is None else str(value)
        text = text.lower() if isinstance(value, bool) else os.path.basename(text)
    text = UNSAFE.sub("-", text) or "empty"
    return text if len(text) <= MAX_TEXT else _with_digest(text[: MAX_TEXT - 9], value)


def _with_digest(text: str, value: Any) -> str:
    digest = hashlib.sha256(to_json(value).encode()).hexdigest()[:8]
    return f"{text}-{digest}"
