"""Encoding of weights between actors: the config's `wire_dtype`.

float32: unchanged. float16 and bfloat16: float tensors wider than 16 bits travel in
16. The aggregator sends the weights rounded; what comes back is the *difference* to
them, so that small steps are not lost to rounding, and sums stay in float32. Everything
else (integers, half floats) travels as it is, by value. numpy has no bfloat16: its bits
travel as uint16. Both round to nearest, ties to even; what is too large becomes
infinite, which the receiver's check for finite numbers refuses by name.
"""

import functools
import hashlib
import math
from dataclasses import dataclass

import numpy as np

from fedray.weights import Form, Schema, Weights, blocks, quantization
from fedray.weights.arrays import bits_below

NARROW = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}
INT8 = "int8"
SENT_AS = {INT8: "bfloat16"}  # in which the weights travel that differences are to

MAGNITUDE = 0x7FFFFFFF  # of the bits of a float32: all but the sign


@dataclass(frozen=True)
class Sender:
    """Who encodes which round's update: from these comes all chance in rounding.

    name : of the party, or of the first of several.
    is_node : whether it is a node's update, combined from some that were encoded.
    """

    seed: int
    round: int
    name: str
    is_node: bool = False

    @property
    def key(self) -> tuple[int, ...]:
        """The same as integers >= 0."""
        of_name = hashlib.sha256(self.name.encode()).digest()[:8]
        number = int.from_bytes(of_name, "big")
        return self.seed, self.round, number, int(self.is_node)


def form(needed: Schema, dtype: str) -> Schema:
    """Schema of encoded weights whose own schema is `needed`, as they are broadcast."""
    dtype = SENT_AS.get(dtype, dtype)
    if dtype not in NARROW:
        return needed
    return {
        name: Form(of.shape, str(NARROW[dtype])) if _is_wide(of.dtype) else of
        for name, of in needed.items()
    }


def update_form(needed: Schema, dtype: str) -> Schema:
    """Schema of an encoded update, a difference to weights of the schema `needed`."""
    if dtype != INT8:
        return form(needed, dtype)
    return {
        name: Form((quantization.n_bytes(math.prod(of.shape)),), "int8")
        if _is_wide(of.dtype)
        else of
        for name, of in needed.items()
    }


def pack(
    weights: Weights,
    dtype: str,
    base: Weights | None = None,
    sender: Sender | None = None,
) -> Weights:
    """Encode weights; for float32 returns them unchanged.

    base : what `unpack` made of the weights sent before; the difference to it travels.
        It also tells which tensors are wide: a mean of integers is of floats. What it
        does not have travels as it is.
    sender : of a difference; only int8 needs it.
    """
    if base is None:
        dtype = SENT_AS.get(dtype, dtype)
    if dtype not in NARROW and dtype != INT8:
        return weights
    schema = weights if base is None else base
    names = [name for name in weights if name in schema]
    names = [name for name in names if _is_wide(schema[name].dtype)]
    if dtype == INT8:
        return weights | _quantize(names, weights, base or {}, sender)
    return weights | _narrow(names, weights, dtype, base)


def _narrow(
    names: list[str], weights: Weights, dtype: str, base: Weights | None
) -> Weights:
    """Round to 16 bits."""
    ours = blocks.flat([weights[name] for name in names])
    theirs = None if base is None else blocks.flat([base[name] for name in names])
    shapes = [weights[name].shape for name in names]
    whole, views = blocks.allocate(shapes, NARROW[dtype])
    bits, encode = whole.view(np.uint16), ENCODE[dtype]

    def work(block: blocks.Block) -> None:
        step = blocks.scratch(block.size, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            if theirs is None:
                for part, at in block.parts(ours):
                    np.copyto(step[at], part, casting="same_kind")
            else:
                parts = zip(block.parts(ours), block.parts(theirs), strict=True)
                for (our, at), (their, _) in parts:
                    np.subtract(our, their, step[at])
            encode(step, bits[block.whole])

    blocks.each(blocks.cut(tuple([array.size for array in ours])), work)
    return dict(zip(names, views, strict=True))


def _quantize(
    names: list[str], weights: Weights, base: Weights, sender: Sender | None
) -> Weights:
    if sender is None:
        raise ValueError("an update is quantized with a sender")
    ours, theirs = ([of[n] for n in names] for of in (weights, base))
    flat = blocks.flat(ours), blocks.flat(theirs)
    packed = quantization.quantize(*flat, sender.key)
    return dict(zip(names, packed, strict=True))


def unpack(
    payload: Weights, needed: Schema, dtype: str, base: Weights | None = None
) -> Weights:
    """Decode what `pack` made to weights of `needed`; for float32 unchanged.

    base : the weights that a difference is added to.
    """
    if base is None:
        dtype = SENT_AS.get(dtype, dtype)
    if base is not None and dtype == INT8:
        return payload | _dequantize(payload, needed, base)
    if dtype not in NARROW:
        return payload
    unpacked: Weights = {}
    needed = {name: form for name, form in needed.items() if name in payload}
    for wide in {form.dtype: None for form in needed.values() if _is_wide(form.dtype)}:
        names = [name for name, form in needed.items() if form.dtype == wide]
        unpacked |= _unpack_tensors(
            {name: payload[name] for name in names}, wide, dtype, base
        )
    return {name: unpacked.get(name, array) for name, array in payload.items()}


def _dequantize(payload: Weights, needed: Schema, base: Weights) -> Weights:
    weights = {}
    for name, of in needed.items():
        if name in payload and _is_wide(of.dtype):
            step = quantization.dequantize(payload[name], math.prod(of.shape))
            new = step if of.dtype == step.dtype else np.empty(step.shape, of.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                np.add(base[name].reshape(-1), step, new)
            weights[name] = new.reshape(of.shape)
    return weights


def _unpack_tensors(
    payload: Weights, wide: str, dtype: str, base: Weights | None
) -> Weights:
    """Decode tensors of one wide dtype, end to end in one array."""
    halves = [bits.view(np.uint16) for bits in blocks.flat(payload.values())]
    bases = None if base is None else blocks.flat([base[name] for name in payload])
    whole, views = blocks.allocate(
        [bits.shape for bits in payload.values()], np.dtype(wide)
    )
    decode = DECODE[dtype]

    def work(block: blocks.Block) -> None:
        bits = blocks.scratch(block.size, np.uint16)
        for part, at in block.parts(halves):
            np.copyto(bits[at], part)
        new = whole[block.whole]
        in_place = new.dtype == np.float32
        step = new if in_place else blocks.scratch(block.size, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            decode(bits, step)
            if bases is not None:
                for part, at in block.parts(bases):
                    np.add(part, step[at], new[at])
            elif not in_place:
                np.copyto(new, step)

    blocks.each(blocks.cut(tuple([bits.size for bits in halves])), work)
    return dict(zip(payload, views, strict=True))


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Bits (uint16) of a float32 array's numbers, rounded."""
    bits = np.empty(array.size, np.uint16)
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)

    def work(block: blocks.Block) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            _to_bfloat16(flat[block.whole], bits[block.whole])

    blocks.each(blocks.cut((flat.size,)), work)
    return bits.reshape(array.shape)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Numbers (float32) of the bits of bfloat16, exactly."""
    whole = bits.astype(np.uint32)
    return np.left_shift(whole, 16, out=whole).view(np.float32)


@functools.lru_cache(maxsize=64)
def _is_wide(dtype: np.dtype | str) -> bool:
    dtype = np.dtype(dtype)
    return dtype.kind == "f" and dtype.itemsize > 2


def _to_bfloat16(step: np.ndarray, bits: np.ndarray) -> None:
    """Keep the upper half of each float32, rounded by what the lower half was."""
    whole, up = step.view(np.uint32), blocks.scratch(step.size, np.uint32)
    np.right_shift(whole, 16, up)
    np.bitwise_and(up, 1, up)
    np.add(up, 0x7FFF, up)  # carries if above the middle, in the middle if odd
    np.add(up, whole, up)
    np.right_shift(up, 16, up)
    np.copyto(bits, up, casting="unsafe")
    if np.isnan(np.maximum.reduce(step)):
        bits[np.isnan(step)] = 0x7FC0  # or the carry makes some of them infinite


def _from_bfloat16(bits: np.ndarray, step: np.ndarray) -> None:
    whole = step.view(np.uint32)
    np.copyto(whole, bits)
    np.left_shift(whole, 16, whole)


def _to_float16(step: np.ndarray, bits: np.ndarray) -> None:
    """Round by adding the power of two whose last bit is the last one that is kept.

    numpy's own conversion takes twice as long, and twice that for tiny numbers.
    """
    sign_and_all = step.view(np.uint32)
    size = blocks.scratch(step.size, np.uint32)
    np.bitwise_and(sign_and_all, MAGNITUDE, size)
    if np.maximum.reduce(size) >= 0x477FF000:  # 65520, rounded to infinity, or NaN
        np.copyto(bits.view(np.float16), step, casting="same_kind")
        return
    power = blocks.scratch(step.size, np.uint32, 1)
    np.bitwise_and(size, 0x7F800000, power)
    np.maximum(power, 113 << 23, out=power)  # 2⁻¹⁴: below, all have one last bit
    np.add(power, 13 << 23, power)
    np.add(size.view(np.float32), power.view(np.float32), size.view(np.float32))
    # the lowest bits are now the digits kept, leading one included: add the exponent
    np.right_shift(power, 13, power)
    np.subtract(power, (113 + 13) << 10, power)
    np.add(size, power, size)
    np.right_shift(sign_and_all, 16, power)
    np.bitwise_and(power, 0x8000, power)
    np.bitwise_or(size, power, size)
    np.copyto(bits, size, casting="unsafe")


def _from_float16(bits: np.ndarray, step: np.ndarray) -> None:
    """Move exponent and digits to their place in a float32, then mend its bias."""
    if not bits_below(bits, 0x7C00):  # infinite or NaN
        np.copyto(step, bits.view(np.float16))
        return
    whole = step.view(np.uint32)
    np.copyto(step.view(np.int32), bits.view(np.int16))  # the sign fills the left
    np.left_shift(whole, 13, whole)
    np.bitwise_and(whole, 0x8FFFE000, whole)
    np.multiply(step, np.float32(2.0**112), step)


ENCODE = {"float16": _to_float16, "bfloat16": _to_bfloat16}
DECODE = {"float16": _from_float16, "bfloat16": _from_bfloat16}
