"""Offline fusion of saved model files, without a federation (`fedray fuse`)."""

from collections.abc import Iterator
from pathlib import Path

from fedray import fusion, models
from fedray.errors import ConfigError, ModelFileError, format_count
from fedray.fusion import robust
from fedray.messages import Update
from fedray.weights import Schema, cast, mismatch

WITHOUT_ROUNDS = [
    name
    for name, rule in fusion.FUSIONS.items()
    if not getattr(rule, "needs_rounds", True)
]
RULES = (*WITHOUT_ROUNDS, *robust.SEES_ALL)  # clipping: needs what all started from


def fuse(
    files: list[Path],
    algorithm: str,
    samples: list[str] | None,
    out: Path,
    n_hostile: int | None = None,
) -> list[str]:
    """Fuse model files into `out`; say what was done.

    Means read one file at a time; a robust rule holds all models in memory.

    Parameters
    ----------
    samples : training samples behind each file, in order; None: all count alike.
    n_hostile : how many a robust rule is to withstand; None: as many as it can.
    out : .pt (a whole module if the first file is one, else a state_dict) or .keras,
        as the first file is; or .safetensors.

    Raises
    ------
    ConfigError, ModelFileError, TooFewUpdates
        Before anything is written.
    """
    counts = _counts(files, algorithm, samples, out)
    settings = _settings(algorithm, n_hostile, samples)
    adapter, read_file = models.for_file(files[0])
    blueprint, _ = read_file(files[0])
    needed = blueprint.schema
    rule = fusion.named(algorithm, **settings)
    updates = _updates(files, counts, needed)
    fused = cast(fusion.combine(rule, updates).weights, needed)
    adapter.write(blueprint, fused, out)
    weighing = "each counts alike"
    if samples and rule.weight_by == "n_samples":
        weighing = f"weighed by samples {', '.join(map(str, counts))}"
    models_fused = format_count(len(files), "model")
    return [f"{algorithm} of {models_fused}, {weighing}: {out}"]


def _updates(files: list[Path], counts: list[int], needed: Schema) -> Iterator[Update]:
    for path, count in zip(files, counts, strict=True):
        _, read_file = models.for_file(path)
        _, weights = read_file(path)
        different = mismatch(weights, needed)
        if different:
            reason = f"{different} as in {files[0]}. Only models of one kind can fuse"
            raise ModelFileError(str(path), reason)
        yield Update(weights, count)
        del weights


def _settings(
    algorithm: str, n_hostile: int | None, samples: list[str] | None
) -> dict[str, int]:
    mistakes = []
    if algorithm in robust.SEES_ALL and samples:
        mistakes.append(f"--samples does not apply to {algorithm}: all count alike")
    takes = algorithm in RULES and "n_hostile" in robust.keys_of(algorithm)
    if n_hostile is not None and not takes:
        mistakes.append(f"--n-hostile does not apply to {algorithm}")
    elif n_hostile is not None and n_hostile < 0:
        mistakes.append(f"--n-hostile must be 0 or more, got {n_hostile}")
    if mistakes:
        raise ConfigError(mistakes)
    return {} if n_hostile is None else {"n_hostile": n_hostile}


def _counts(
    files: list[Path], algorithm: str, samples: list[str] | None, out: Path
) -> list[int]:
    mistakes = fusion.problems(algorithm)
    if not mistakes and algorithm not in RULES:
        mistakes.append(
            f"{algorithm} needs rounds; fuse files with one of {list(RULES)}"
        )
    suffixes = models.for_file(files[0])[0].writes
    if out.suffix not in suffixes:
        mistakes.append(f"--out must end in {' or '.join(suffixes)}, got {out.name!r}")
    if not out.absolute().parent.is_dir():
        mistakes.append(f"--out: there is no folder {out.absolute().parent}")
    counts = samples or ["1"] * len(files)
    if len(counts) != len(files):
        n_counts, n_models = format_count(len(counts), "number"), len(files)
        mistakes.append(
            f"--samples has {n_counts} for {format_count(n_models, 'model')}"
        )
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        mistakes.append(
            f"--samples must be whole numbers above 0, got {','.join(counts)}"
        )
    if mistakes:
        raise ConfigError(mistakes)
    return [int(count) for count in counts]
