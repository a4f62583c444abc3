"""Files of PyTorch: read to the bit, rebuilt, and refused when they are hostile."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

from fedray.errors import ModelFileError
from fedray.models.pytorch import build
from fedray.models.pytorch.model_files import read_file, write
from fedray.models.pytorch.safe_load import read
from fedray.weights import Form, schema


def tutorial_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Dropout2d(p=0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout2d(p=0.5),
        nn.Linear(128, 10),
        nn.LogSoftmax(dim=1),
    )


def saved(thing, folder, name="model.pt"):
    torch.save(thing, folder / name)
    return folder / name


def rebuilt(found):
    """A module again, from what travels: the layer pickled, the arrays copied in."""
    layer = pickle.loads(pickle.dumps(found.layer))
    module = build.build_layers(layer, schema(found.weights))
    module.load_state_dict({n: torch.from_numpy(a) for n, a in found.weights.items()})
    return module


def same_bits(weights, state_dict):
    assert list(weights) == list(state_dict)
    for name, tensor in state_dict.items():
        array = tensor.detach().numpy()
        assert weights[name].dtype == array.dtype
        assert weights[name].shape == array.shape
        assert weights[name].tobytes() == array.tobytes()
        assert weights[name].flags.c_contiguous
        assert weights[name].flags.owndata


def refused(path, about=None):
    """The reason that a file is refused for, within three seconds of work."""
    started = time.process_time()
    with pytest.raises(ModelFileError, match=about) as caught:
        read(path)
    assert time.process_time() - started < 3
    assert str(path) in str(caught.value)
    return caught.value.reason


# What people save


@pytest.mark.filterwarnings("ignore:dropout2d")
def test_the_tutorial_cnn_is_read_bit_for_bit_and_computes_the_same(tmp_path):
    model = tutorial_cnn().eval()
    found = read(saved(model, tmp_path))
    same_bits(found.weights, model.state_dict())
    again = rebuilt(found).eval()
    assert repr(again) == repr(model)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(again(x), model(x))


NETS = {
    "batch norm": (
        nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=None)),
        torch.rand(2, 2, 5, 5),
    ),
    "layer norm": (
        nn.Sequential(nn.LayerNorm((3, 4), bias=False), nn.Flatten(), nn.Linear(12, 2)),
        torch.rand(2, 3, 4),
    ),
    "embedding": (
        nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.GELU(approximate="tanh")),
        torch.tensor([[0, 6, 2]]),
    ),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2)
        ),
        torch.rand(1, 2, 4, 4),
    ),
    "float64": (nn.Sequential(nn.Linear(3, 2), nn.PReLU(2)).double(), torch.rand(1, 3)),
    "float16": (
        nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4)).half(),
        torch.rand(1, 3),
    ),
    "nested": (
        nn.Sequential(
            OrderedDict(
                body=nn.Sequential(nn.Unflatten(1, torch.Size([1, 6])), nn.Softmax()),
                pool=nn.AdaptiveAvgPool1d(2),
                head=nn.Conv1d(1, 2, 3, padding="same", padding_mode="circular"),
            )
        ),
        torch.rand(2, 6),
    ),
    "one layer": (nn.Linear(3, 2), torch.rand(1, 3)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_other_modules_are_rebuilt_and_compute_the_same(name, tmp_path):
    model, x = NETS[name]
    x = x.to(next(model.parameters()).dtype) if x.is_floating_point() else x
    model.eval()
    found = read(saved(model, tmp_path))
    same_bits(found.weights, model.state_dict())
    again = rebuilt(found).eval()
    assert str(again) == str(model).replace("torch.Size([1, 6])", "(1, 6)")
    assert torch.equal(again(x), model(x))


EXAMPLES = {  # constructor arguments by the parameters that have no default
    "num_features": 4, "num_groups": 2, "num_channels": 4, "num_embeddings": 5,
    "embedding_dim": 3, "in_features": 3, "out_features": 2, "in1_features": 3,
    "in2_features": 4, "in_channels": 4, "out_channels": 2, "kernel_size": 3,
    "normalized_shape": (2, 3), "size": 3, "norm_type": 2.0, "output_size": 4,
    "dim": 1, "unflattened_size": (2, 2), "padding": 1, "value": 0.5,
    "threshold": 0.25, "upscale_factor": 2, "downscale_factor": 2, "groups": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(build.KNOWN_LAYERS))
def test_every_known_layer_is_rebuilt_with_its_attributes(kind, tmp_path):
    made = getattr(nn, kind)
    wanted = build.inspect.signature(made).parameters.values()
    required = [p.name for p in wanted if p.default is p.empty and p.kind < 2]
    given = {name: EXAMPLES[name] for name in required}
    model = nn.Sequential(made(**given), nn.Linear(1, 1))
    again = rebuilt(read(saved(model, tmp_path)))
    assert repr(again) == repr(model)
    public = [n for n in vars(model[0]) if not n.startswith("_")]
    assert [getattr(again[0], n) for n in public] == [
        getattr(model[0], n) for n in public
    ]


def test_a_state_dict_is_read_bit_for_bit_without_layers(tmp_path):
    model = NETS["batch norm"][0]
    found = read(saved(model.state_dict(), tmp_path))
    same_bits(found.weights, model.state_dict())
    assert found.layer is None
    assert not found.frozen


def test_all_dtypes_and_views_are_read_as_contiguous_arrays(tmp_path):
    numbers = torch.arange(24).reshape(2, 3, 4)
    kinds = [torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8]
    kinds += [torch.int8, torch.int16, torch.int32, torch.int64]
    tensors = {str(kind)[6:]: numbers.to(kind) for kind in kinds}
    tensors |= {
        "turned": numbers.transpose(0, 2),
        "part": numbers[:, 1::2, 1:3],
        "one": numbers[1, 2, 3],
    }
    tensors["none"] = torch.zeros(0, 3)
    found = read(saved(tensors, tmp_path))
    assert list(found.weights) == list(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found.weights[name], tensor.numpy())
        assert str(found.weights[name].dtype) == str(tensor.dtype)[6:]
        assert found.weights[name].flags.c_contiguous


def test_frozen_parameters_are_named(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(False)
    assert read(saved(model, tmp_path)).frozen == {"0.weight"}


def test_tied_parameters_and_reused_modules_stay_shared(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    twice = nn.Linear(3, 3)
    model = nn.Sequential(tied, twice, twice)
    found = read(saved(model, tmp_path))
    same_bits(found.weights, model.state_dict())
    again = rebuilt(found)
    assert again[0][0].weight is again[0][2].weight
    assert again[0][0].bias is not again[0][2].bias
    assert again[1] is again[2]
    assert len(list(again.parameters())) == len(list(model.parameters()))


def test_buffers_outside_the_state_dict_are_ignored(tmp_path):
    model = nn.LayerNorm(3)
    model.register_buffer("passing", torch.ones(2), persistent=False)
    assert list(read(saved(model, tmp_path)).weights) == ["weight", "bias"]


def test_safetensors_are_read_bit_for_bit(tmp_path):
    arrays = {n: t.numpy() for n, t in NETS["batch norm"][0].state_dict().items()}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"by": "a test"})
    found = read(tmp_path / "m.safetensors")
    assert found.weights.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found.weights[name].tobytes() == array.tobytes()
        assert schema(found.weights)[name] == schema(arrays)[name]
        assert found.weights[name].flags.owndata


@pytest.mark.parametrize("layers", [True, False])
def test_the_same_weights_are_the_same_file_wherever_they_are_written(layers, tmp_path):
    module = tutorial_cnn()
    source = module if layers else module.state_dict()
    blueprint, weights = read_file(saved(source, tmp_path))
    for name in ("first.pt", "second.pt"):
        write(blueprint, weights, tmp_path / name)
    first, second = (tmp_path / "first.pt", tmp_path / "second.pt")
    assert first.read_bytes() == second.read_bytes()
    same_bits(read(first).weights, module.state_dict())


def test_reading_a_file_does_not_need_torch():
    rooms = ["pickle_reader", "safe_load"]
    code = (
        "import sys, types, fedray.models\n"
        "room = types.ModuleType('fedray.models.pytorch')\n"
        "room.__path__ = [fedray.models.__path__[0] + '/pytorch']\n"
        "sys.modules['fedray.models.pytorch'] = room\n"
        f"for name in {rooms}: __import__('fedray.models.pytorch.' + name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# What people save by mistake: the reason says what to do


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


def qint8():
    with pytest.warns(UserWarning, match="deprecated"):
        return torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)


MISTAKES = {
    "own class": (lambda: MyNet(), r"MyNet.*state_dict\(\).*architecture: file.py:fu"),
    "own layer": (lambda: nn.Sequential(MyNet()), r"MyNet.*architecture"),
    "epoch": (lambda: {"w": torch.zeros(1), "epoch": 3}, "'epoch' is of type int"),
    "optimizer": (
        lambda: {"opt": {"state": {0: {"step": torch.ones(1)}}, "groups": [{}]}},
        "checkpoint",
    ),
    "two models in a dict": (
        lambda: {"actor": nn.Linear(1, 1), "critic": nn.Linear(1, 1)},
        "'actor' is a model",
    ),
    "tensor": (lambda: torch.zeros(2), r"of type Tensor.*state_dict\(\)"),
    "array": (lambda: {"w": np.zeros(2)}, "numpy"),
    "objects": (lambda: {"w": np.array([object()])}, "never run"),
    "complex": (lambda: {"w": torch.zeros(2, dtype=torch.complex64)}, "Complex"),
    "uint16": (lambda: {"w": torch.zeros(2, dtype=torch.uint16)}, "_rebuild_tensor_v3"),
    "quantized": (lambda: {"w": qint8()}, "qtensor"),
    "sparse": (lambda: {"w": torch.eye(2).to_sparse()}, "sparse"),
    "meta": (lambda: {"w": torch.zeros(2, device="meta")}, "meta_tensor"),
    "lazy": (lambda: nn.LazyLinear(3), "UninitializedParameter"),
    "hook": (lambda: hooked(), "never run"),
    "nothing": (lambda: nn.Sequential(nn.ReLU()), "no tensors"),
    "empty dict": (lambda: {}, "no tensors"),
    "nan": (lambda: {"ok": torch.ones(2), "w": torch.tensor([1, np.nan])}, "'w'.*NaN"),
    "infinity": (lambda: {"w": torch.tensor([1, -np.inf]).half()}, "'w'"),
    "expanded": (lambda: {"w": torch.zeros(1).expand(5)}, "contiguous"),
    "9 dimensions": (lambda: {"w": torch.zeros([1] * 9)}, "9 dimensions"),
}


def hooked():
    model = nn.Linear(1, 1)
    model._forward_hooks[0] = nn.ReLU()
    return model


@pytest.mark.parametrize("name", MISTAKES)
def test_unusable_files_are_refused_with_a_reason(name, tmp_path):
    make, about = MISTAKES[name]
    refused(saved(make(), tmp_path), about)


def test_files_of_other_formats_are_refused_with_a_reason(tmp_path):
    model = nn.Linear(2, 2)
    path = tmp_path / "m.pt"
    torch.save(model, path, _use_new_zipfile_serialization=False)
    refused(path, r"before torch 1.6: convert it once with torch.save\(torch.load")
    torch.save(model, path, pickle_protocol=4)
    refused(path, "protocol 4")
    np.savez(path.with_suffix(".npz"), w=np.zeros(2))
    refused(path.with_suffix(".npz"), "save the model with torch.save")
    path.write_text("hello " * 100)
    refused(path, "save the model with torch.save")
    path.write_bytes(pickle.dumps({"w": 1}))
    refused(path, "bare pickle")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "TorchScript")


def test_missing_directory_and_device_are_refused(tmp_path):
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path / "nul\0.pt", "no such file")
    refused(tmp_path, "directory")
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "device")


def test_an_unknown_layer_is_named_and_its_tensors_are_read(tmp_path):
    model = nn.LSTM(2, 3, num_layers=2)
    found = read(saved(model, tmp_path))
    same_bits(found.weights, model.state_dict())
    with pytest.raises(
        ModelFileError, match=r"m.pt: its layer LSTM is none.*give architecture"
    ):
        build.build_layers(found.layer, schema(found.weights), "m.pt")


# What strangers send


class Storage:
    """What stands for a storage in a forged pickle."""

    def __init__(self, n, key="0", kind=torch.FloatStorage):
        self.what = ("storage", kind, key, "cpu", n)


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def forged_tensor(n, shape, strides, offset=0, **kind):
    arguments = (Storage(n, **kind), offset, shape, strides, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


def pickled(thing, protocol=2):
    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return thing.what if isinstance(thing, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(thing)
    return buffer.getvalue()


def forged(folder, thing, compression=zipfile.ZIP_STORED, **members):
    """A torch.save file with any pickle, a storage of four floats and more members."""
    data = thing if isinstance(thing, bytes) else pickled(thing)
    with zipfile.ZipFile(folder / "forged.pt", "w", compression) as zipped:
        zipped.writestr("m/data.pkl", data)
        zipped.writestr("m/data/0", np.arange(4, dtype="<f4").tobytes())
        for name, text in members.items():
            zipped.writestr(f"m/{name}", text)
    return folder / "forged.pt"


def test_the_forging_helper_can_write_a_valid_file(tmp_path):
    found = read(forged(tmp_path, {"w": forged_tensor(4, (2, 2), (2, 1))}))
    assert found.weights["w"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickled_system_calls_are_never_made(protocol, tmp_path):
    canary = tmp_path / "canary"
    for call in (
        Call(os.system, f"touch {canary}"),
        Call(eval, f"open({str(canary)!r}, 'w')"),
        Call(exec, f"open({str(canary)!r}, 'w')"),
        Call(getattr, nn.Linear, "forward"),
        Call(bytearray, 1 << 40),
    ):
        for thing in (call, {"w": call}, {"w": torch.Size([1]), "hooks": [call]}):
            data = pickled(thing, protocol)
            refused(forged(tmp_path, data))
            (tmp_path / "raw.pt").write_bytes(data)
            refused(tmp_path / "raw.pt")
    assert not canary.exists()


def test_reading_a_file_calls_no_constructor(tmp_path):
    refused(forged(tmp_path, {"w": Call(nn.Linear, 10**9, 10**9)}), "damaged")
    refused(forged(tmp_path, {"w": Call(nn.Linear(1, 1), 10**9)}))


def claimed(model, **attributes):
    vars(model).update(attributes)
    return model


BOMBS = {
    "linear": lambda: claimed(nn.Linear(2, 2), in_features=10**9, out_features=10**9),
    "overflow": lambda: claimed(nn.Linear(2, 2), in_features=2**62),
    "negative": lambda: claimed(nn.Linear(2, 2), in_features=-1),
    "words": lambda: claimed(nn.Linear(2, 2), in_features="2"),
    "conv": lambda: claimed(nn.Conv2d(1, 1, 3), kernel_size=(10**5, 10**5)),
    "groups": lambda: claimed(nn.Conv2d(2, 2, 3), groups=0),
    "embedding": lambda: claimed(nn.Embedding(2, 2), num_embeddings=10**12),
    "prelu": lambda: claimed(nn.PReLU(), num_parameters=10**12),
    "transposed": lambda: claimed(nn.Linear(2, 3), in_features=3, out_features=2),
    "norm": lambda: claimed(nn.LayerNorm(2), normalized_shape=(10**9,) * 4),
    "more tensors": lambda: claimed(nn.BatchNorm1d(2), track_running_stats=False),
    "integers": lambda: integers(),
    "children": lambda: claimed(nn.Linear(2, 2), _modules={"0": nn.Linear(2, 2)}),
    "odd child": lambda: claimed(
        nn.Sequential(), _modules={"forward": nn.Linear(2, 2)}
    ),
}


def integers():
    model = nn.Linear(2, 2)
    model._parameters["weight"] = nn.Parameter(torch.ones(2, 2).int(), False)
    return model


@pytest.mark.parametrize("name", BOMBS)
def test_a_layer_larger_than_its_tensors_takes_no_memory(name, tmp_path):
    found = read(saved(BOMBS[name](), tmp_path))
    started = time.process_time()
    with pytest.raises(ModelFileError):
        build.build_layers(found.layer, schema(found.weights))
    assert time.process_time() - started < 1


def test_a_model_of_other_weights_names_the_difference(tmp_path):
    layer = read(saved(nn.Linear(2, 3), tmp_path)).layer
    needed = {"weight": Form((3, 2), "float32"), "b": Form((3,), "float32")}
    with pytest.raises(ModelFileError, match=r"lack tensors \['bias'\].*\['b'\]"):
        build.build_layers(layer, needed)
    needed = {"weight": Form((2, 3), "float32"), "bias": Form((3,), "float32")}
    with pytest.raises(ModelFileError, match=r"'weight' is float32\[2, 3\].*\[3, 2\]"):
        build.build_layers(layer, needed)


LIES = {
    "huge shape": forged_tensor(4, (10**6, 10**6), (10**6, 1)),
    "beyond 64 bits": forged_tensor(4, (2**62,) * 8, (1,) * 8),
    "stride 0": forged_tensor(4, (10**10,), (0,)),
    "stride 0 twice": forged_tensor(4, (4, 10**10), (1, 0)),
    "overlapping": forged_tensor(4, (3, 2), (1, 1)),
    "past the end": forged_tensor(4, (4,), (1,), offset=1),
    "far strides": forged_tensor(4, (2, 2), (2**40, 1)),
    "offset": forged_tensor(4, (), (), offset=4),
    "negative offset": forged_tensor(4, (2,), (1,), offset=-2),
    "negative stride": forged_tensor(4, (2,), (-1,), offset=3),
    "negative size": forged_tensor(4, (-2, -2), (2, 1)),
    "strides missing": forged_tensor(4, (2, 2), (1,)),
    "float size": forged_tensor(4, (2.0,), (1,)),
    "bool size": forged_tensor(4, (True,), (1,)),
    "a string as shape": forged_tensor(4, "22", (2, 1)),
    "a long shape": forged_tensor(4, (1,) * 10_000, (1,) * 10_000),
    "9 dimensions": forged_tensor(4, (1,) * 9, (1,) * 9),
    "empty and huge": forged_tensor(4, (0, 2**62, 2**62), (1, 1, 1)),
    "storage too long": forged_tensor(5, (2,), (1,)),
    "storage negative": forged_tensor(-4, (2,), (1,)),
    "storage of doubles": forged_tensor(4, (2,), (1,), kind=torch.DoubleStorage),
    "storage missing": forged_tensor(4, (2,), (1,), key="1"),
    "storage elsewhere": forged_tensor(4, (2,), (1,), key="../data.pkl"),
    "storage is a number": Call(
        torch._utils._rebuild_tensor_v2, 7, 0, (1,), (1,), 0, 0
    ),
    "too few arguments": Call(torch._utils._rebuild_tensor_v2, Storage(4)),
    "parameter of nothing": Call(torch._utils._rebuild_parameter, None, True, {}),
}


@pytest.mark.parametrize("name", LIES)
def test_tensors_that_do_not_fit_their_storage_are_refused(name, tmp_path):
    tracemalloc.start()
    refused(forged(tmp_path, {"w": LIES[name]}))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_one_storage_under_a_thousand_names_is_refused(tmp_path):
    megabytes = np.ones(1 << 20, "<f4").tobytes()
    tensor = forged_tensor(1 << 20, (1 << 20,), (1,), key="1")
    thousand = {f"w{i}": tensor for i in range(1_000)}
    path = forged(tmp_path, thousand, **{"data/1": megabytes})
    refused(path, "share their numbers")


NAMES = [
    "", "a\0b", "a\nb", "\x1b[31m", "a\u202eb", "a\u2066b", "x" * 1_000_000,
    "../../etc/passwd", "/etc/passwd", "a\\b", "..", "\ud800", 7,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_unsafe_tensor_names_are_refused_and_not_printed(name, tmp_path):
    odd = {name: forged_tensor(4, (4,), (1,))}
    reason = refused(forged(tmp_path, odd), "printable characters")
    assert reason.isprintable()
    assert len(reason) < 300
    module = claimed(nn.Sequential(), _modules={name: nn.Linear(1, 1)})
    refused(saved(module, tmp_path))


MEMO = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."
DEEP = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
LAUGHS = b"\x80\x02()q\0" + b"h\0h\0\x86q\0" * 60  # at memo 0: 2^60 tuples if walked
MARKED = b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b"."
LONG = b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."
PICKLES = {
    "memo": MEMO,
    "deep": DEEP,
    "marked": MARKED,
    "long integer": LONG,
    "billion laughs": LAUGHS + b"t.",
    "billion laughs as a key": LAUGHS + b"}h\0Nst.",
    "billion laughs as an entry": b"\x80\x02}(X\1\0\0\0w" + LAUGHS[2:] + b"tu.",
    "a million values": b"\x80\x02(" + b"N" * 1_000_000 + b"t.",
    "no stop": b"\x80\x02}",
    "more after the stop": b"\x80\x02}.}",
    "two values": b"\x80\x02}}.",
    "underflow": b"\x80\x02u.",
    "nothing": b"",
    "unknown memo": b"\x80\x02h\x07.",
    "string longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "call of a string": b"\x80\x02X\x01\0\0\0a)R.",
    "instance of a string": b"\x80\x02X\x01\0\0\0a)\x81.",
    "extension registry": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_torch_would_not_write_are_refused(name, tmp_path):
    tracemalloc.start()
    refused(forged(tmp_path, PICKLES[name]))
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def laughing(depth, leaf):
    for _ in range(depth):
        leaf = [leaf] * 8
    return leaf


def test_exponentially_nested_attributes_are_ignored(tmp_path):
    model = claimed(nn.Linear(2, 2), laugh=laughing(50, 1), deep=laughing(100, 1))
    found = read(saved(model, tmp_path))
    assert set(found.layer.args) == {"in_features", "out_features", "weight", "bias"}
    many = [claimed(nn.Linear(1, 1), **{f"a{i}": laughing(2, 1)}) for i in range(900)]
    for model in many:
        vars(model).update({f"b{i}": vars(many[0])["a0"] for i in range(10)})
    refused(saved(nn.Sequential(*many), tmp_path), "attributes")


def test_ten_thousand_layers_are_refused(tmp_path):
    refused(saved(nn.Sequential(*[nn.ReLU() for _ in range(10_000)]), tmp_path))
    refused(
        saved(nn.Sequential(*[nn.ReLU() for _ in range(2_001)]), tmp_path), "2000 la"
    )


def test_deeply_nested_layers_are_refused(tmp_path):
    deep = nn.Linear(1, 1)
    for _ in range(60):
        deep = nn.Sequential(deep)
    refused(saved(deep, tmp_path), "50 one inside")
    assert read(saved(deep[0][0][0][0][0][0][0][0][0][0][0], tmp_path)).weights


def test_a_layer_shared_exponentially_often_is_refused(tmp_path):
    shared = nn.Linear(1, 1)
    for _ in range(40):
        shared = nn.Sequential(shared, shared)
    refused(saved(shared, tmp_path), "2000 layers")
    circle = nn.Sequential(nn.Linear(1, 1))
    circle._modules["a"] = circle
    refused(saved(circle, tmp_path), "50 one inside")


def test_modules_with_parts_of_wrong_types_are_refused(tmp_path):
    for part in ("_parameters", "_buffers", "_modules"):
        for value in (None, 7, [], {"x": 7}, {7: None}, {"a.b": None}):
            path = saved(claimed(nn.Linear(1, 1), **{part: value}), tmp_path)
            refused(path)
    found = claimed(nn.LayerNorm(1), _non_persistent_buffers_set=7)
    found._buffers["x"] = torch.zeros(1)
    refused(saved(found, tmp_path))


# What happens to files on their way


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    path = saved(model, tmp_path_factory.mktemp("small"))
    return path, path.read_bytes(), read(path).weights


def test_truncated_files_are_refused(small, tmp_path):
    _, whole, _ = small
    path = tmp_path / "cut.pt"
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path, "empty" if n == 0 else "again|cut short")


def test_random_bytes_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for start in (b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02"):
        for n in (10, 1_000, 1_000_000):
            (tmp_path / "r.pt").write_bytes(start + rng.bytes(n))
            refused(tmp_path / "r.pt")
            (tmp_path / "r.safetensors").write_bytes(start + rng.bytes(n))
            refused(tmp_path / "r.safetensors")


def test_a_flipped_bit_in_a_tensor_is_detected(small, tmp_path):
    _, whole, weights = small
    place = whole.index(weights["0.weight"].tobytes()) + 1_000
    flipped = bytearray(whole)
    flipped[place] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    refused(tmp_path / "flipped.pt", "damaged")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(min_size=1)), max_size=3))
def test_a_mutated_file_is_refused_or_read_unchanged(small, changes):
    path, whole, weights = small
    changed = bytearray(whole)
    for place, data in changes:
        place %= len(changed)
        changed[place : place + len(data)] = data
    path.with_name("changed.pt").write_bytes(changed)
    try:
        found = read(path.with_name("changed.pt"))
    except ModelFileError:
        return
    assert {n: a.tobytes() for n, a in found.weights.items()} == {
        n: a.tobytes() for n, a in weights.items()
    }


@pytest.mark.filterwarnings("ignore:invalid escape")  # of pickletools, in passing
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(min_size=1)), max_size=5))
def test_mutated_pickles_raise_only_model_file_errors(small, changes):
    path, _, _ = small
    with zipfile.ZipFile(path) as zipped:
        data = bytearray(zipped.read("model/data.pkl"))
    for place, text in changes:
        place %= len(data)
        data[place : place + len(text)] = text
    try:
        found = read(forged(path.parent, bytes(data)))
        build.build_layers(found.layer, schema(found.weights))
    except ModelFileError:
        pass


def test_zip_bombs_are_refused(tmp_path):
    good = {"w": forged_tensor(4, (4,), (1,))}
    zeros = bytes(50 << 20)
    tracemalloc.start()
    path = forged(tmp_path, good, zipfile.ZIP_DEFLATED, **{"data/1": zeros})
    tracemalloc.reset_peak()
    refused(path, "compressed")
    assert tracemalloc.get_traced_memory()[1] < 60 << 20
    tracemalloc.stop()
    refused(forged(tmp_path, b"\x80\x02" + b"N" * (17 << 20)), "bytes")


def test_zip_members_of_the_same_name_are_refused(tmp_path):
    path = forged(tmp_path, {"w": forged_tensor(4, (4,), (1,))})
    with zipfile.ZipFile(path, "a") as zipped, pytest.warns(UserWarning, match="Dup"):
        zipped.writestr("m/data/0", bytes(16))
    refused(path, "one name")


def test_overlapping_zip_members_are_refused(tmp_path):
    path = forged(tmp_path, {"w": forged_tensor(4, (4,), (1,))}, x=bytes(1_000))
    whole = bytearray(path.read_bytes())
    directory = whole.index(b"PK\x01\x02")
    entry = whole[whole.rindex(b"PK\x01\x02") : whole.rindex(b"PK\x05\x06")]
    copies = b"".join(entry[:-1] + bytes([65 + i]) for i in range(20))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 23, 23, 0, directory, 0)
    body = whole[: whole.rindex(b"PK\x05\x06")] + copies
    end = end[:12] + struct.pack("<I", len(body) - directory) + end[16:]
    path.write_bytes(body + end)
    with zipfile.ZipFile(path) as zipped:
        assert len(zipped.infolist()) == 23
    refused(path, "damaged")


def test_an_oversized_zip_directory_is_refused_before_it_is_read(tmp_path):
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *[0] * 16)
    directory = entry * 250_000
    end = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, 65_535, 65_535, len(directory), 30, 0
    )
    (tmp_path / "d.pt").write_bytes(b"PK\x03\x04" + bytes(26) + directory + end)
    tracemalloc.start()
    refused(tmp_path / "d.pt", "directory")
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


def test_big_endian_files_are_refused(tmp_path):
    good = {"w": forged_tensor(4, (4,), (1,))}
    refused(forged(tmp_path, good, byteorder="big"), "big-endian")
    assert read(forged(tmp_path, good, byteorder="little")).weights


# .safetensors


def forged_safetensors(folder, header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "forged.safetensors"
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFE_LIES = {
    "float8": {"w": entry("F8_E4M3", (16,))},
    "complex": {"w": entry("C64", (2,))},
    "9 dimensions": {"w": entry(shape=[1] * 8 + [4])},
    "huge": {"w": entry(shape=[10**9, 10**9])},
    "beyond 64 bits": {"w": entry(shape=[2**62] * 8)},
    "negative": {"w": entry(shape=[-4])},
    "offsets": {"w": entry(offsets=(0, 10**12))},
    "bidi name": {"a\u202eb": entry()},
    "path name": {"../w": entry()},
    "long name": {"w" * 300: entry()},
    "no tensors": {},
    "no shape": {"w": {"dtype": "F32"}},
    "a number": {"w": 7},
    "a list": [1],
    "many": {f"w{i}": entry() for i in range(10_001)},
    "twice": b'{"w":%b,"w":%b}' % ((json.dumps(entry()).encode(),) * 2),
    "deep": b"[" * 1_000_000,
    "not json": b"hello",
}


@pytest.mark.parametrize("name", SAFE_LIES)
def test_inconsistent_safetensors_headers_are_refused(name, tmp_path):
    refused(forged_safetensors(tmp_path, SAFE_LIES[name]))


def test_truncated_or_non_finite_safetensors_are_refused(tmp_path):
    path = forged_safetensors(tmp_path, {"w": entry()})
    whole = path.read_bytes()
    assert read(path).weights["w"].tolist() == [0, 0, 0, 0]
    for n in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path)
    for length in (2**63, 2**64 - 1, 10**9):
        refused(forged_safetensors(tmp_path, {"w": entry()}, length=length), "header")
    nan = np.array([0, 1, np.nan, 2], "<f4").tobytes()
    refused(forged_safetensors(tmp_path, {"w": entry()}, nan), "'w' holds NaN")
