"""Covering arrays of settings: every pair (or triple) of values that may go together.

Values come from each key's declaration: a new key joins by itself. A row is a mapping
of dotted keys to values; keys that are not in it keep their defaults.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from fedray import fusion, policy
from fedray.config import FederationConfig, Key, keys_of, parse
from fedray.config.conditions import KNOWN_NAMES
from fedray.config.declaration import OtherThan

Row = dict[str, Any]
Combination = tuple[tuple[str, int], ...]  # keys, and places of their values


def values_of(key: Key) -> list[Any]:
    """Values of a key that are played: the default, and what its declaration says.

    Raises
    ------
    TypeError
        If nothing follows from its type: the key has to declare examples.
    """
    known = KNOWN_NAMES.get(key.name) or key.choices
    if known:
        return list(known)
    if key.type is bool:
        return [False, True]
    others = list(key.setting.examples)
    if not others and key.type in (int, float):
        others = [_other_number(key)]
    if not others:
        raise TypeError(f"{key.name} declares no examples: what should tests play?")
    return [key.default, *others]


def _other_number(key: Key) -> float:
    """A number within the bounds that is near the default and not the same."""
    setting, default = key.setting, key.default
    if setting.unit == "seconds":
        return 2 * (default or 300.0)  # no round of a test may end by it
    if default is None:
        return key.type(max(1, setting.ge or 0))
    options = [default + 1, default - 1, default / 2, (default or 1) * 0.5]
    options = [option for option in options if key.type is float or option % 1 == 0]
    lowest = setting.ge if setting.gt is None else setting.gt + 1e-9
    most = setting.le if setting.le is not None else float("inf")
    fits = (option for option in options if (lowest or 0) <= option <= most)
    return key.type(next(fits))


class Settings:
    """The values of all keys, and which rows of them are a config that may run.

    ground : values of keys that need files or each other; a single one is fixed.
    """

    def __init__(self, ground: Mapping[str, list[Any]]):
        keys = keys_of(FederationConfig)
        played = {k: v for k, v in keys.items() if k not in ground and not v.nested}
        self.values = {**ground, **{k: values_of(key) for k, key in played.items()}}
        self.defaults = {name: key.default for name, key in keys.items()}
        self.fixed = {k: v[0] for k, v in ground.items() if self.defaults[k] not in v}
        self.defaults |= self.fixed
        self.keys = keys

    def build(self, row: Row) -> dict[str, Any]:
        """The config of a row."""
        return {k: v for k, v in (self.fixed | row).items() if v is not None}

    def problems(self, row: Row) -> list[str]:
        """Why a row is no config; as `read_config` but for files."""
        config, mistakes = parse(self.build(row))
        mistakes += fusion.adaptive_problems(config)
        return mistakes + fusion.rule_problems(config, policy.fewest_updates(config))

    def complete(self, row: Row) -> Row | None:
        """A row with what its keys need to have an effect; None if they exclude it."""
        row = dict(row)
        for name in list(row):
            for other, condition in self.keys[name].setting.applies.items():
                own = row.get(other, self.defaults[other])
                if own in condition:
                    continue
                fits = [v for v in self.values[other] if v in condition]
                if other in row or not fits:
                    return None
                row[other] = fits[0]
                if not isinstance(condition, OtherThan) and own == row[other]:
                    return None
        return row

    def repair(self, row: Row) -> tuple[Row, str]:
        """A row with what its mistakes ask for; and one that is left, if any."""
        whole = self.complete(row)
        if whole is None:
            return row, "a key has no effect with the others"
        problems = self.problems(whole)
        for name, values in self.values.items():
            if name in whole or not any(name in problem for problem in problems):
                continue
            for value in values:
                more = self.complete(whole | {name: value})
                if more and len(found := self.problems(more)) < len(problems):
                    whole, problems = more, found
                    break
        return whole, problems[0] if problems else ""

    def combinations(self, strength: int) -> Iterator[Combination]:
        """All combinations of values of so many keys."""
        varied = {k: range(len(v)) for k, v in self.values.items() if len(v) > 1}
        for names in itertools.combinations(varied, strength):
            for places in itertools.product(*(varied[name] for name in names)):
                yield tuple(zip(names, places, strict=True))


def covering_rows(
    settings: Settings, strength: int, seed: int, refused: dict[Combination, str]
) -> Iterator[Row]:
    """Rows in which every combination stands that some config allows, greedily.

    refused : is filled with the others, and the reasons.
    """
    rng = random.Random(seed)
    combinations = list(settings.combinations(strength))
    rng.shuffle(combinations)
    open_ = dict.fromkeys(combinations)
    while open_:
        combination = next(iter(open_))
        wanted = {name: settings.values[name][place] for name, place in combination}
        row, reason = settings.repair(wanted)
        if reason:
            refused[combination] = reason
            del open_[combination]
            continue
        row = _fill(settings, row, rng)
        for covered in _combinations_in(settings, row, strength):
            open_.pop(covered, None)
        open_.pop(combination, None)
        yield row


def _fill(settings: Settings, row: Row, rng: random.Random) -> Row:
    """The row with as many other values than the defaults as may go with it."""
    names = [name for name, values in settings.values.items() if len(values) > 1]
    for name in rng.sample(names, len(names)):
        values = settings.values[name]
        if name in row or rng.random() < 1 / len(values):
            continue  # it keeps its default
        value = rng.choice(values)
        more = settings.complete(row | {name: value})
        if value != settings.defaults[name] and more and not settings.problems(more):
            row = more
    return row


def _combinations_in(
    settings: Settings, row: Row, strength: int
) -> Iterator[Combination]:
    """The combinations that stand in a row: values given, and defaults in effect."""
    config, _ = parse(settings.build(row))
    idle = set(config.keys_without_effect())
    places = []
    for name, values in settings.values.items():
        value = row.get(name, settings.defaults[name])
        if len(values) > 1 and name not in idle and value in values:
            places.append((name, values.index(value)))
    yield from itertools.combinations(places, strength)
