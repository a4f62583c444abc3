"""State of a torch module beside its state_dict, and the random states it draws from.

Buffers with `persistent=False`, tensors and arrays in attributes, random generators:
they neither travel nor are saved. So that all parties have the same, modules are built
under the config's seed (`random_scope`), and every training starts from what was built
(`OutsideState`).
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fedray.errors import ModelFileError
from fedray.models.base import Blueprint
from fedray.user_code import Source
from fedray.weights import Weights

N_COMPARED = 16  # numbers of each tensor that are compared between processes
TOLERANCE = 1e-3  # of the largest of them: machines round differently
N_SHOWN = 5  # tensors that a note names
INTERNAL = frozenset(vars(nn.Module()))  # attributes that every module has
PLAIN = (bool, int, float, str, type(None))


class Fingerprint(NamedTuple):
    """Form of a tensor, and a few of its numbers."""

    form: str
    numbers: tuple[float, ...]


class Slot(NamedTuple):
    """A place in a module's attributes, lists or buffers, and what was built there.

    path : what errors call it.
    holder : takes `value` back under `key` if it was replaced; None: it cannot be.
    saved : a copy of it.
    version : of a tensor: torch counts what is written into it.
    """

    path: str
    holder: Any
    key: Any
    value: torch.Tensor | np.ndarray
    saved: Any
    version: int = 0

    @property
    def has_changed(self) -> bool:
        """Whether it was replaced, or written into."""
        if self.holder is not None and self.holder.get(self.key) is not self.value:
            return True
        if isinstance(self.value, torch.Tensor):
            return self.value._version != self.version
        return not np.array_equal(self.value, self.saved, equal_nan=True)


class Kind(NamedTuple):
    """How the state of one kind of random generator is read, set and seeded."""

    get: Callable[[Any], Any]
    set: Callable[[Any, Any], Any]
    seed: Callable[[Any, int], Any]


def _seed_numpy(generator: np.random.Generator, seed: int) -> None:
    bits = generator.bit_generator
    bits.state = type(bits)(seed).state


GENERATORS: dict[type, Kind] = {
    torch.Generator: Kind(
        torch.Generator.get_state,
        torch.Generator.set_state,
        torch.Generator.manual_seed,
    ),
    np.random.Generator: Kind(
        lambda generator: generator.bit_generator.state,
        lambda generator, state: setattr(generator.bit_generator, "state", state),
        _seed_numpy,
    ),
    np.random.RandomState: Kind(
        np.random.RandomState.get_state,
        np.random.RandomState.set_state,
        lambda generator, seed: generator.seed(seed % 2**32),
    ),
    random.Random: Kind(
        random.Random.getstate, random.Random.setstate, random.Random.seed
    ),
}


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers, on a CPU a view; of bfloat16 a copy in float32."""
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return np.ascontiguousarray(tensor.cpu().numpy()).reshape(tensor.shape)


def seed_all(seed: int) -> None:
    """Seed the global random state of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_states() -> tuple[Any, ...]:
    """The global random states on the CPU, to compare them."""
    _, words, *rest = np.random.get_state(legacy=True)
    of_torch = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), np.asarray(words).tobytes(), rest, of_torch


@contextlib.contextmanager
def random_scope(seed: int) -> Iterator[None]:
    """Seed everything random inside, and restore the global random states after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    seed_all(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


class OutsideState:
    """What a module holds outside its state_dict, as its constructor made it.

    Parameters
    ----------
    module : as built, on its device.
    inside : the tensors that travel.
    """

    def __init__(self, module: nn.Module, inside: Iterable[torch.Tensor]):
        self.tensors: dict[str, torch.Tensor | np.ndarray] = {}  # by their path
        self._generators: list[tuple[Kind, Any]] = []
        self._slots: list[Slot] = []
        inside_storages = {_storage(tensor) for tensor in inside}
        for path, holder, key, value in _walk_module(module, "", set()):
            if kind := GENERATORS.get(type(value)):
                self._generators.append((kind, value))
            elif isinstance(value, np.ndarray):
                self.tensors[path] = value
                self._slots.append(Slot(path, holder, key, value, value.copy()))
            elif value.numel() and _storage(value) not in inside_storages:
                self.tensors[path] = value
                saved, version = value.detach().clone(), value._version
                self._slots.append(Slot(path, holder, key, value, saved, version))

    def restore(self) -> None:
        """Put back the tensors and arrays that were built, in place."""
        for slot in self._slots:
            if slot.has_changed:
                if slot.holder is not None:
                    slot.holder[slot.key] = slot.value
                if isinstance(slot.value, torch.Tensor):
                    with torch.no_grad():
                        slot.value.copy_(slot.saved)
                elif slot.value.flags.writeable:
                    slot.value[...] = slot.saved

    def find_change(self) -> str | None:
        """Path of something that was replaced or written into since it was built."""
        return next((slot.path for slot in self._slots if slot.has_changed), None)

    def seed(self, seed: int) -> None:
        """Seed the module's own generators, each in its own way."""
        seeds = np.random.SeedSequence([seed, 2]).generate_state(len(self._generators))
        for (kind, generator), own in zip(self._generators, seeds, strict=True):
            kind.seed(generator, int(own))

    @contextlib.contextmanager
    def undo(self) -> Iterator[None]:
        """Restore what was built afterwards, and the generators' states."""
        states = [kind.get(generator) for kind, generator in self._generators]
        try:
            yield
        finally:
            self.restore()
            for (kind, generator), state in zip(self._generators, states, strict=True):
                kind.set(generator, state)

    def fingerprints(self) -> dict[str, Fingerprint]:
        """What is compared between processes, by path; small."""
        return {path: _fingerprint(value) for path, value in self.tensors.items()}


class FixedTensors:
    """Tensors of a live model that neither train nor travel, and what they hold.

    Parameters
    ----------
    tensors : of the model, by name; the arrays are copied into them.
    arrays : what they are to hold; kept, so views of the object store are best.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], arrays: Weights):
        self._pairs = {
            name: (tensors[name], torch.from_numpy(array))
            for name, array in arrays.items()
        }
        with torch.no_grad():
            for tensor, fixed in self._pairs.values():
                tensor.copy_(fixed)

    def __contains__(self, name: object) -> bool:
        return name in self._pairs

    def find_changes(self) -> list[str]:
        """Names of those that hold something else now."""
        return [
            name
            for name, (tensor, fixed) in self._pairs.items()
            if not torch.equal(tensor.detach(), fixed.to(tensor))
        ]

    def restore(self) -> list[str]:
        """Put back what was changed, in place; its names."""
        changes = self.find_changes()
        with torch.no_grad():
            for tensor, fixed in map(self._pairs.__getitem__, changes):
                tensor.copy_(fixed)
        return changes


@contextlib.contextmanager
def undo_attributes(module: nn.Module) -> Iterator[None]:
    """Restore mode and other plain attributes afterwards, and remove new ones."""
    before = [(vars(layer), dict(vars(layer))) for layer in module.modules()]
    try:
        yield
    finally:
        for attributes, earlier in before:
            for name in attributes.keys() - earlier.keys():
                del attributes[name]
            for name, value in earlier.items():
                if isinstance(value, PLAIN):
                    attributes[name] = value


def require_alike(own: Mapping[str, Fingerprint], blueprint: Blueprint) -> None:
    """Compare tensors that do not travel with those of the model that was read first.

    Raises
    ------
    ModelFileError
        If they differ: what the model computes would be different at every party.
    """
    for path, needed in blueprint.outside.items():
        actual = own.get(path)
        if actual is None or actual.form != needed.form:
            form = actual.form if actual else "missing"
            got = f"{form} here, {needed.form} elsewhere"
        elif not _are_close(actual.numbers, needed.numbers):
            got = "of other numbers in each process"
        else:
            continue
        source = getattr(blueprint.plan, "layers", blueprint.plan)
        raise ModelFileError(
            str(source) if isinstance(source, Source) else "in use",
            f"{path}, which is not in its state_dict, is {got}: fill it with fixed "
            "numbers, or draw them from torch, numpy or random without seeding these, "
            "which fedray seeds; or register_buffer it",
        )


def describe(outside: Mapping[str, Fingerprint], seed: int) -> tuple[str, ...]:
    """A note about tensors that do not travel; none if all do."""
    if not outside:
        return ()
    shown = [f"{path} {one.form}" for path, one in [*outside.items()][:N_SHOWN]]
    more = f" and {len(outside) - N_SHOWN} more" if len(outside) > N_SHOWN else ""
    return (
        f"not in the model's state_dict: {', '.join(shown)}{more}; not trained, sent "
        f"or saved: every party makes its own from seed {seed}. register_buffer or "
        "nn.ModuleList would take them in",
    )


def _walk_module(
    module: nn.Module, path: str, done: set[int]
) -> Iterator[tuple[str, Any, Any, Any]]:
    """Path, holder, key and value of all that may be outside the state_dict."""
    for prefix, layer in module.named_modules(prefix=path):
        if id(layer) in done:
            continue
        done.add(id(layer))
        for name, buffer in layer._buffers.items():
            is_outside = bool(path) or name in layer._non_persistent_buffers_set
            if buffer is not None and is_outside:
                yield _join(prefix, name), layer._buffers, name, buffer
        for name, parameter in layer._parameters.items() if path else ():
            if parameter is not None:
                yield _join(prefix, name), layer._parameters, name, parameter
        attributes = vars(layer)
        for name, value in attributes.items():
            if name not in INTERNAL:
                own_path = _join(prefix, name)
                yield from _walk_value(own_path, attributes, name, value, done)


def _walk_value(
    path: str, holder: Any, key: Any, value: Any, done: set[int]
) -> Iterator[tuple[str, Any, Any, Any]]:
    is_array = isinstance(value, np.ndarray) and value.size > 0
    is_number = is_array and value.dtype.kind in "fiubc"
    if isinstance(value, torch.Tensor) or is_number or type(value) in GENERATORS:
        yield path, holder, key, value
    elif isinstance(value, nn.Module):  # in a list: torch does not know of it
        yield from _walk_module(value, path, done)
    elif isinstance(value, list | tuple | dict) and id(value) not in done:
        done.add(id(value))
        inner = value if isinstance(value, dict) else None
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in [*items]:
            if not isinstance(item, PLAIN):
                yield from _walk_value(f"{path}.{name}", inner, name, item, done)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".lstrip(".")


def _storage(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except Exception:  # sparse tensors and lazy ones have none
        return id(tensor)


def _fingerprint(value: torch.Tensor | np.ndarray) -> Fingerprint:
    dtype, shape = str(value.dtype).rpartition(".")[2], list(value.shape)
    places = np.linspace(0, np.prod(shape, dtype=int) - 1, N_COMPARED).astype(int)
    flat = value.reshape(-1)[places]
    if isinstance(flat, torch.Tensor):
        flat = flat.detach().cpu().to(torch.complex128).numpy()
    numbers = flat.astype(complex).view(float).tolist()
    return Fingerprint(f"{dtype}{shape}", tuple(numbers))


def _are_close(ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    a, b = np.array(ours), np.array(theirs)
    finite = np.abs(b[np.isfinite(b)])
    tolerance = TOLERANCE * float(finite.max(initial=0.0))
    return np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
