"""Declares one setting of the service: unit, scope, help; its text, flag and variable.

``max_open: Annotated[int, option("federations that are open", PER_CLIENT)] = 32`` is
all that is said of a setting. The flags of ``fedray serve``, the variables FEDRAY_...
and the table in docs/rest-api.md are made from it.
"""

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.config.suggestions import nearest
from fedray.errors import ConfigError

PER_CALL, PER_CLIENT, IN_TOTAL = "per call", "per client", "in total"
PER_FEDERATION, PER_FILE, PER_ADDRESS = "per federation", "per file", "per address"
COUNT, BYTES, SECONDS, DAYS, PATH = "", "bytes", "s", "days", "path"
UNITS: dict[
    str, dict[str, float]
] = {  # of a unit: what its texts may end with, and how much that is
    COUNT: {"": 1},
    BYTES: {
        **{"": 1, "b": 1, "byte": 1, "bytes": 1},
        **{"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
        **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
        **{"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40},
    },
    SECONDS: {
        **{"": 1, "s": 1, "second": 1, "seconds": 1, "ms": 1e-3},
        **{"min": 60, "minute": 60, "minutes": 60},
        **{"h": 3600, "hour": 3600, "hours": 3600},
        **{"d": 86400, "day": 86400, "days": 86400},
    },
    DAYS: {
        **{"": 1, "d": 1, "day": 1, "days": 1, "week": 7, "weeks": 7},
        **{"h": 1 / 24, "hour": 1 / 24, "hours": 1 / 24},
    },
}
EXAMPLES = {COUNT: "8", BYTES: "2GiB or 500MB", SECONDS: "90, 90s or 2h", DAYS: "30"}
PREFIX = "FEDRAY_"  # of environment variables
NOTHING = ("none", "never", "unlimited")  # texts that unset what may be unset
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
MOST = 1 << 53  # of any number: a larger one is a typing error


@dataclass(frozen=True)
class Declaration:
    """What `option` declares; see there."""

    help: str
    scope: str
    unit: str
    unset: str
    ge: float


def option(
    help: str, scope: str = "", unit: str = COUNT, *, unset: str = "", ge: float = 1
) -> Declaration:
    """Declare a setting.

    Parameters
    ----------
    help : one sentence: what is set or counted.
    scope : of whom a limit is: `PER_CLIENT`, `IN_TOTAL`, ...; empty: it is no limit.
    unit : `COUNT`, `BYTES`, `SECONDS`, `DAYS` or `PATH`.
    unset : what holds where it is None; a setting that has it may be None.
    ge : the least number.
    """
    return Declaration(help, scope, unit, unset, ge)


@dataclass(frozen=True)
class Option:
    """One setting: its field's name, type and default, and what is declared of it."""

    name: str
    kind: type  # int, float, bool or str
    default: Any
    declared: Declaration

    @property
    def flag(self) -> str:
        """Flag of ``fedray serve``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Environment variable."""
        return PREFIX + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as people write it."""
        return self.declared.unset if self.default is None else self.show(self.default)

    def show(self, value: Any) -> str:
        """A value as people write it: 2 GiB, 20 s, 1,000."""
        if self.kind is bool:
            return "on" if value else "off"
        if not isinstance(value, int | float):
            return str(value)
        unit = self.declared.unit
        if unit == BYTES:
            return show_bytes(value)
        if unit == SECONDS and value % 86400 == 0:
            return f"{value / 86400:g} days"
        number = f"{value:,}" if isinstance(value, int) else f"{value:,g}"
        return f"{number} {unit}".rstrip()

    def read(self, text: str) -> Any:
        """The value that a text of the command line or the environment stands for.

        Raises
        ------
        ValueError
            Saying what was needed.
        """
        word = text.strip().lower()
        if self.kind is bool:
            if word not in TRUE + FALSE:
                raise ValueError("needed true or false")
            return word in TRUE
        if self.declared.unset and word in NOTHING:
            return None
        if self.kind is str:
            if not text.strip():
                raise ValueError("needed a path")
            return str(Path(text).expanduser().absolute())
        return self._read_number(text)

    def problem(self, value: Any) -> str:
        """What is wrong with a value; empty if nothing is."""
        if value is None:
            return "" if self.declared.unset or self.default is None else "needed one"
        if self.kind in (bool, str):
            is_right = isinstance(value, self.kind)
            return "" if is_right else f"needed {self.kind.__name__}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (self.kind is int and value != int(value)):
            return f"needed {self._needed()}"
        return "" if self.declared.ge <= value <= MOST else f"needed {self._needed()}"

    def _read_number(self, text: str) -> float:
        match = QUANTITY.fullmatch(text)
        factor = match and UNITS[self.declared.unit].get(match[2].lower())
        is_whole = self.declared.unit == COUNT
        if not match or factor is None or (is_whole and "." in match[1]):
            raise ValueError(f"needed {self._needed()}")
        number = float(match[1]) if "." in match[1] else int(match[1])
        value = number * factor
        if not math.isfinite(value) or value > MOST:
            raise ValueError(f"needed {self._needed()}")
        return math.ceil(value) if self.kind is int else float(value)

    def _needed(self) -> str:
        number = "a whole number" if self.declared.unit == COUNT else "a number"
        example = f"such as {EXAMPLES[self.declared.unit]}"
        return f"{number} of at least {self.show(self.declared.ge)}, {example}"


def show_bytes(n: float) -> str:
    """Bytes as people write them: 64 KiB, 2 GiB, 500 bytes."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n >= 1 << power and n % (1 << power) == 0:
            return f"{int(n) >> power:,} {unit}"
    return f"{int(n):,} bytes"


@functools.cache
def options_of(settings: type) -> Mapping[str, Option]:
    """The settings that a class declares, by name."""
    hints = typing.get_type_hints(settings, include_extras=True)
    options = {}
    for field in dataclasses.fields(settings):
        plain, declared = typing.get_args(hints[field.name])
        if isinstance(plain, types.UnionType):
            plain = typing.get_args(plain)[0]
        options[field.name] = Option(field.name, plain, field.default, declared)
    return options


def read_texts(settings: type, flags: Mapping[str, str | None]) -> dict[str, Any]:
    """Values from flags, and for those that are not given from the environment.

    flags : text by name of setting; None: not given.

    Raises
    ------
    ConfigError
        Naming every text that is wrong by its flag or variable, and every variable
        that is nearly one of these.
    """
    values, problems = {}, _misspelt_variables(settings)
    for name, one in options_of(settings).items():
        text, source = flags.get(name), one.flag
        if text is None:
            text, source = os.environ.get(one.variable) or None, one.variable
        if text is None:
            continue
        try:
            values[name] = one.read(text)
            wrong = one.problem(values[name])
        except ValueError as error:
            wrong = str(error)
        if wrong:
            problems.append(f"{source}: got {text[:80]!r}, {wrong}")
    if problems:
        raise ConfigError(problems)
    return values


def _misspelt_variables(settings: type) -> list[str]:
    """Variables FEDRAY_... that set nothing, and which one each is nearly.

    Others may be there for other programs.
    """
    names = {one.variable: name for name, one in options_of(settings).items()}
    problems = []
    for variable in sorted(os.environ.keys() - names.keys()):
        prefix, _, rest = variable.partition("_")
        near = nearest(rest, names.values()) if f"{prefix}_" == PREFIX else None
        if near:
            right = options_of(settings)[near].variable
            problems.append(f"{variable}: no setting; did you mean {right}?")
    return problems
