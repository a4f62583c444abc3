"""The layers of a Keras file as plain data, every one of them known, none yet built.

What a file says is not handed on but said again: a class only by its public name, with
nothing but plain data for arguments. So nothing else can be made of it than the layers
listed here.
"""

import json
import math
from typing import Any

from fedray.models.keras.known import ACTIVATIONS, LAYERS, MODELS, PARTS, POLICIES
from fedray.models.untrusted import FORBIDDEN, MAX_NAME, Refused, shown

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
