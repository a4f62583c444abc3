"""A finished run, a saved ensemble or a model file, as one object that predicts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedray import models
from fedray.config import FederationConfig, parse, read_yaml
from fedray.ensemble.members import FILE, Ensemble, Member
from fedray.errors import RunFolderError


def load(path: str | Path) -> Ensemble:
    """The model of a finished run, or what `Ensemble.save` wrote, ready to predict.

    A run with one global model, or a model file alone, is an ensemble of one. Where a
    member was made by code, its code lies beside it and is run: load what you trust.

    Parameters
    ----------
    path : a run's folder, the name of one in ``~/.fedray/runs``, a folder with
        `ensemble.json`, or a .pt, .keras or .h5 file of a whole model.

    Raises
    ------
    RunFolderError, ModelFileError, ConfigError
        If there is no model, or it cannot be read.
    """
    folder = Path(path).expanduser()
    if not folder.exists() and len(folder.parts) == 1:
        folder = Path.home() / ".fedray" / "runs" / folder
    if folder.name == FILE:
        folder = folder.parent
    if folder.is_file():
        return Ensemble([_alone(folder)])
    if (folder / FILE).is_file():
        return Ensemble(_members(folder))
    return Ensemble([_of_run(folder)])


def _members(folder: Path) -> list[Member]:
    try:
        told = json.loads((folder / FILE).read_text("utf-8"))["members"]
        return [_member(folder, **line) for line in told]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its {FILE} cannot be read: {type(error).__name__}: {error}"
        raise RunFolderError(str(folder), reason) from None


def _member(
    folder: Path, name: str, weight: float, sample: list[int] | None, **settings: Any
) -> Member:
    for key in ("model_file", "architecture"):
        if settings[key]:
            settings[key] = str(folder / Path(settings[key]).name)
    made = _read(name, FederationConfig(**settings))
    shape = None if sample is None else tuple(sample)
    return replace(made, weight=float(weight), sample=shape)


def _alone(file: Path) -> Member:
    kind = models.for_file(file).__name__.rpartition(".")[2]
    return _read(file.stem, FederationConfig(model_type=kind, model_file=str(file)))


def _of_run(folder: Path) -> Member:
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(str(folder), "there is no run and no ensemble in it")
    config = parse(read_yaml(folder / "config.yaml"))[0]
    if config.model_type == "doc2vec":
        reason = "doc2vec gives no probabilities; ask it with fedray.query"
        raise RunFolderError(str(folder), reason)
    file = folder / f"global_model{models.named(config.model_type).SUFFIX}"
    if not file.is_file():
        there = sorted(p.name for p in folder.glob("global_model-*.*"))
        reason = f"has no {file.name}: let it end, or load one of {there} by its path"
        raise RunFolderError(str(folder), reason)
    return _read("all", replace(config, model_file=str(file)))


def _read(name: str, config: FederationConfig) -> Member:
    blueprint, weights = models.named(config.model_type).read(config)
    return Member(name, blueprint.settle(config), blueprint, weights)
