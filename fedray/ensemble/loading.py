"""A finished run, a saved ensemble or a model file, as one object that predicts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedray import models
from fedray.checkpoint import RunFolder, runs_folder
from fedray.config import FederationConfig, parse, read_yaml
from fedray.ensemble.members import FILE, Ensemble, Member
from fedray.errors import ConfigError, ModelFileError, RunFolderError, UnknownRun

CONFIG = "config.yaml"
SUFFIXES = (".pt", ".pth", ".safetensors", ".keras", ".h5", ".hdf5")


def load(path: str | Path) -> Ensemble:
    """The model of a finished run, or what `Ensemble.save` wrote, ready to predict.

    A run with one global model, or a model file alone, is an ensemble of one. What a
    file does not say of itself, its run or its ensemble beside it says. Where a model
    was made by code, that code is run: load what you trust.

    Parameters
    ----------
    path : a run's folder, the name of one in ``~/.fedray/runs``, a folder with
        `ensemble.json`, or a .pt, .keras or .h5 file of a model.

    Raises
    ------
    UnknownRun, RunFolderError, ModelFileError, ConfigError
        If there is no model, or it cannot be read.
    """
    found = _found(Path(path).expanduser())
    if found.name == FILE:
        found = found.parent
    if found.is_file():
        return Ensemble([_alone(found)])
    if (found / FILE).is_file():
        return Ensemble([_member(found, **line) for line in _told(found)["members"]])
    return Ensemble([_of_run(found)])


def _found(path: Path) -> Path:
    """A path as it is, else the run of that name."""
    is_name, runs = len(path.parts) == 1, runs_folder()
    for place in (path, runs / path)[: 1 + is_name]:
        inside = [place / FILE, place / CONFIG]
        if place.is_file() or any(file.is_file() for file in inside):
            return place
    if path.is_dir():
        raise RunFolderError(str(path), "there is no run and no ensemble in it")
    if path.suffix in SUFFIXES:
        raise ModelFileError(str(path), "there is no such file")
    if not is_name:
        raise RunFolderError(str(path), "there is no such folder")
    there = sorted(file.parent.name for file in runs.glob(f"*/{CONFIG}"))
    raise UnknownRun(path.name, there)


def _told(folder: Path) -> dict[str, Any]:
    """What `ensemble.json` says; every member has a line that `_member` takes."""
    try:
        told = json.loads((folder / FILE).read_text("utf-8"))
        keys = {"name", "weight", "sample", "model_type", "model_file", "architecture"}
        lines = [*told["members"], *([told["student"]] if "student" in told else [])]
        lacking = [keys - set(line) for line in lines]
        if not lines or any(lacking):
            raise ValueError(f"it lacks {sorted(set().union(*lacking)) or 'members'}")
        return told
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its {FILE} cannot be read: {type(error).__name__}: {error}"
        raise RunFolderError(str(folder), reason) from None


def _member(
    folder: Path, name: str, weight: float, sample: list[int] | None, **settings: Any
) -> Member:
    for key in ("model_file", "architecture"):
        if settings[key]:
            settings[key] = str(folder / Path(settings[key]).name)
    try:
        config = _member_config(settings)
        shape = None if sample is None else tuple(map(int, sample))
        return replace(_read(name, config), weight=float(weight), sample=shape)
    except (ValueError, TypeError) as error:
        reason = f"its {FILE} cannot be read: {type(error).__name__}: {error}"
        raise RunFolderError(str(folder), reason) from None


def _member_config(settings: dict[str, Any]) -> FederationConfig:
    try:
        return FederationConfig(**settings)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _alone(file: Path) -> Member:
    """A file by itself; one that a run or `save` wrote, as it is told there."""
    folder = file.parent
    if (folder / FILE).is_file():
        told = _told(folder)
        for line in (*told["members"], told.get("student")):
            if line and line["model_file"] == file.name:
                return _member(folder, **line)
    elif file.name.startswith("global_model") and (folder / CONFIG).is_file():
        return _read(file.stem, _config(folder).with_changes(model_file=str(file)))
    adapter, _ = models.for_file(file)
    config = FederationConfig(model_type=adapter.model_type, model_file=str(file))
    return _read(file.stem, config)


def _of_run(folder: Path) -> Member:
    config = _config(folder)
    file = folder / f"global_model{models.named(config.model_type).suffix}"
    there = sorted(path.name for path in folder.glob("global_model-*.*"))
    if config.fusion_algorithm == "ensemble" or not (file.is_file() or there):
        n_kept = RunFolder(folder).n_kept()
        done = f"is not finished, {n_kept} of {config.rounds} rounds are kept: "
        raise RunFolderError(str(folder), f"{done}let it end (--resume), then load it")
    if not file.is_file():
        reason = f"has a model for each group: load one of {there} by its path"
        raise RunFolderError(str(folder), reason)
    return _read("all", config.with_changes(model_file=str(file)))


def _config(folder: Path) -> FederationConfig:
    config = parse(read_yaml(folder / CONFIG))[0]
    if config.model_type == "doc2vec":
        reason = "doc2vec gives no probabilities; ask it with fedray.query"
        raise RunFolderError(str(folder), reason)
    return config


def _read(name: str, config: FederationConfig) -> Member:
    blueprint, weights = models.named(config.model_type).read(config)
    return Member(name, blueprint.settle(config), blueprint, weights)
