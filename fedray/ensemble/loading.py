"""Loads a finished run, a saved ensemble or a model file, to predict with.

Run folders hold `config.yaml` and `global_model*`, ensembles `ensemble.json` beside
their members' model files.
"""

import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedray import models
from fedray.checkpoint import BEST, LAST, RunFolder, runs_folder
from fedray.config import FederationConfig, parse, read_yaml
from fedray.ensemble.members import FILE, Ensemble, Member
from fedray.ensemble.own_models import read_own_model
from fedray.errors import (
    ConfigError,
    MissingExtra,
    ModelFileError,
    RunFolderError,
    UnknownRun,
    format_count,
)
from fedray.models.live import read_live
from fedray.survey import DataCodes, read_codes
from fedray.user_code import hold, is_in_memory, is_lost, is_source

LOG = logging.getLogger("fedray")
CONFIG = "config.yaml"
NO_BEST = "has no best model: its config has no keep_best, such as keep_best: loss"
ARGUMENTS = {"architecture": "model", "model_type": "model", "loss": "loss"}
SUFFIXES = (".pt", ".pth", ".safetensors", *models.BY_SUFFIX)


def load(
    path: str | Path,
    *,
    best: bool = False,
    party: str | None = None,
    model: Any = None,
    loss: Callable[..., Any] | None = None,
) -> Ensemble:
    """Load a finished run, an ensemble or a model file, ready to predict.

    A run with one global model, or a model file alone, is an ensemble of one. What a
    file does not hold is read from the run's or the ensemble's files beside it. Where a
    model was made by code, that code is run: load only what you trust.

    Parameters
    ----------
    path : a run's folder, the name of one in ``~/.fedray/runs``, a folder with
        `ensemble.json`, or a .pt, .keras or .h5 file of a model.
    best : of a run with `keep_best`, the best round's model and not the last one.
    model, loss : of a run that another process began with such objects in memory: the
        same ones again. Of the model its kind counts; its values are the run's.
    party : of a run whose parties have models of their own, this one's: it is there on
        the party's own node.

    Raises
    ------
    UnknownRun, RunFolderError, ModelFileError, ConfigError
        If there is no model, or it cannot be read.
    """
    place = _find(Path(path).expanduser())
    if place.name == FILE:
        place = place.parent
    objects = {"model": model, "loss": loss}
    objects = {name: thing for name, thing in objects.items() if thing is not None}
    if party is not None:
        return Ensemble([_read_party(place, party, best, objects)])
    if best and (place.is_file() or (place / FILE).is_file()):
        reason = "is no run with global models, of which one may be the best"
        raise RunFolderError(str(path), reason, "Leave best out")
    if place.is_file():
        return Ensemble([_read_model_file(place, objects)])
    if (place / FILE).is_file():
        lines = _read_summary(place)["members"]
        return Ensemble([_read_member(place, **line) for line in lines])
    return Ensemble([_read_run(place, BEST if best else LAST, objects)])


def _find(path: Path) -> Path:
    """The path itself, or the folder of the run with that name."""
    is_name, runs = len(path.parts) == 1, runs_folder()
    for candidate in (path, runs / path)[: 1 + is_name]:
        inside = [candidate / FILE, candidate / CONFIG]
        if candidate.is_file() or any(file.is_file() for file in inside):
            return candidate
    if path.is_dir():
        raise RunFolderError(str(path), "there is no run and no ensemble in it")
    if path.suffix in SUFFIXES:
        raise ModelFileError(str(path), "there is no such file")
    if not is_name:
        raise RunFolderError(str(path), "there is no such folder")
    run_names = sorted(file.parent.name for file in runs.glob(f"*/{CONFIG}"))
    raise UnknownRun(path.name, run_names)


def _read_summary(folder: Path) -> dict[str, Any]:
    """`ensemble.json`; each line of a member has `_read_member`'s arguments."""
    try:
        summary = json.loads((folder / FILE).read_text("utf-8"))
        keys = {"name", "weight", "sample", "model_type", "model_file", "architecture"}
        lines = [*summary["members"]]
        lines += [summary["student"]] if "student" in summary else []
        missing = [keys - set(line) for line in lines]
        if not lines or any(missing):
            raise ValueError(f"it lacks {sorted(set().union(*missing)) or 'members'}")
        return summary
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its {FILE} cannot be read: {type(error).__name__}: {error}"
        raise RunFolderError(str(folder), reason) from None


def _read_member(
    folder: Path, name: str, weight: float, sample: list[int] | None, **settings: Any
) -> Member:
    try:
        for key in ("model_file", "architecture", "model_type"):
            if settings[key] and (key != "model_type" or is_source(settings[key])):
                settings[key] = str(folder / _inner_path(settings[key]))
        config = _member_config(settings | _handler_of_run(folder))
        shape = None if sample is None else tuple(map(int, sample))
        member, codes = _read(name, config), read_codes(folder)
        return replace(member, weight=float(weight), sample=shape, codes=codes)
    except (ValueError, TypeError) as error:
        reason = f"its {FILE} cannot be read: {type(error).__name__}: {error}"
        raise RunFolderError(str(folder), reason) from None


def _handler_of_run(folder: Path) -> dict[str, Any]:
    """How the first party's data were read, where an ensemble lies in its run."""
    if not (folder / CONFIG).is_file():
        return {}
    config = parse(read_yaml(folder / CONFIG))[0]
    if is_in_memory(config.handler_of(0)):
        return {}
    return {"data_handler": config.handler_of(0), "data_args": config.data_args_of(0)}


def _inner_path(path: str) -> Path:
    """A path within an ensemble's folder; of one that leads out the file's name."""
    inner = Path(path)
    leads_out = inner.is_absolute() or ".." in inner.parts
    return Path(inner.name) if leads_out else inner


def _member_config(settings: dict[str, Any]) -> FederationConfig:
    try:
        return FederationConfig(**settings)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _read_model_file(file: Path, objects: dict[str, Any]) -> Member:
    """A model file; with the settings of the run or ensemble that it belongs to."""
    folder = file.parent
    if (folder / FILE).is_file():
        summary = _read_summary(folder)
        for line in (*summary["members"], summary.get("student")):
            if line and line["model_file"] == file.name:
                return _read_member(folder, **line)
    elif file.name.startswith("global_model") and (folder / CONFIG).is_file():
        config = _read_config(folder, objects).with_changes(model_file=str(file))
        return replace(_read(file.stem, config), codes=_codes(folder, config))
    adapter, _ = models.for_file(file)
    config = FederationConfig(model_type=adapter.model_type, model_file=str(file))
    return replace(_read(file.stem, config), codes=read_codes(folder))


def _read_run(folder: Path, which: str, objects: dict[str, Any]) -> Member:
    """The last or the best model of a run: LAST or BEST."""
    config = _read_config(folder, objects)
    file = folder / f"{which}{models.named(config.model_type).suffix}"
    model_files = sorted(path.name for path in folder.glob(f"{which}-*.*"))
    if which == BEST and config.keep_best is None:
        raise RunFolderError(str(folder), NO_BEST)
    if config.has_member_models or not (file.is_file() or model_files):
        n_kept = RunFolder(folder).last_saved_round()
        rounds = format_count(config.rounds, "round is", "rounds are")
        state = f"is not finished, {n_kept} of {rounds} kept: "
        raise RunFolderError(str(folder), f"{state}let it end (--resume), then load it")
    if not file.is_file():
        reason = f"has a model for each group: load one of {model_files} by its path"
        raise RunFolderError(str(folder), reason)
    member = _read("all", config.with_changes(model_file=str(file)))
    return replace(member, codes=_codes(folder, config))


def _read_party(
    folder: Path, party: str, best: bool, objects: dict[str, Any]
) -> Member:
    """The own model of a party of a run."""
    if not (folder / CONFIG).is_file():
        reason = "is no run, of which a party may have a model of its own"
        raise RunFolderError(str(folder), reason, "Leave party out")
    if best:
        reason = "parties keep their own models of the last round, not of the best one"
        raise RunFolderError(str(folder), reason, "Leave best out")
    config = _read_config(folder, objects)

    def read_global(group: str | None) -> Member:
        if group is None:
            return _read_run(folder, LAST, objects)
        suffix = models.named(config.model_type).suffix
        return _read_model_file(folder / f"{LAST}-{group}{suffix}", objects)

    return read_own_model(folder, config, party, read_global)


def _codes(folder: Path, config: FederationConfig) -> DataCodes | None:
    return read_codes(folder, config.normalize == "federated")


def _read_config(folder: Path, objects: dict[str, Any]) -> FederationConfig:
    config = _with_objects(folder, parse(read_yaml(folder / CONFIG))[0], objects)
    if models.named(config.model_type).search is not None:
        reason = f"{config.model_type} gives no predictions; ask it with fedray.query"
        raise RunFolderError(str(folder), reason)
    return config


def _with_objects(
    folder: Path, config: FederationConfig, objects: dict[str, Any]
) -> FederationConfig:
    """The config with what its run was given in memory, by another process perhaps."""
    settings = _settings_of(objects)
    for key in settings:
        if not is_in_memory(getattr(config, key) or ""):
            reason = f"was not given its {key} in memory"
            raise RunFolderError(str(folder), reason, f"Leave {ARGUMENTS[key]} out")
    if config.model_type == "sklearn" and is_lost(config.architecture or ""):
        settings["architecture"] = None  # the model's file has it
    config = config.with_changes(**settings)
    for key, argument in ARGUMENTS.items():
        if is_lost(spec := getattr(config, key) or ""):
            name = spec.rpartition("/")[2]
            reason = f"was given its {key} {name} in memory, by fedray.run in Python"
            remedy = f"There fedray.load(..., {argument}=...) takes such a one again"
            raise RunFolderError(str(folder), reason, remedy)
    return config


def _settings_of(objects: dict[str, Any]) -> dict[str, Any]:
    """Settings that stand for a model and a loss of this process."""
    settings = dict[str, Any]()
    if "model" in objects:
        try:
            _, live = read_live(objects["model"], pickle.Pickler)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            needed = "its class is needed at the top of a module or notebook"
            raise ConfigError([f"model cannot be copied ({error}): {needed}"]) from None
        if live.build is not None:
            settings[live.code_key] = hold(live.build, live.name)
    if "loss" in objects:
        name = getattr(objects["loss"], "__name__", "loss")
        settings["loss"] = hold(objects["loss"], name)
    return settings


def _read(name: str, config: FederationConfig) -> Member:
    try:
        blueprint, weights = models.read(config)
        models.plan_metrics(config, blueprint) if config.metrics else None
    except (ConfigError, MissingExtra) as error:
        if not config.metrics:
            raise
        LOG.warning("the run's metrics are not measured: %s", error)
        config = config.with_changes(metrics=())
        blueprint, weights = models.read(config)
    return Member(name, blueprint.settle(config), blueprint, weights)
