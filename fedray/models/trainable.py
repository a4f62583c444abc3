"""Which tensors of a model train, and which stay at their party, by config patterns."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

from fedray.config import FederationConfig, describe_mechanisms
from fedray.errors import ConfigError
from fedray.models.blueprint import Blueprint
from fedray.weights import Schema, Weights

N_NEAR = 3  # names that an error suggests
BATCH_NORM = "batch_norm"  # in `personal`: all tensors of batch norms


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
        matches = _find_matches("trainable", patterns, schema, tied)
        trained = [n for n in own if n in matches and schema[n].dtype[:5] == "float"]
        if not trained:
            got, some = ", ".join(patterns) or "[]", ", ".join(own[:N_NEAR])
            line = f"trainable: {got} matches no parameter, so nothing would train"
            raise ConfigError([f"{line}; name some of {some}, or leave it out"])
    if len(trained) == len(own):
        return tuple(trained), ()
    others = {*trained, *matches, *tied}
    return tuple(trained), tuple(name for name in schema if name not in others)


def set_personal(
    blueprint: Blueprint,
    config: FederationConfig,
    parameters: Collection[str],
    batch_norm: Collection[str],
) -> Blueprint:
    """The blueprint with the layers that stay at their party, by the key `personal`.

    Parameters
    ----------
    parameters : all names of parameters, whether they train or not.
    batch_norm : names of tensors of batch norms.

    Raises
    ------
    ConfigError
        Naming each pattern that matches no tensor; or if nothing that trains would be
        shared, or nothing would be personal; or if noise is to hide what batch norms
        count.
    """
    _require_no_batch_norm(config, batch_norm)
    patterns = config.personal
    if not patterns:
        return blueprint
    tied, trained = blueprint.tied, set(blueprint.parameters)
    matches = _find_personal(patterns, blueprint, batch_norm)
    frozen = {tied.get(name, name) for name in parameters} - trained
    personal = tuple(n for n in blueprint.schema if n in matches - frozen)
    got = f"personal: {', '.join(patterns)} matches"
    if not personal:
        needed = "the same at every party; name some that train"
        raise ConfigError([f"{got} only tensors that are frozen, {needed}"])
    if trained <= matches:
        some = ", ".join(blueprint.parameters[:N_NEAR])
        needed = f"so nothing would be shared; leave some of {some} out"
        raise ConfigError([f"{got} all that trains, {needed}"])
    if config.personal_epochs and not trained & matches:
        needed = "which no step trains: leave personal_epochs out"
        raise ConfigError([f"{got} buffers alone, {needed}"])
    rest = tuple(name for name in blueprint.frozen if name not in personal)
    blueprint = replace(blueprint, personal=personal, frozen=rest)
    return replace(blueprint, notes=(*blueprint.notes, blueprint.personal_note))


def _require_no_batch_norm(
    config: FederationConfig, batch_norm: Collection[str]
) -> None:
    """Refuse batch norms where noise hides parties or samples.

    Their statistics are means over a party's samples, and each sample's gradient goes
    by the others of its batch.
    """
    noised = [m for m in config.privacy_mechanisms if m != "secure_aggregation"]
    if noised and batch_norm:
        some = ", ".join(sorted(batch_norm)[:N_NEAR])
        raise ConfigError(
            [
                f"the model has batch norms ({some}), whose statistics do not go with "
                f"{describe_mechanisms(noised)}: use GroupNorm or LayerNorm instead"
            ]
        )


def _find_personal(
    patterns: Sequence[str], blueprint: Blueprint, batch_norm: Collection[str]
) -> set[str]:
    """First names of all tensors that a pattern of `personal` matches."""
    tied = blueprint.tied
    named = [pattern for pattern in patterns if pattern != BATCH_NORM]
    matches = _find_matches("personal", named, blueprint.schema, tied)
    if BATCH_NORM not in patterns:
        return matches
    if not batch_norm:
        needed = "leave it out, or name tensors by patterns"
        raise ConfigError([f"personal: the model has no {BATCH_NORM}; {needed}"])
    return matches | {tied.get(name, name) for name in batch_norm}


def _find_matches(
    key: str,
    patterns: Sequence[str],
    names: Collection[str],
    tied: Mapping[str, str],
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
                f"{key}: {pattern!r} matches no tensor of the model's "
                f"{len(names)}, such as {some}"
            )
    if mistakes:
        raise ConfigError(mistakes)
    return matches
