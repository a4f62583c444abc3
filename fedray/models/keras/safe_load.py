"""A Keras file taken apart: its description as plain data, its arrays checked.

A stranger's file is data here: nothing in it is run, no class made with sizes that were
looked at. Arrays are read by Keras once all of the file is known to be harmless.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedray.models.hdf5 import ARRAYS as EXTRACTED_ARRAYS
from fedray.models.hdf5 import TEXTS as EXTRACTED_TEXTS
from fedray.models.untrusted import (
    BROKEN,
    FAULTS,
    FORBIDDEN,
    MAX_NAME,
    Bounded,
    Refused,
    check_members,
    check_there,
    shown,
)
from fedray.weights import Form, Weights

_LAYERS = """
    InputLayer Identity Dense EinsumDense Embedding Activation Masking
    Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose
    DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D
    MaxPooling1D MaxPooling2D MaxPooling3D
    AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    BatchNormalization LayerNormalization GroupNormalization RMSNormalization
    UnitNormalization Rescaling
    Dropout AlphaDropout GaussianDropout GaussianNoise
    SpatialDropout1D SpatialDropout2D SpatialDropout3D ActivityRegularization
    ReLU LeakyReLU PReLU ELU Softmax
    Flatten Reshape Permute RepeatVector
    Cropping1D Cropping2D Cropping3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    UpSampling1D UpSampling2D UpSampling3D
    Add Subtract Multiply Average Maximum Minimum Concatenate Dot
    Attention AdditiveAttention MultiHeadAttention GroupQueryAttention
    LSTM GRU SimpleRNN RNN LSTMCell GRUCell SimpleRNNCell StackedRNNCells
    Bidirectional TimeDistributed
"""
LAYERS = frozenset(_LAYERS.split())
MODELS = ("Sequential", "Functional", "Model")
_PARTS = {
    "keras.initializers": "Zeros Ones Constant RandomNormal RandomUniform "
    "TruncatedNormal VarianceScaling GlorotNormal GlorotUniform HeNormal HeUniform "
    "LecunNormal LecunUniform Orthogonal OrthogonalInitializer Identity "
    "IdentityInitializer",
    "keras.regularizers": "L1 L2 L1L2 OrthogonalRegularizer",
    "keras.constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
}
PARTS = {name: home for home, names in _PARTS.items() for name in names.split()}
POLICIES = ("float16", "float32", "float64", "mixed_float16", "mixed_bfloat16")
_ACTIVATIONS = """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish
    hard_tanh leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid
    silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid sparsemax
    squareplus swish tanh tanh_shrink threshold
"""
ACTIVATIONS = frozenset(_ACTIVATIONS.split())

KEPT = ("name", "inbound_nodes", "build_config")  # beside a layer's class and config
WINDOWS = ("pool_size", "kernel_size", "strides", "dilation_rate", "size", "padding")
MAX_WINDOW = 1024  # a pool of a billion pads its image with as many

MAX_CONFIG_BYTES = 8 << 20
MAX_LAYERS = 1_000
MAX_CALLS = 2_000  # of layers; a model called twice by one that is called twice: 4
MAX_DEPTH = 60  # of the JSON
MAX_VALUES = 300_000
ADVICE = "give architecture: file.py:function and a file of weights"


def plain(text: bytes | str) -> dict[str, Any]:
    """Read the JSON object of a file, of bounded size and nesting.

    Raises
    ------
    Refused
        If it is none.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise Refused(
            f"its description has {len(text)} bytes, at most {MAX_CONFIG_BYTES} are "
            f"read: {ADVICE}"
        )
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused("its description is not JSON: save it again") from error
    if type(found) is not dict:
        raise Refused("its description is no JSON object: save it again")
    return found


def _no_number(word: str) -> None:
    raise ValueError(word)


class Retelling:
    """Says a model's description again in known words, and counts as it goes."""

    def __init__(self):
        self.n_values = self.n_layers = 0

    def model(self, given: Any) -> dict[str, Any]:
        """The description of a whole model.

        Raises
        ------
        Refused
            If anything in it is not known or out of bounds.
        """
        if type(given) is not dict or given.get("class_name") not in MODELS:
            kind = given.get("class_name") if type(given) is dict else given
            raise Refused(
                f"its model is a {shown(kind)}, read are Sequential and functional "
                f"models of Keras's own layers: {ADVICE}"
            )
        told = self._value(given, 0)
        if n_calls(told) > MAX_CALLS:
            raise Refused(f"its layers call each other over {MAX_CALLS} times")
        return told

    def _value(self, value: Any, depth: int) -> Any:
        self.n_values += 1
        if self.n_values > MAX_VALUES or depth > MAX_DEPTH:
            raise Refused("its description is larger or deeper than a model's")
        if type(value) is dict:
            if "class_name" in value:
                return self._named(value, depth)
            return {
                _word(key): self._argument(key, item, depth + 1)
                for key, item in value.items()
            }
        if type(value) is list:
            return [self._value(item, depth + 1) for item in value]
        if type(value) is str:
            return _word(value)
        if value is None or type(value) in (bool, int, float):
            if isinstance(value, float) and not math.isfinite(value):
                raise Refused("its description holds a number that is not finite")
            return value
        raise Refused("its description holds what is no JSON")

    def _named(self, given: dict[str, Any], depth: int) -> Any:
        kind, config = given["class_name"], given.get("config")
        if kind == "__keras_tensor__":
            return {"class_name": kind, "config": self._value(config, depth + 1)}
        if kind == "function" and config in ACTIVATIONS:
            return config
        _check_home(given, kind)
        if kind == "DTypePolicy":
            return _policy(config)
        is_layer = kind in LAYERS and type(config) is dict and "name" in config
        if kind in PARTS and not is_layer:  # there is an Identity among both
            return self._said(PARTS[kind], kind, config, depth)
        if kind not in LAYERS and kind not in MODELS:
            raise Refused(f"its {shown(kind)} is not known to fedray: {ADVICE}")
        return self._layer(given, kind, depth)

    def _layer(self, given: dict[str, Any], kind: str, depth: int) -> dict[str, Any]:
        self.n_layers += 1
        if self.n_layers > MAX_LAYERS:
            raise Refused(f"it has more than {MAX_LAYERS} layers: {ADVICE}")
        config = given.get("config")
        if type(config) is not dict:
            raise Refused(f"its layer {shown(kind)} has no config: save it again")
        config = _renewed(kind, config)
        _check_name(config.get("name", given.get("name")))
        home = "keras" if kind in MODELS else "keras.layers"
        kind = "Model" if kind == "Functional" else kind
        told = self._said(home, kind, config, depth)
        for key in KEPT:
            if given.get(key) is not None:
                told[key] = self._value(given[key], depth + 1)
        return told

    def _said(self, home: str, kind: str, config: Any, depth: int) -> dict[str, Any]:
        told = self._value(config or {}, depth + 1)
        return {
            "module": home,
            "class_name": kind,
            "config": told,
            "registered_name": None,
        }

    def _argument(self, key: str, value: Any, depth: int) -> Any:
        told = self._value(value, depth)
        if key == "noise_shape" and told is not None:
            raise Refused(f"its dropout has a noise_shape of its own: {ADVICE}")
        if key == "stateful" and told:
            raise Refused(
                "its recurrent layer is stateful: save it with stateful=False"
            )
        if key in WINDOWS and _largest(told) > MAX_WINDOW:
            raise Refused(f"its {key} is past {MAX_WINDOW}")
        if key == "dtype" and isinstance(told, str) and not told.startswith("int"):
            return _policy({"name": told})
        return told


def n_calls(told: Any) -> int:
    """How often layers are called when a model is, models inside it counted whole."""
    if type(told) is list:
        return sum(map(n_calls, told))
    if type(told) is not dict:
        return 0
    inside = sum(map(n_calls, told.values()))
    if told.get("module") in ("keras", "keras.layers"):
        return max(1, len(told.get("inbound_nodes") or ())) * (1 + inside)
    return inside


def _check_home(given: dict[str, Any], kind: Any) -> None:
    """Refuse classes that are not Keras's own, whatever they are called."""
    home, registered = given.get("module"), given.get("registered_name")
    own = home is None or (type(home) is str and home.split(".")[0] == "keras")
    if type(kind) is not str or not own or registered not in (None, kind):
        raise Refused(
            f"its {shown(kind)} is not Keras's own but code of {shown(home)}, and code "
            f"named by a file is never run: {ADVICE}"
        )


def _renewed(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """A layer's config as Keras 3 has it, where Keras 2 wrote the file."""
    config = dict(config)
    shape = config.pop("batch_input_shape", None)
    if shape is not None and kind == "InputLayer":
        config["batch_shape"] = shape
    axis = config.get("axis")
    if kind == "BatchNormalization" and type(axis) is list and len(axis) == 1:
        config["axis"] = axis[0]
    return config


def _policy(config: Any) -> str:
    name = config.get("name") if type(config) is dict else None
    if name not in POLICIES:
        raise Refused(f"its dtype is {shown(name)}, read are {', '.join(POLICIES)}")
    return name


def _check_name(name: Any) -> None:
    if name is None:
        return
    fits = type(name) is str and 0 < len(name) <= MAX_NAME and name.isprintable()
    if not fits or any(part in name for part in FORBIDDEN):
        raise Refused(
            f"it names a layer {shown(name)}: needed are 1 to {MAX_NAME} printable "
            "characters without slashes"
        )


def _word(text: Any) -> str:
    if type(text) is not str or len(text) > MAX_NAME or not text.isprintable():
        raise Refused(f"its description holds a text {shown(text)}: not a model's")
    return text


def _largest(value: Any) -> float:
    if type(value) is list:
        return max(map(_largest, value), default=0)
    return abs(value) if type(value) in (int, float) else 0


WAIT_S = 120  # however busy the machine
STATE_OF = ("optimizer", "optimizer_weights")  # what training remembered: not read


@dataclass(frozen=True)
class Content:
    """Arrays and texts of an HDF5 file.

    arrays : by path, as "/layers/dense/vars/0".
    texts : of groups, by path and name of the attribute.
    """

    arrays: Weights
    texts: dict[str, dict[str, str | list[str]]]

    def forms(self) -> Counter[Form]:
        """How many arrays there are of each shape and dtype, optimizers' left out."""
        return Counter(
            Form(array.shape, array.dtype.name)
            for name, array in self.arrays.items()
            if name.split("/")[1] not in STATE_OF
        )

    def text(self, name: str) -> str | None:
        """A text of the whole file; None if it has none."""
        value = self.texts.get("/", {}).get(name)
        if value is not None and not isinstance(value, str):
            raise Refused(BROKEN)
        return value

    def write(self, path: Path) -> None:
        """Write the same again: a file that nobody else made."""
        import h5py

        with h5py.File(path, "w") as file:
            for name, texts in self.texts.items():
                group = file.require_group(name)
                for key, value in texts.items():
                    told = (
                        value
                        if isinstance(value, str)
                        else np.array([v.encode() for v in value], "S")
                    )
                    group.attrs[key] = told
            for name, array in self.arrays.items():
                if name.split("/")[1] not in STATE_OF:
                    file[name] = array


def extract(path: Path) -> Content:
    """Read an HDF5 file in a process of its own.

    Raises
    ------
    Refused
        If there is anything in it that Keras does not write, or it breaks that process.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedray.models.hdf5", str(path), folder]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=WAIT_S,
                env=_environment(),
                check=True,
            )
            reason = json.loads(done.stdout)
            if reason:
                raise Refused(reason)
            return _content(Path(folder))
        except (*FAULTS, subprocess.SubprocessError) as error:
            raise Refused(BROKEN) from error


def _content(folder: Path) -> Content:
    with np.load(folder / EXTRACTED_ARRAYS, allow_pickle=False) as file:
        arrays = {name.removeprefix("a:"): file[name] for name in file.files}
    texts = json.loads((folder / EXTRACTED_TEXTS).read_text(encoding="utf-8"))
    return Content(arrays, texts)


def _environment() -> dict[str, str]:
    """The same modules as here; no plugins for HDF5; no pool of threads."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HDF5_PLUGIN_PRELOAD": "::",
        "OPENBLAS_NUM_THREADS": "1",
    }


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
