"""Reads the pickle of a PyTorch file without running it.

Nothing is unpickled: the opcodes that torch writes are read one by one into the inert
records below, any other is an error. Time and memory are linear in the file's size.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedray.models.untrusted import UnsafeFile

MAX_OPERATIONS = 500_000  # about 100 a layer, 30 a tensor; bounds time and memory
DTYPES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}
STORAGES = {f"torch.{torch_name}Storage": name for name, torch_name in DTYPES.items()}
ADVICE = "save model.state_dict() instead and give architecture: file.py:function"
DAMAGED = "its pickle is damaged or not one that torch.save wrote: save it again"
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, struct.error)
LAYERS = "torch.nn.modules."


@dataclass(frozen=True)
class Global:
    """The name of a class or function, which is never imported or called."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The place of a tensor's numbers: `n` of `dtype` in the member `data/<key>`."""

    dtype: str
    key: str
    n: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage, unchecked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True, eq=False)
class Parameter:
    """A trainable tensor, unchecked; frozen where `requires_grad` is False."""

    tensor: Any
    requires_grad: Any


@dataclass(eq=False)
class Module:
    """An instance of a class, such as one of torch.nn: its `__dict__`, unchecked."""

    kind: str
    state: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Foreign:
    """What only code outside torch could make; it is not made."""


def _ordered_dict() -> dict:
    return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, requires_grad: Any, *_: Any) -> Parameter:
    return Parameter(tensor, requires_grad)


def _unchanged(items: Any) -> Any:
    return items  # a copy would cost time linear in its size at every call


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _unchanged,
    "__builtin__.set": _unchanged,
    "builtins.set": _unchanged,
}


def _is_known(name: str) -> bool:
    """Whether a class or function is one that torch.save writes of its own."""
    return name in CALLS or name in STORAGES or name.startswith(LAYERS)


def _foreign_error(name: str) -> UnsafeFile:
    """Why a file is not read that needs a class or function of this name."""
    shortened = ascii(name[:80])[1:-1]
    if name.endswith("Storage") or "_rebuild" in name:
        dtypes = ", ".join(DTYPES)
        return UnsafeFile(
            f"it holds tensors of a kind that is not read ({shortened}); save "
            f"dense ones of {dtypes}, such as those of model.float()"
        )
    return UnsafeFile(
        f"it needs {shortened}, which is no layer of torch.nn, and code in a "
        f"file is never run: {ADVICE}"
    )


class PickleReader:
    """Reads opcodes onto a stack of plain values and inert records.

    foreign : why the file cannot be read whole: of the first class or function in it
        that is not torch's. A checkpoint may have some beside its tensors.
    """

    def __init__(self) -> None:
        self.foreign: UnsafeFile | None = None
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """Value of a pickle of protocol 2; `UnsafeFile` for any other opcode."""
        try:
            return self._read(data)
        except UnsafeFile as error:
            raise self.foreign or error from error

    def _read(self, data: bytes) -> Any:
        try:
            for n_read, (op, argument, place) in enumerate(pickletools.genops(data)):
                if n_read == MAX_OPERATIONS:
                    raise UnsafeFile(
                        f"its pickle has over {MAX_OPERATIONS} operations, "
                        f"far more than a model needs: {ADVICE}"
                    )
                if op.name != "STOP":
                    self._step(op.name, argument)
                elif place != len(data) - 1 or len(self.stack) != 1:
                    raise UnsafeFile(DAMAGED)
            return self.stack.pop()
        except DAMAGE as error:
            raise UnsafeFile(DAMAGED) from error

    def _step(self, name: str, argument: Any) -> None:
        if name in LITERALS:
            self.stack.append(LITERALS[name])
        elif name in ARGUMENTS:
            if type(argument) is int and abs(argument) >= 1 << 63:
                raise UnsafeFile(DAMAGED)
            self.stack.append(argument)
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        else:
            raise UnsafeFile(
                f"its pickle holds the operation {name}, which torch.save "
                "does not write by default: save it again with torch.save"
            )

    def _protocol(self, number: int) -> None:
        if number != 2:
            raise UnsafeFile(
                f"its pickle is of protocol {number}, needed is 2: save it "
                "again with torch.save and no pickle_protocol"
            )

    def _global(self, text: str) -> None:
        name = text.replace(" ", ".")
        if not _is_known(name) and self.foreign is None:
            self.foreign = _foreign_error(name)
        self.stack.append(Global(name))

    def _put(self, index: int) -> None:
        if index >= MAX_OPERATIONS:
            raise UnsafeFile(DAMAGED)
        self.memo[index] = self.stack[-1]

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _last(self, n_items: int) -> list[Any]:
        items = self.stack[-n_items:]
        del self.stack[-n_items:]
        return items

    def _append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        elif type(self.stack[-1]) is not Foreign:
            raise UnsafeFile(DAMAGED)

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is Foreign:
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(self.stack[-1]) is not dict or type(key) not in (str, int):
                raise UnsafeFile(DAMAGED)  # other keys may take forever to hash
            self.stack[-1][key] = value

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or type(function) not in (Global, Foreign):
            raise UnsafeFile(DAMAGED)
        call = CALLS.get(function.name) if type(function) is Global else None
        if call is None and type(function) is Global and _is_known(function.name):
            raise UnsafeFile(DAMAGED)  # torch calls no layer and no storage
        self.stack.append(call(*arguments) if call else Foreign())

    def _new(self) -> None:
        arguments, kind_name = self.stack.pop(), self.stack.pop()
        is_global = type(kind_name) is Global
        kind = kind_name.name.rpartition(".")[2] if is_global else ""
        is_layer = is_global and kind_name.name.startswith(LAYERS)
        if not is_layer and type(arguments) is tuple and arguments:
            self.stack.append(Foreign())
            return
        if arguments != () or not kind.isidentifier() or len(kind) > 64:
            raise UnsafeFile(DAMAGED)
        self.stack.append(Module(kind))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Module and target.state is None and type(state) is dict:
            target.state = state
        elif type(target) not in (dict, Foreign):  # a state_dict's _metadata goes
            raise UnsafeFile(DAMAGED)

    def _storage(self) -> None:
        tag, kind, key, _, n = self.stack.pop()
        if tag != "storage" or type(key) is not str or type(n) is not int:
            raise UnsafeFile(DAMAGED)
        self.stack.append(Storage(STORAGES[kind.name], key, n))


LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ARGUMENTS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
ACTIONS: dict[str, Callable[[PickleReader, Any], None]] = {
    "PROTO": PickleReader._protocol,
    "GLOBAL": PickleReader._global,
    "EMPTY_DICT": lambda reader, _: reader.stack.append({}),
    "EMPTY_LIST": lambda reader, _: reader.stack.append([]),
    "MARK": lambda reader, _: reader.marks.append(len(reader.stack)),
    "BINPUT": PickleReader._put,
    "LONG_BINPUT": PickleReader._put,
    "BINGET": lambda reader, index: reader.stack.append(reader.memo[index]),
    "LONG_BINGET": lambda reader, index: reader.stack.append(reader.memo[index]),
    "TUPLE": lambda reader, _: reader.stack.append(tuple(reader._since_mark())),
    "TUPLE1": lambda reader, _: reader.stack.append(tuple(reader._last(1))),
    "TUPLE2": lambda reader, _: reader.stack.append(tuple(reader._last(2))),
    "TUPLE3": lambda reader, _: reader.stack.append(tuple(reader._last(3))),
    "APPEND": lambda reader, _: reader._append(reader._last(1)),
    "APPENDS": lambda reader, _: reader._append(reader._since_mark()),
    "SETITEM": lambda reader, _: reader._set(reader._last(2)),
    "SETITEMS": lambda reader, _: reader._set(reader._since_mark()),
    "REDUCE": lambda reader, _: reader._call(),
    "NEWOBJ": lambda reader, _: reader._new(),
    "BUILD": lambda reader, _: reader._build(),
    "BINPERSID": lambda reader, _: reader._storage(),
}
