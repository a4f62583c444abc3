"""The modules of a PyTorch file as plain layers, and their tensors in torch's order."""

from dataclasses import dataclass, field, replace
from typing import Any

from fedray.models.pytorch.archive import Archive
from fedray.models.pytorch.pickle_reader import (
    ADVICE,
    DAMAGED,
    Module,
    Parameter,
    Storage,
    Tensor,
)
from fedray.models.pytorch.tensors import owned, view
from fedray.models.untrusted import MAX_NAME, MAX_TENSORS, Refused, checked_name, shown
from fedray.weights import MAX_DIMENSIONS, Weights

MAX_LAYERS = 2_000
MAX_DEPTH = 50  # layers inside layers
MAX_ENTRIES = 200_000  # of all layers' dicts together; shared ones count every time
MAX_COPIES = 4  # a tied tensor is copied under every name: times the file's bytes
SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Layer:
    """A module of torch.nn as plain data that can be pickled; see `layers.build`.

    kind : name of its class in torch.nn, such as "Conv2d".
    args : its public attributes that are plain data, and for each of its parameters
        (weight, bias) whether it has one: all that its constructor needs, and more.
    children : names and layers in order; one object twice is one module used twice.
    tied : of the outermost layer only, (name, earlier name) of one and the same
        parameter.
    """

    kind: str
    args: dict[str, Any]
    children: tuple[tuple[str, "Layer"], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()


@dataclass
class Tree:
    """What is collected from one archive, within the bounds above."""

    archive: Archive
    weights: Weights = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    tied: list[tuple[str, str]] = field(default_factory=list)
    _layers: dict[int, Layer] = field(default_factory=dict)  # by id of the Module
    _names: dict[int, str] = field(default_factory=dict)  # by id of the Parameter
    _n_layers: int = 0
    _n_entries: int = 0
    _n_bytes: int = 0

    def add_model(self, module: Module) -> Layer:
        """Collect a whole model; its outermost layer."""
        return replace(self._layer(module, "", 1), tied=tuple(self.tied))

    def add_tensor(self, name: str, value: Any) -> None:
        """Copy one tensor or parameter out of the archive."""
        tensor = value.tensor if type(value) is Parameter else value
        if type(tensor) is not Tensor or type(tensor.storage) is not Storage:
            raise Refused(DAMAGED)
        if len(self.weights) == MAX_TENSORS:
            raise Refused(f"it has more than {MAX_TENSORS} tensors: {ADVICE}")
        part = view(checked_name(name), tensor, self.archive.numbers(tensor.storage))
        self._n_bytes += part.nbytes
        if self._n_bytes > MAX_COPIES * self.archive.n_bytes:
            raise Refused(
                f"its tensors share their numbers: they would fill over {MAX_COPIES} "
                "times the file's bytes, so save one of each"
            )
        self.weights[name] = owned(part)

    def _layer(self, module: Any, prefix: str, depth: int) -> Layer:
        if type(module) is not Module:
            raise Refused(f"its module {shown(prefix)} is no module of torch.nn")
        self._n_layers += 1
        if self._n_layers > MAX_LAYERS or depth > MAX_DEPTH:
            raise Refused(
                f"it has over {MAX_LAYERS} layers, or over {MAX_DEPTH} one inside the "
                f"other: {ADVICE}"
            )
        state = self._entries(module.state)
        args = {key: value for key, value in state.items() if self._plain(key, value)}
        for name, value in self._entries(state.get("_parameters")).items():
            args[name] = value is not None
            self._add_parameter(prefix + name, value)
        self._add_buffers(state, prefix)
        children = tuple(
            (name, self._layer(child, f"{prefix}{name}.", depth + 1))
            for name, child in self._entries(state.get("_modules")).items()
        )
        return self._layers.setdefault(id(module), Layer(module.kind, args, children))

    def _add_parameter(self, name: str, value: Any) -> None:
        if value is None:
            return
        if type(value) is not Parameter or type(value.requires_grad) is not bool:
            raise Refused(DAMAGED)
        if not value.requires_grad:
            self.frozen.add(name)
        self.add_tensor(name, value)
        earlier = self._names.setdefault(id(value), name)
        if earlier != name:
            self.tied.append((name, earlier))

    def _add_buffers(self, state: dict[str, Any], prefix: str) -> None:
        passing = state.get("_non_persistent_buffers_set", [])
        if type(passing) is not list:
            raise Refused(DAMAGED)
        self._count(len(passing))
        for name, value in self._entries(state.get("_buffers")).items():
            if value is not None and name not in passing:
                self.add_tensor(prefix + name, value)

    def _entries(self, value: Any) -> dict[str, Any]:
        """One dict of a module, its names checked; every visit counts."""
        if type(value) is not dict:
            raise Refused(DAMAGED)
        self._count(len(value))
        for name in value:
            if "." in checked_name(name):
                raise Refused(DAMAGED)
        return value

    def _plain(self, name: str, value: Any) -> bool:
        """Whether an attribute may be a constructor's argument."""
        if name.startswith("_"):
            if name.endswith("_hooks") and value:
                raise Refused(f"it has hooks, which are code and never run: {ADVICE}")
            return False
        return name != "training" and self._is_data(value, 2)

    def _is_data(self, value: Any, depth: int) -> bool:
        if type(value) in SCALARS:
            return type(value) is not str or len(value) <= MAX_NAME
        if type(value) not in (tuple, list) or len(value) > MAX_DIMENSIONS or not depth:
            return False
        self._count(len(value))
        return all(self._is_data(item, depth - 1) for item in value)

    def _count(self, n_entries: int) -> None:
        self._n_entries += n_entries
        if self._n_entries > MAX_ENTRIES:
            raise Refused(f"its layers have over {MAX_ENTRIES} attributes: {ADVICE}")
