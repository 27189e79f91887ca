"""Looking up what IQ blocks hold: tables of 16 bytes, code books of a few hundred entries, and signs, as LLVM code.

Functions here run while code is generated, over `Value`s (tile.py). Code books are constants of the compiled module, so
that a cached kernel has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from localmoe.kernels.simd import GFNI, HAS_LOOKUP, ISA, call, emit_lookup, lanes
from localmoe.kernels.tile import Value
from localmoe.quants.codebooks import grid

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
U8X32, U8X64 = ir.VectorType(I8, 32), ir.VectorType(I8, 64)


def pick(x: Value, mask: Sequence[int]) -> Value:
    """Lanes `mask` of x."""
    return Value(x.b, lanes(x.b, x.v, x.v, mask))


def join(*parts: Value) -> Value:
    """The lanes of two, or four, vectors of one type end to end."""
    if len(parts) > 2:
        half = len(parts) // 2
        return join(join(*parts[:half]), join(*parts[half:]))
    x, y = parts
    return Value(x.b, lanes(x.b, x.v, y.v, range(2 * x.v.type.count)))


def zero_extend(x: Value, bits: int) -> Value:
    """Lanes of `bits` bits, zeros coming in."""
    return Value(x.b, x.b.zext(x.v, ir.VectorType(ir.IntType(bits), x.v.type.count)))


def truncate(x: Value, bits: int) -> Value:
    """The low `bits` bits of each lane."""
    return Value(x.b, x.b.trunc(x.v, ir.VectorType(ir.IntType(bits), x.v.type.count)))


def constant(x: Value, values: Sequence[int]) -> Value:
    """A vector of x's type with a number a lane."""
    return Value(x.b, ir.Constant(x.v.type, list(values)))


def of_sixteen(values: Sequence[int], index: Value) -> Value:
    """values[i] for each byte i < 16 of `index`: a shuffle, or choices by the four bits where there is none."""
    b, n = index.b, index.v.type.count
    if HAS_LOOKUP:
        return Value(b, emit_lookup(b, ir.Constant(index.v.type, list(values) * (n // 16)), index.v))
    left = [ir.Constant(index.v.type, [value] * n) for value in values]
    for bit in range(4):
        is_set = b.icmp_unsigned("!=", (index & (1 << bit)).v, index.constant(0))
        left = [b.select(is_set, high, low) for low, high in zip(left[::2], left[1::2], strict=True)]
    return Value(b, left[0])


def half_power_of_two(e: Value) -> Value:
    """2 ** (e - 128) as float32 of int32 exponents e < 256 (`ggml_e8m0_to_fp32_half`)."""
    b = e.b
    tiny = Value(b, b.shl(e.constant(0x00200000), (e & 1).v))
    is_tiny = b.icmp_unsigned("<", e.v, e.constant(2))
    bits = b.select(is_tiny, tiny.v, ((e - 1) << 23).v)
    return Value(b, b.bitcast(bits, ir.VectorType(ir.FloatType(), e.v.type.count)))


# --- signs ----------------------------------------------------------------------------------------------------


def eighth_sign(sevens: Value) -> Value:
    """Bytes of seven signs with the eighth, which makes the number of minus signs even."""
    if GFNI:
        rows = [0x7F, *(1 << bit for bit in reversed(range(7)))]
        n = sevens.v.type.count
        matrix = ir.Constant(sevens.v.type, rows * (n // 8))
        name = f"llvm.x86.vgf2p8affineqb.{8 * n}"
        return Value(sevens.b, call(sevens.b, name, sevens.v.type, [sevens.v, matrix, I8(0)]))
    odd = sevens ^ (sevens >> 4)
    odd = odd ^ (odd >> 2)
    return sevens | ((odd ^ (odd >> 1)) << 7)


def sevens_of(words: Value) -> Value:
    """Four times seven bits of each of 8 words as 32 bytes."""
    parts = [(words << k) & (0x7F << (8 * k)) for k in range(4)]
    return (parts[0] | parts[1] | parts[2] | parts[3]).bits(U8X32)


def _choose(bits: Value, yes: Value, no: Value) -> Value:
    """Bytes of `yes` where the bit of an integer of as many bits is set, else of `no`."""
    b = bits.b
    met = b.bitcast(bits.v, ir.VectorType(I1, yes.v.type.count))
    return Value(b, b.select(met, yes.v, no.v))


def choose_by_bits(bits: Value, chunk: int, yes: Value, no: Value) -> Value:
    """64 bytes of `yes` or `no` by the 64 bits, number `chunk`, of 32 bytes. Only AVX-512 has masks of 64 bits."""
    b = bits.b
    if ISA == "avx512vnni":
        words = b.bitcast(bits.v, ir.VectorType(I64, 4))
        return _choose(Value(b, b.extract_element(words, I32(chunk))), yes, no)
    words = b.bitcast(bits.v, ir.VectorType(I32, 8))
    halves = [
        _choose(
            Value(b, b.extract_element(words, I32(2 * chunk + half))),
            pick(yes, range(32 * half, 32 * half + 32)),
            pick(no, range(32 * half, 32 * half + 32)),
        )
        for half in range(2)
    ]
    return join(*halves)


# --- code books -----------------------------------------------------------------------------------------------


def _table(b: ir.IRBuilder, name: str, values: np.ndarray) -> ir.Value:
    """The address, int64, of a constant in the module."""
    full = f"localmoe.grid.{name}"
    table = b.module.globals.get(full)
    if table is None:
        table = ir.GlobalVariable(b.module, ir.ArrayType(I8, values.nbytes), full)
        table.linkage, table.global_constant, table.align = "internal", True, 64
        table.initializer = ir.Constant(table.value_type, bytearray(values.tobytes()))
    return b.ptrtoint(table, I64)


def entries(name: str, low: Value, high: Value | None, times: int, plus: int) -> list[Value]:
    """Four vectors of 64 bytes: a code book's entries at low + 256 * high, times `times` plus `plus`."""
    b = low.b
    values = (grid(name).astype(np.int16) * times + plus).astype(np.uint8)
    width, n = values.shape[1], low.v.type.count
    wide = zero_extend(low, 16)
    if high is not None:
        wide = wide | (zero_extend(high, 16) << 8)
    slot = Value(b, b.ptrtoint(cgutils.alloca_once(b, wide.v.type), I64))
    slot.store(wide)
    table = Value(b, _table(b, f"{name}.{times}.{plus}", values))
    element = ir.IntType(8 * width)
    vectors = []
    for chunk in range(4):
        vector = ir.Constant(ir.VectorType(element, n // 4), ir.Undefined)
        for i in range(n // 4):
            index = (slot + 2 * (chunk * n // 4 + i)).load(I16)
            at = table + Value(b, b.zext(index.v, I64)) * width
            vector = b.insert_element(vector, at.load(element).v, I32(i))
        vectors.append(Value(b, vector).bits(U8X64))
    return vectors
