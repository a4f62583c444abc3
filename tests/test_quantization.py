"""Updates in 8 bits, against numbers by hand and what chance must give on average."""

import tracemalloc

import numpy as np
import pytest

import fedray
from fedray.aggregator.node_combiner import CombineStep, combine_on_node
from fedray.aggregator.validation import UpdateValidator
from fedray.config import FederationConfig
from fedray.fusion import from_config
from fedray.messages import Update
from fedray.weights import Form, encoding, mismatch, n_bytes, non_finite, schema
from fedray.weights.quantization import ROW, dequantize, quantize

SENDER = encoding.Sender(7, 3, "b")
SIZES = [0, 1, 255, 256, 257, 1000, (1 << 17) - 1, (1 << 17) + 300]


def sent(steps: np.ndarray, key: tuple[int, ...] = (1,)) -> np.ndarray:
    """What is decoded of some differences."""
    (packed,) = quantize([steps], [np.zeros_like(steps)], key)
    return dequantize(packed, steps.size)


def test_bytes_by_hand():
    steps = np.array([127, -127, 1, 0, -64], "f4")  # scale 1: all are integers
    (packed,) = quantize([steps], [np.zeros(5, "f4")], (0,))
    assert packed.dtype == np.int8
    assert packed[:4].tobytes() == np.float32(1).tobytes()
    assert packed[4:].tolist() == [127, -127, 1, 0, -64]
    assert dequantize(packed, 5).tolist() == steps.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_each_number_is_off_by_less_than_its_blocks_scale(size):
    steps = np.random.default_rng(size).normal(size=size).astype("f4")
    steps *= 10.0 ** np.repeat(np.arange(-(-size // ROW)) % 9 - 4, ROW)[:size]
    scales = [np.abs(row).max() / 127 for row in np.split(steps, range(ROW, size, ROW))
              if row.size]  # fmt: skip
    most = np.repeat(scales, ROW)[:size] if size else np.zeros(0)
    assert (np.abs(sent(steps) - steps) <= most * 1.0001).all()


def test_what_is_decoded_is_right_on_average():
    steps = np.random.default_rng(0).normal(size=3 * ROW).astype("f4")
    scale = np.abs(steps.reshape(3, ROW)).max(axis=1).repeat(ROW) / 127
    n = 4000
    mean = np.mean([sent(steps, (5, i)) for i in range(n)], axis=0)
    off = (mean - steps) / (scale / np.sqrt(n))  # a number's chance varies by 1/2
    assert np.abs(off).max() < 2.5  # 5 deviations
    assert abs(off.mean()) < 0.1


def test_chance_comes_from_the_sender_alone():
    steps = np.random.default_rng(0).normal(size=5000).astype("f4")
    others = [(8, 3, "b"), (7, 4, "b"), (7, 3, "a"), (7, 3, "b", True)]
    base = {"w": np.zeros(5000, "f4")}
    packed = [
        encoding.pack({"w": steps}, "int8", base, encoding.Sender(*one))["w"].tobytes()
        for one in [(7, 3, "b"), (7, 3, "b"), *others]
    ]
    assert packed[0] == packed[1]
    assert len(set(packed)) == 1 + len(others)


def test_a_tensor_has_the_same_bytes_whatever_size_of_blocks_others_have():
    rng = np.random.default_rng(0)
    ours = [rng.normal(size=n).astype("f4") for n in SIZES]
    packed = quantize(ours, [np.zeros_like(one) for one in ours], (1,))
    for one, its in zip(ours, packed, strict=True):
        scale = np.abs(one).max(initial=0) / 127
        assert np.abs(dequantize(its, one.size) - one).max(initial=0) <= 1.0001 * scale


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_after_it_either(value):
    steps = np.ones(3 * ROW, "f4")
    steps[ROW + 5] = value
    decoded = sent(steps)
    assert not np.isfinite(decoded[ROW + 5])
    assert np.allclose(decoded[:ROW], 1, atol=1 / 127)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, -1e-40])
def test_numbers_too_small_for_a_scale_become_zero(value):
    assert not sent(np.full(300, value, "f4")).any()


def test_an_update_by_name_shape_and_dtype():
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(30, 40)), "b": rng.normal(size=7).astype("f4"),
            "n": np.arange(3), "h": np.ones(4, "f2"), "s": np.float32(2.0)[None][0:1]
            .reshape(())}  # fmt: skip
    own = {name: array + np.asarray(0.01, array.dtype) if array.dtype.kind == "f"
           else array for name, array in base.items()}  # fmt: skip
    own = {name: np.asarray(array) for name, array in own.items()} | {
        "/extra": base["b"]
    }
    packed = encoding.pack(own, "int8", base, SENDER)
    form = encoding.update_form(schema(base), "int8")
    assert mismatch({n: packed[n] for n in base}, form) is None
    assert form["w"] == Form((1200 + 4 * 5,), "int8")
    assert (form["n"].dtype, form["h"].dtype) == ("int64", "float16")
    back = encoding.unpack(packed, schema(base), "int8", base)
    assert list(back) == list(own)
    for name, array in own.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        np.testing.assert_allclose(back[name], array, atol=1e-4)
    assert packed["/extra"] is own["/extra"]


def test_weights_themselves_travel_as_bfloat16():
    weights = {"w": np.random.default_rng(0).normal(size=(20, 30)).astype("f4")}
    packed = encoding.pack(weights, "int8")
    as_bfloat16 = encoding.pack(weights, "bfloat16")
    np.testing.assert_array_equal(packed["w"], as_bfloat16["w"])
    needed = schema(weights)
    assert encoding.form(needed, "int8") == encoding.form(needed, "bfloat16")
    received = encoding.unpack(packed, needed, "int8")["w"]
    np.testing.assert_array_equal(
        received, encoding.unpack(as_bfloat16, needed, "bfloat16")["w"]
    )


def test_an_update_of_a_large_model_is_a_quarter():
    base = {"w": np.zeros((1000, 1000), "f4"), "b": np.zeros(1000, "f4")}
    packed = encoding.pack(base, "int8", base, SENDER)
    assert n_bytes(packed) <= 0.26 * n_bytes(base)
    down = n_bytes(encoding.pack(base, "int8"))
    assert down + n_bytes(packed) <= 0.40 * 2 * n_bytes(base)


def test_encoding_takes_little_memory_beside_what_it_makes():
    base = {"w": np.zeros(4_000_000, "f4")}
    encoding.pack(base, "int8", base, SENDER)  # scratch memory is kept
    tracemalloc.start()
    packed = encoding.pack(base, "int8", base, SENDER)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n_bytes(packed) + (4 << 20)


def test_a_nodes_update_is_encoded_once_more():
    rule = from_config(FederationConfig(num_parties=2), frozenset({"w"}))
    base = {"w": np.linspace(0, 1, 600, dtype="f4")}
    validator = UpdateValidator(schema(base), "int8")
    payload = encoding.pack(base, "int8")
    received = encoding.unpack(payload, schema(base), "int8")
    own = [{"w": received["w"] + np.float32(step)} for step in (0.5, 1.5)]
    updates = [
        Update(
            encoding.pack(one, "int8", received, encoding.Sender(0, 1, str(i))), 10, 5
        )
        for i, one in enumerate(own)
    ]
    step = CombineStep(rule, validator, [None, None], True, SENDER)
    combined, refused = combine_on_node._function(step, payload, None, None, *updates)
    assert not refused
    assert (combined.n_samples, combined.n_parties) == (20, 10)
    assert encoding.update_form(schema(base), "int8") == schema(combined.weights)
    decoded = validator.validate(combined, received, None)
    np.testing.assert_allclose(decoded.weights["w"] - received["w"], 1.0, atol=0.02)


def test_a_hostile_scale_is_refused_by_name():
    base = {"w": np.zeros(300, "f4")}
    packed = encoding.pack({"w": np.ones(300, "f4")}, "int8", base, SENDER)
    for scale in (np.nan, np.inf, 1e38):
        evil = packed["w"].copy()
        evil[:4] = np.float32([scale]).view(np.int8)
        weights = encoding.unpack({"w": evil}, schema(base), "int8", base)
        assert non_finite(weights) == "w"


LINEAR = """
from torch import nn

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


@pytest.mark.usefixtures("cluster")
def test_a_run_is_resumed_to_the_same_bits_and_learns_as_well(tmp_path):
    (tmp_path / "linear.py").write_text(LINEAR)
    settings = {
        "architecture": f"{tmp_path}/linear.py:linear",
        "data_handler": "mnist_pytorch",
        "partition": {"scheme": "iid", "samples_per_party": 100},
        "num_parties": 4,
        "rounds": 3,
        "learning_rate": 0.1,
    }
    narrow = settings | {"wire_dtype": "int8"}
    whole = fedray.run(narrow, run_dir=tmp_path / "whole")
    fedray.run(narrow, run_dir=tmp_path / "cut", rounds=2)
    again = fedray.run(narrow, run_dir=tmp_path / "cut", resume=True)
    for name, array in whole.weights().items():
        np.testing.assert_array_equal(array, again.weights()[name])
    wide = fedray.run(settings, run_dir=tmp_path / "wide")
    assert abs(whole.accuracy - wide.accuracy) < 0.1
    narrow_bytes, wide_bytes = (run.history[-1].bytes_moved for run in (whole, wide))
    assert narrow_bytes <= 0.40 * wide_bytes
