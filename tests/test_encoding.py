"""What travels in 16 bits, against numbers made by hand and torch's conversion."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedray.weights import Form, blocks, encoding, mismatch, non_finite, schema

BOTH = ["float16", "bfloat16"]


def sent(values, dtype: str) -> np.ndarray:
    """Bits of float32 values as they travel."""
    weights = {"w": np.array(values, "f4")}
    return encoding.pack(weights, dtype)["w"].view(np.uint16)


def received(bits, dtype: str) -> np.ndarray:
    bits = np.array(bits, "u2").view(encoding.NARROW[dtype])
    needed = {"w": Form(bits.shape, "float32")}
    return encoding.unpack({"w": bits}, needed, dtype)["w"]


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1 + 2**-8, 0x3F80),  # in the middle: to the even one below
        (1 + 3 * 2**-8, 0x3F82),  # in the middle: to the even one above
        (1 + 2**-8 + 2**-23, 0x3F81),
        (2 - 2**-23, 0x4000),  # the carry goes into the exponent
        (3.4e38, 0x7F80),
        (-3.4e38, 0xFF80),
        (np.inf, 0x7F80),
        (2**-133, 0x0001),  # the smallest there is
        (2**-134, 0x0000),  # half of it: to the even one
        (3 * 2**-134, 0x0002),
    ],
)
def test_bfloat16_by_hand(value, bits):
    assert sent([value], "bfloat16")[0] == bits


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3C00),
        (-2.0, 0xC000),
        (-0.0, 0x8000),
        (1 + 2**-11, 0x3C00),
        (1 + 3 * 2**-11, 0x3C02),
        (65504.0, 0x7BFF),
        (65519.0, 0x7BFF),
        (65520.0, 0x7C00),
        (-1e30, 0xFC00),
        (2**-14, 0x0400),
        (2**-14 - 2**-25, 0x0400),  # a subnormal rounded up to the first normal
        (2**-24, 0x0001),
        (2**-25, 0x0000),
        (3 * 2**-25, 0x0002),
        (-(2**-24), 0x8001),
        (1e-40, 0x0000),
    ],
)
def test_float16_by_hand(value, bits):
    assert sent([value], "float16")[0] == bits
    assert sent([value, np.nan], "float16")[0] == bits  # in numpy's own conversion


@pytest.mark.parametrize("dtype", BOTH)
def test_nan_stays_nan_whatever_its_bits(dtype):
    nans = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], "u4")
    bits = sent(nans.view("f4"), dtype)
    assert np.isnan(received(bits, dtype)).all()
    assert non_finite({"w": received(bits, dtype)}) == "w"


@pytest.mark.parametrize("dtype", BOTH)
def test_every_16_bit_number_comes_back_as_torch_reads_it(dtype):
    bits = np.arange(65536, dtype="u2")
    tensor = torch.from_numpy(bits.view("i2").copy()).view(getattr(torch, dtype))
    exact = tensor.float().numpy()
    finite = np.isfinite(exact)
    for chosen in (bits, bits[finite]):  # one block with infinities, one without
        there = received(chosen, dtype)
        needed = exact if chosen is bits else exact[finite]
        np.testing.assert_array_equal(there, needed)
        np.testing.assert_array_equal(np.signbit(there[there == 0]), [0, 1])
    np.testing.assert_array_equal(sent(exact[finite], dtype), bits[finite])


@pytest.mark.parametrize("dtype", BOTH)
@given(values=arrays.arrays("u4", st.integers(1, 50)))
def test_any_float_is_rounded_as_torch_rounds(dtype, values):
    values = values.view("f4")
    exact = torch.from_numpy(values.copy()).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(received(sent(values, dtype), dtype), exact)


@pytest.mark.parametrize("dtype", BOTH)
@given(
    values=arrays.arrays(
        "f4", st.integers(1, 50), elements=st.floats(-65000, 65000, width=32)
    )
)
def test_ordinary_floats_are_rounded_as_torch_rounds(dtype, values):
    exact = torch.from_numpy(values.copy()).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(received(sent(values, dtype), dtype), exact)


MIXED = {
    "w": np.linspace(-3, 3, 6, dtype="f4").reshape(2, 3),
    "double": np.linspace(0, 1, 5),
    "scalar": np.array(0.5, "f4"),
    "half": np.ones(3, "f2"),
    "n": np.array(7, "i8"),
    "flag": np.array([True]),
    "none": np.zeros((0, 2), "f4"),
}


@pytest.mark.parametrize("dtype", BOTH)
def test_what_travels_has_the_announced_form(dtype):
    packed = encoding.pack(MIXED, dtype)
    needed = encoding.form(schema(MIXED), dtype)
    assert mismatch(packed, needed) is None
    assert list(packed) == list(MIXED)
    assert needed["w"] == Form((2, 3), "float16" if dtype == "float16" else "uint16")
    assert needed["half"] == Form((3,), "float16")
    assert all(packed[name] is MIXED[name] for name in ("half", "n", "flag"))
    back = encoding.unpack(packed, schema(MIXED), dtype)
    assert mismatch(back, schema(MIXED)) is None
    assert list(back) == list(MIXED)
    for name, array in MIXED.items():
        np.testing.assert_allclose(back[name], array, rtol=2**-8)


def test_float32_is_the_very_same():
    needed = schema(MIXED)
    assert encoding.form(needed, "float32") == needed
    assert encoding.pack(MIXED, "float32", MIXED) is MIXED
    assert encoding.unpack(MIXED, needed, "float32", MIXED) is MIXED


@pytest.mark.parametrize("dtype", BOTH)
def test_a_small_step_survives_that_rounding_would_lose(dtype):
    own = {"w": np.full(4, 1.001, "f4")}  # rounds to 1 in bfloat16
    base = encoding.unpack(encoding.pack(own, dtype), schema(own), dtype)
    trained = {"w": base["w"] + np.float32(2**-16)}
    step = encoding.pack(trained, dtype, base)
    assert (encoding.unpack(step, schema(own), dtype)["w"] == 2**-16).all()
    new = encoding.unpack(step, schema(own), dtype, own)
    assert (new["w"] == own["w"] + np.float32(2**-16)).all()


@pytest.mark.parametrize("dtype", BOTH)
def test_a_small_step_of_a_double_survives_too(dtype):
    base = {"w": np.array([1.0])}
    step = encoding.pack({"w": np.array([1 + 2.0**-24])}, dtype, base)
    assert encoding.unpack(step, schema(base), dtype, base)["w"][0] == 1 + 2.0**-24


@pytest.mark.parametrize("dtype", BOTH)
def test_a_mean_of_integers_and_half_floats_travels_by_value(dtype):
    base = {"n": np.array(3), "h": np.ones(2, "f2"), "w": np.ones(2, "f4")}
    mean = {"n": np.array(3.5), "h": np.full(2, 1.0001, "f4"), "w": np.ones(2, "f4")}
    packed = encoding.pack(mean, dtype, base)
    back = encoding.unpack(packed, schema(base), dtype, base)
    assert back["n"] == 3.5
    assert (back["h"] == np.float32(1.0001)).all()
    assert (back["w"] == 1).all()


def test_overflow_is_silent_and_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base = {"a": np.zeros(2, "f4"), "w": np.full(2, -3e38, "f4")}
        weights = {"a": np.zeros(2, "f4"), "w": np.full(2, 3e38, "f4")}
        for dtype in BOTH:
            step = encoding.pack(weights, dtype, base)
            back = encoding.unpack(step, schema(base), dtype, base)
            assert non_finite(back) == "w"


@pytest.mark.parametrize("dtype", BOTH)
def test_threads_and_blocks_change_nothing_and_write_into_nothing(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=n).astype("f4")
               for i, n in enumerate((3000, 1, 70_000))}  # fmt: skip
    base = {name: array * np.float32(0.9) for name, array in weights.items()}
    for array in (*weights.values(), *base.values()):
        array.flags.writeable = False
    found = []
    for n_threads, block in ((1, 1 << 18), (3, 1000)):
        monkeypatch.setattr(blocks, "_n_cores", lambda n=n_threads: n)
        monkeypatch.setattr(blocks, "BLOCK", block)
        monkeypatch.setattr(blocks, "_scratch", blocks._Scratch())
        blocks.cut.cache_clear()
        step = encoding.pack(weights, dtype, base)
        for array in step.values():
            array.flags.writeable = False
        found.append(step | encoding.unpack(step, schema(base), dtype, base))
    blocks.cut.cache_clear()
    for name in weights:
        assert (found[0][name] == found[1][name]).all()
        np.testing.assert_allclose(found[0][name], weights[name], atol=1e-2)
