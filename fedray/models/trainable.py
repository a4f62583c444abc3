"""Which tensors of a model train: by patterns of the config, or as the model says."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

from fedray.errors import ConfigError
from fedray.weights import Schema, Weights

N_NEAR = 3  # names that an error suggests


class Fixed(Protocol):
    """Tensors of a live model that neither train nor travel."""

    def find_changes(self) -> list[str]:
        """Names of those that hold something else than was loaded."""

    def restore(self) -> list[str]:
        """Put back what was changed; its names."""


@runtime_checkable
class FreezableModel(Protocol):
    """A live model of which some tensors may be loaded once instead of every round.

    fixed : these; `weights` and what training yields leave them out.
    """

    fixed: Fixed

    def fix(self, arrays: Weights) -> None:
        """Load tensors that do not travel from now on; all others do."""


def split(
    patterns: Sequence[str] | None,
    schema: Schema,
    parameters: Mapping[str, bool],
    tied: Mapping[str, str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of tensors that train, and of those that are frozen: see `Blueprint`.

    Parameters
    ----------
    patterns : shell patterns over names; None: what the model says.
    parameters : all names of parameters, and whether the model says that they train.
    tied : second names of parameters, and the first.

    Raises
    ------
    ConfigError
        Naming each pattern that matches no tensor, or if none matches a parameter.
    """
    own = [name for name in parameters if name not in tied]
    if patterns is None:
        matches: set[str] = set()
        trained = [name for name in own if parameters[name]]
    else:
        matches = _find_matches(patterns, schema, tied)
        trained = [n for n in own if n in matches and schema[n].dtype[:5] == "float"]
        if not trained:
            got, some = ", ".join(patterns) or "[]", ", ".join(own[:N_NEAR])
            line = f"trainable: {got} matches no parameter, so nothing would train"
            raise ConfigError([f"{line}; name some of {some}, or leave it out"])
    if len(trained) == len(own):
        return tuple(trained), ()
    others = {*trained, *matches, *tied}
    return tuple(trained), tuple(name for name in schema if name not in others)


def _find_matches(
    patterns: Sequence[str], names: Collection[str], tied: Mapping[str, str]
) -> set[str]:
    """First names of all tensors that a pattern matches."""
    matches, mistakes = set[str](), []
    for pattern in patterns:
        own = [name for name in names if fnmatchcase(name, pattern)]
        matches |= {tied.get(name, name) for name in own}
        if not own:
            near = difflib.get_close_matches(pattern, names, N_NEAR, cutoff=0.3)
            some = ", ".join(near or list(names)[:N_NEAR])
            mistakes.append(
                f"trainable: {pattern!r} matches no tensor of the model's "
                f"{len(names)}, such as {some}"
            )
    if mistakes:
        raise ConfigError(mistakes)
    return matches
