"""Fusing saved models without a federation."""

from collections.abc import Iterator
from pathlib import Path

from fedray import fusion
from fedray.errors import ConfigError, ModelFileError
from fedray.messages import Update
from fedray.models.pytorch import file, plan
from fedray.weights import Schema, cast, mismatch, schema

RULES = ("fedavg", "iter_avg")  # a server step needs rounds


def fuse(
    files: list[Path], algorithm: str, samples: list[str] | None, out: Path
) -> list[str]:
    """Fuse model files into `out`, reading one at a time; say what was done.

    Parameters
    ----------
    samples : training samples behind each file, in order; None: all count alike.
    out : .pt (a whole module if the first file is one, else a state_dict) or
        .safetensors.

    Raises
    ------
    ConfigError, ModelFileError
        Before anything is written.
    """
    counts = _counts(files, algorithm, samples, out)
    first = file.read(files[0])
    needed = schema(first.weights)
    rule = fusion.named(algorithm)
    fused = cast(rule.combine(_updates(files, counts, needed)).weights, needed)
    plan.write_model(first.layer, fused, first.frozen, out)
    weighing = "each counts alike"
    if samples and algorithm == "fedavg":
        weighing = f"weighed by samples {', '.join(map(str, counts))}"
    return [f"{algorithm} of {len(files)} models, {weighing}: {out}"]


def _updates(files: list[Path], counts: list[int], needed: Schema) -> Iterator[Update]:
    for path, count in zip(files, counts, strict=True):
        weights = file.read(path).weights
        different = mismatch(weights, needed)
        if different:
            reason = f"{different} as in {files[0]}. Only models of one kind can fuse"
            raise ModelFileError(str(path), reason)
        yield Update(weights, count)
        del weights


def _counts(
    files: list[Path], algorithm: str, samples: list[str] | None, out: Path
) -> list[int]:
    found = fusion.problems(algorithm)
    if not found and algorithm not in RULES:
        found.append(f"{algorithm} needs rounds; fuse files with one of {list(RULES)}")
    if out.suffix not in (".pt", ".safetensors"):
        found.append(f"--out must end in .pt or .safetensors, got {out.name!r}")
    if not out.absolute().parent.is_dir():
        found.append(f"--out: there is no folder {out.absolute().parent}")
    given = samples or ["1"] * len(files)
    if len(given) != len(files):
        found.append(f"--samples has {len(given)} numbers for {len(files)} models")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in given):
        found.append(f"--samples must be whole numbers above 0, got {','.join(given)}")
    if found:
        raise ConfigError(found)
    return [int(count) for count in given]
