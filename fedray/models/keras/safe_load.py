"""Reads Keras files without running anything in them: .keras, .h5, .weights.h5.

A file is untrusted data. Its description (JSON) is checked and written anew from a list
of allowed classes, its arrays are extracted by a child process (`fedray.models.hdf5`).
Only then does Keras build the layers and load the arrays.
"""

import json
import math
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import format_count
from fedray.file_kinds import kind_of_members, kind_of_start, read_start
from fedray.models.hdf5 import Content, extract
from fedray.models.untrusted import (
    BROKEN,
    FORBIDDEN_IN_NAMES,
    MAX_NAME,
    READ_ERRORS,
    UnsafeFile,
    bounded,
    check_members,
    check_readable,
    other_kind,
    quote,
)
from fedray.untrusted_text import is_harmless

ZIP_MAGIC, HDF5_MAGIC = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
# members of a .keras file
CONFIG, ARRAYS, METADATA = "config.json", "model.weights.h5", "metadata.json"

# limits of a model's description
MAX_CONFIG_BYTES = 8 << 20
MAX_LAYERS = 1_000
MAX_CALLS = 2_000  # of layers; a model called twice by one that is called twice: 4
MAX_DEPTH = 60  # of the JSON
MAX_VALUES = 300_000
MAX_WINDOW = 1_024  # a pool of a billion pads its image with as many
WINDOW_ARGUMENTS = (
    "pool_size",
    "kernel_size",
    "strides",
    "dilation_rate",
    "size",
    "padding",
)
LAYER_KEYS = ("name", "inbound_nodes", "build_config")  # beside class and config
ADVICE = "give architecture: file.py:function and a file of weights"

# the classes and functions of Keras that a file may name
_LAYERS = """
    InputLayer Identity Dense EinsumDense Embedding Activation Masking
    Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose
    DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D
    MaxPooling1D MaxPooling2D MaxPooling3D
    AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    BatchNormalization LayerNormalization GroupNormalization RMSNormalization
    UnitNormalization Normalization Rescaling
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
_COMPONENTS = {
    "keras.initializers": "Zeros Ones Constant RandomNormal RandomUniform "
    "TruncatedNormal VarianceScaling GlorotNormal GlorotUniform HeNormal HeUniform "
    "LecunNormal LecunUniform Orthogonal OrthogonalInitializer Identity "
    "IdentityInitializer",
    "keras.regularizers": "L1 L2 L1L2 OrthogonalRegularizer",
    "keras.constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
}
COMPONENTS = {  # class -> its module
    name: module for module, names in _COMPONENTS.items() for name in names.split()
}
DTYPE_POLICIES = ("float16", "float32", "float64", "mixed_float16", "mixed_bfloat16")
_ACTIVATIONS = """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish
    hard_tanh leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid
    silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid sparsemax
    squareplus swish tanh tanh_shrink threshold
"""
ACTIVATIONS = frozenset(_ACTIVATIONS.split())


@dataclass(frozen=True)
class KerasFile:
    """What a Keras file holds, checked.

    layers : description of a whole model, `None` for a file of weights alone.
    compiled : its compile settings as the file has them, plain data.
    content : its arrays.
    suffix : by which Keras knows how the arrays are arranged.
    """

    layers: dict[str, Any] | None
    compiled: dict[str, Any] | None
    content: Content
    suffix: str


def load(path: Path) -> KerasFile:
    """Read a .keras or .h5 file; its first bytes decide which of them it is.

    Raises
    ------
    UnsafeFile
        If anything at all is wrong with it.
    """
    check_readable(path)
    magic = read_start(path)
    if magic.startswith(ZIP_MAGIC):
        return _load_zip(path)
    if magic.startswith(HDF5_MAGIC):
        return _load_hdf5(path)
    if kind := kind_of_start(magic, path.suffix):
        raise other_kind(kind)
    raise UnsafeFile(
        "it is neither a .keras file (a zip) nor HDF5, or it is cut short: save the "
        "model with model.save('model.keras')"
    )


def _load_zip(path: Path) -> KerasFile:
    try:
        with path.open("rb") as file, zipfile.ZipFile(bounded(file)) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if CONFIG not in infos and (kind := kind_of_members(infos)):
                raise other_kind(kind)
            check_members(archive.infolist(), path.stat().st_size, "model.save")
            _check_member_names(set(infos))
            if infos[CONFIG].file_size > MAX_CONFIG_BYTES:
                raise UnsafeFile(f"its {CONFIG} has {infos[CONFIG].file_size} bytes")
            description = parse_json(archive.read(CONFIG))
            layers = ConfigSanitizer().sanitize(description)
            with tempfile.TemporaryDirectory() as folder:
                content = extract(Path(archive.extract(infos[ARRAYS], folder)))
    except READ_ERRORS as error:
        raise UnsafeFile(BROKEN) from error
    compiled = _compile_settings(description.get("compile_config"))
    return KerasFile(layers, compiled, content, ".weights.h5")


def _check_member_names(names: set[str]) -> None:
    if CONFIG not in names:
        raise UnsafeFile("it is a zip but not one of model.save('model.keras')")
    if ARRAYS not in names:
        raise UnsafeFile(f"it has no {ARRAYS}: save it with model.save('model.keras')")
    if others := names - {CONFIG, ARRAYS, METADATA}:
        files = format_count(len(others), "file")
        raise UnsafeFile(
            f"its zip holds {files} that no model of known layers has: "
            "save it again without them"
        )


def _load_hdf5(path: Path) -> KerasFile:
    content = extract(path)
    config = content.root_text("model_config")
    compiled = content.root_text("training_config")
    if config is None:
        root = content.texts.get("/", {})
        is_keras_2 = "layer_names" in root or "/model_weights" in content.texts
        return KerasFile(None, None, content, ".h5" if is_keras_2 else ".weights.h5")
    layers = ConfigSanitizer().sanitize(parse_json(config))
    settings = _compile_settings(parse_json(compiled)) if compiled else None
    return KerasFile(layers, settings, content, ".h5")


def _compile_settings(compiled: Any) -> dict[str, Any] | None:
    """Compile settings under the names that a .keras file has for them."""
    if type(compiled) is not dict or not compiled:
        return None
    optimizer = compiled.get("optimizer", compiled.get("optimizer_config"))
    return {**compiled, "optimizer": optimizer}


def parse_json(text: bytes | str) -> dict[str, Any]:
    """Parse a JSON object of bounded size and nesting, without NaN and infinity.

    Raises
    ------
    UnsafeFile
        If it is none.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise UnsafeFile(
            f"its description has {len(text)} bytes, at most {MAX_CONFIG_BYTES} are "
            f"read: {ADVICE}"
        )
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise UnsafeFile("its description is not JSON: save it again") from error
    if type(value) is not dict:
        raise UnsafeFile("its description is no JSON object: save it again")
    return value


def _reject_constant(text: str) -> None:
    raise ValueError(text)


class ConfigSanitizer:
    """Rebuilds a model's description from allowed classes and plain data only.

    Nothing of the input is passed on as it is: a class is named by its public name and
    module, so that `keras.saving` can make nothing but the classes listed above. One
    object counts the values and layers of one model.
    """

    def __init__(self) -> None:
        self.n_values = self.n_layers = 0

    def sanitize(self, model: Any) -> dict[str, Any]:
        """The description of a whole model, as `deserialize_keras_object` takes it.

        Raises
        ------
        UnsafeFile
            If anything in it is not allowed or out of bounds.
        """
        if type(model) is not dict or model.get("class_name") not in MODELS:
            kind = model.get("class_name") if type(model) is dict else model
            raise UnsafeFile(
                f"its model is a {quote(kind)}, read are Sequential and functional "
                f"models of Keras's own layers: {ADVICE}"
            )
        sanitized = self._value(model, 0)
        if count_calls(sanitized) > MAX_CALLS:
            raise UnsafeFile(f"its layers call each other over {MAX_CALLS} times")
        return sanitized

    def _value(self, value: Any, depth: int) -> Any:
        self.n_values += 1
        if self.n_values > MAX_VALUES or depth > MAX_DEPTH:
            raise UnsafeFile("its description is larger or deeper than a model's")
        if type(value) is dict:
            if "class_name" in value:
                return self._object(value, depth)
            return {
                _check_text(key): self._argument(key, item, depth + 1)
                for key, item in value.items()
            }
        if type(value) is list:
            return [self._value(item, depth + 1) for item in value]
        if type(value) is str:
            return _check_text(value)
        if value is None or type(value) in (bool, int, float):
            if isinstance(value, float) and not math.isfinite(value):
                raise UnsafeFile("its description holds a number that is not finite")
            return value
        raise UnsafeFile("its description holds what is no JSON")

    def _object(self, value: dict[str, Any], depth: int) -> Any:
        """A layer, model, initializer, ...: an object with a class name."""
        kind, config = value["class_name"], value.get("config")
        if kind == "__keras_tensor__":
            return {"class_name": kind, "config": self._value(config, depth + 1)}
        if kind == "function" and config in ACTIVATIONS:
            return config
        _check_module(value, kind)
        if kind == "DTypePolicy":
            return _check_dtype_policy(config)
        is_layer = kind in LAYERS and type(config) is dict and "name" in config
        if kind in COMPONENTS and not is_layer:  # there is an Identity among both
            return self._serialized(COMPONENTS[kind], kind, config, depth)
        if kind not in LAYERS and kind not in MODELS:
            raise UnsafeFile(f"its {quote(kind)} is not known to fedray: {ADVICE}")
        return self._layer(value, kind, depth)

    def _layer(self, value: dict[str, Any], kind: str, depth: int) -> dict[str, Any]:
        self.n_layers += 1
        if self.n_layers > MAX_LAYERS:
            raise UnsafeFile(f"it has more than {MAX_LAYERS} layers: {ADVICE}")
        config = value.get("config")
        if type(config) is not dict:
            raise UnsafeFile(f"its layer {quote(kind)} has no config: save it again")
        config = _to_keras_3(kind, config)
        _check_layer_name(config.get("name", value.get("name")))
        module = "keras" if kind in MODELS else "keras.layers"
        kind = "Model" if kind == "Functional" else kind
        layer = self._serialized(module, kind, config, depth)
        for key in LAYER_KEYS:
            if value.get(key) is not None:
                layer[key] = self._value(value[key], depth + 1)
        return layer

    def _serialized(
        self, module: str, kind: str, config: Any, depth: int
    ) -> dict[str, Any]:
        return {
            "module": module,
            "class_name": kind,
            "config": self._value(config or {}, depth + 1),
            "registered_name": None,
        }

    def _argument(self, key: str, value: Any, depth: int) -> Any:
        argument = self._value(value, depth)
        if key == "noise_shape" and argument is not None:
            raise UnsafeFile(f"its dropout has a noise_shape of its own: {ADVICE}")
        if key == "stateful" and argument:
            raise UnsafeFile(
                "its recurrent layer is stateful: save it with stateful=False"
            )
        if key in WINDOW_ARGUMENTS and _largest(argument) > MAX_WINDOW:
            raise UnsafeFile(f"its {key} is past {MAX_WINDOW}")
        is_text = isinstance(argument, str)
        if key == "dtype" and is_text and not argument.startswith("int"):
            return _check_dtype_policy({"name": argument})
        return argument


def count_calls(sanitized: Any) -> int:
    """Number of layer calls in one call of the model, with those of nested models."""
    if type(sanitized) is list:
        return sum(map(count_calls, sanitized))
    if type(sanitized) is not dict:
        return 0
    n_inner = sum(map(count_calls, sanitized.values()))
    if sanitized.get("module") in ("keras", "keras.layers"):
        return max(1, len(sanitized.get("inbound_nodes") or ())) * (1 + n_inner)
    return n_inner


def _check_module(value: dict[str, Any], kind: Any) -> None:
    """Refuse classes that are not Keras's own, whatever they are called."""
    module, registered = value.get("module"), value.get("registered_name")
    is_keras = module is None or (
        type(module) is str and module.split(".")[0] == "keras"
    )
    if type(kind) is not str or not is_keras or registered not in (None, kind):
        raise UnsafeFile(
            f"its {quote(kind)} is not Keras's own but code of {quote(module)}, and "
            f"code named by a file is never run: {ADVICE}"
        )


def _to_keras_3(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """A layer's config as Keras 3 has it, where Keras 2 wrote the file."""
    config = dict(config)
    shape = config.pop("batch_input_shape", None)
    if shape is not None and kind == "InputLayer":
        config["batch_shape"] = shape
    axis = config.get("axis")
    if kind == "BatchNormalization" and type(axis) is list and len(axis) == 1:
        config["axis"] = axis[0]
    return config


def _check_dtype_policy(config: Any) -> str:
    name = config.get("name") if type(config) is dict else None
    if name not in DTYPE_POLICIES:
        raise UnsafeFile(
            f"its dtype is {quote(name)}, read are {', '.join(DTYPE_POLICIES)}"
        )
    return name


def _check_layer_name(name: Any) -> None:
    if name is None:
        return
    fits = type(name) is str and 0 < len(name) <= MAX_NAME and is_harmless(name)
    if not fits or any(part in name for part in FORBIDDEN_IN_NAMES):
        raise UnsafeFile(
            f"it names a layer {quote(name)}: needed are 1 to {MAX_NAME} printable "
            "characters without slashes"
        )


def _check_text(text: Any) -> str:
    if type(text) is not str or len(text) > MAX_NAME or not is_harmless(text):
        raise UnsafeFile(f"its description holds a text {quote(text)}: not a model's")
    return text


def _largest(value: Any) -> float:
    if type(value) is list:
        return max(map(_largest, value), default=0)
    return abs(value) if type(value) in (int, float) else 0
