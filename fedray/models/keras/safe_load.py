"""A Keras file taken apart: its description as plain data, its arrays checked.

A stranger's file is data here: nothing in it is run, no class made with sizes that were
looked at. Arrays are read by Keras once all of the file is known to be harmless.
"""

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.models.keras.h5 import Content, extract
from fedray.models.keras.layers import MAX_CONFIG_BYTES, Retelling, plain
from fedray.models.untrusted import (
    BROKEN,
    FAULTS,
    Bounded,
    Refused,
    check_members,
    check_there,
)

ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
CONFIG, ARRAYS = "config.json", "model.weights.h5"
MEMBERS = {CONFIG, ARRAYS, "metadata.json"}


@dataclass(frozen=True)
class KerasFile:
    """What a file holds.

    layers : description of a whole model, `None` for a file of weights alone.
    compiled : its compile settings as the file has them, plain data.
    content : its arrays.
    suffix : by which Keras knows how they are arranged.
    """

    layers: dict[str, Any] | None
    compiled: dict[str, Any] | None
    content: Content
    suffix: str


def look(path: Path) -> KerasFile:
    """Look at a .keras or .h5 file; its content decides which of them it is.

    Raises
    ------
    Refused
        If anything at all is wrong with it.
    """
    check_there(path)
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(ZIP):
        return _zipped(path)
    if start == HDF5:
        return _hdf5(path)
    raise Refused(
        "it is neither a .keras file (a zip) nor HDF5, or it is cut short: save the "
        "model with model.save('model.keras')"
    )


def _zipped(path: Path) -> KerasFile:
    try:
        with path.open("rb") as file, zipfile.ZipFile(Bounded(file)) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            check_members(archive.infolist(), path.stat().st_size, "model.save")
            _check_names(set(infos))
            if infos[CONFIG].file_size > MAX_CONFIG_BYTES:
                raise Refused(f"its {CONFIG} has {infos[CONFIG].file_size} bytes")
            given = plain(archive.read(CONFIG))
            compiled, layers = given.get("compile_config"), Retelling().model(given)
            with tempfile.TemporaryDirectory() as folder:
                content = extract(Path(archive.extract(infos[ARRAYS], folder)))
    except FAULTS as error:
        raise Refused(BROKEN) from error
    return KerasFile(layers, _settings(compiled), content, ".weights.h5")


def _check_names(names: set[str]) -> None:
    if CONFIG not in names:
        raise Refused("it is a zip but not one of model.save('model.keras')")
    if ARRAYS not in names:
        raise Refused(f"it has no {ARRAYS}: save it with model.save('model.keras')")
    if more := names - MEMBERS:
        raise Refused(
            f"its zip holds {len(more)} files that no model of known layers has: save "
            "it again without them"
        )


def _hdf5(path: Path) -> KerasFile:
    content = extract(path)
    config, compiled = content.text("model_config"), content.text("training_config")
    if config is None:
        top = content.texts.get("/", {})
        is_old = "layer_names" in top or "/model_weights" in content.texts
        return KerasFile(None, None, content, ".h5" if is_old else ".weights.h5")
    layers = Retelling().model(plain(config))
    settings = _settings(plain(compiled)) if compiled else None
    return KerasFile(layers, settings, content, ".h5")


def _settings(compiled: Any) -> dict[str, Any] | None:
    """Compile settings, under the names that a .keras file has for them."""
    if type(compiled) is not dict or not compiled:
        return None
    optimizer = compiled.get("optimizer", compiled.get("optimizer_config"))
    return {**compiled, "optimizer": optimizer}
