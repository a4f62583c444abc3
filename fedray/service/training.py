"""One training of a federation: the same `fedray.federation.run` as ``fedray run``."""

import os
from pathlib import Path
from typing import Any

from fedray import models
from fedray.checkpoint import RunFolder
from fedray.config import read_yaml
from fedray.errors import (
    FedrayError,
    JoinFailed,
    PartyError,
    PlacementError,
    RoundFailed,
)
from fedray.federation import Result, Watch, blueprint_of, read_config, run
from fedray.messages import RoundReport
from fedray.service import schemas
from fedray.service import store as states
from fedray.service.store import State

AGAIN = "Mend it and POST /train again: it goes on after the last round done."
OF_A_PARTY = (JoinFailed, RoundFailed, PartyError, PlacementError)


def train(folder: Path, state: State, watch: Watch) -> Result:
    """Train to the last round, going on after rounds that are done.

    Raises
    ------
    FedrayError
        Stopped if `watch` raised KeyboardInterrupt.
    """
    config = schemas.with_parties(state.settings, state.model_file, state.parties)
    return run(config, run_dir=folder, resume=True, watch=watch)


def keep(folder: Path) -> bool:
    """Write model file and answer from the newest round; is there one?"""
    import orjson

    if not (folder / "config.yaml").exists():
        return False
    checkpoint, _ = RunFolder(folder).newest()
    if checkpoint is None:
        return False
    config = read_config(read_yaml(folder / "config.yaml"))
    adapter = models.named(config.model_type)
    blueprint = blueprint_of(folder, config)
    if model_of(folder) is None:
        model = folder / f"global_model{adapter.SUFFIX}"
        adapter.write(blueprint, checkpoint.weights, model)
    model, info = adapter.answer(blueprint, checkpoint.weights)
    aside = folder / f".{states.ANSWER}"
    plain = {"global_model": model, "global_model_info": info}
    aside.write_bytes(orjson.dumps(plain, _plain, orjson.OPT_SERIALIZE_NUMPY))
    os.replace(aside, folder / states.ANSWER)
    return True


def model_of(folder: Path) -> Path | None:
    """The model file of a federation that has one."""
    found = sorted(folder.glob("global_model.*"))
    kinds = [path for path in found if path.suffix not in (".part", ".safetensors")]
    return kinds[0] if kinds else None


def metrics(report: RoundReport, before: dict[str, Any]) -> dict[str, Any]:
    """What is told of a federation in short, after one more round."""
    return {
        "round": report.round,
        "loss": report.loss if report.loss is not None else before.get("loss"),
        "accuracy": report.accuracy
        if report.accuracy is not None
        else before.get("accuracy"),
        "bytes_moved": before.get("bytes_moved", 0) + report.bytes_moved,
    }


def told(error: Exception, folder: Path) -> dict[str, Any]:
    """Why a training failed, without the server's paths: status, detail, hint."""
    status = 502 if isinstance(error, OF_A_PARTY) else 500
    if not isinstance(error, FedrayError):
        return {"status": 500, "detail": type(error).__name__, "hint": AGAIN}
    text = str(error).split(" Mend the parties and go on")[0]
    text = text.replace(f"{folder}/{states.UPLOADS}/", "").replace(f"{folder}/", "")
    text = text.replace(str(folder), "the federation's folder")
    text = text.replace("; go on with --resume", "").replace(" with --resume", "")
    return {"status": status, "detail": text[:4000], "hint": AGAIN}


def _plain(value: Any) -> Any:
    """What orjson does not take itself: arrays without dimensions, odd strides."""
    return value.tolist()
