"""Looking up what IQ blocks hold: tables of 16 bytes, code books of a few hundred entries, and signs, as LLVM code.

Functions here run while code is generated, over `Value`s (tile.py). Code books are constants of the compiled module, so
that a cached kernel has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from localmoe.kernels.simd import GFNI, HAS_LOOKUP, ISA, VBMI, call, emit_lookup, hidden, in_memory, lanes
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
    if HAS_LOOKUP:
        return sevens | of_sixteen([0x80 * (i.bit_count() % 2) for i in range(16)], odd & 0x0F)
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


def _choose_by_word(bits: Value, number: int, yes: Value, no: Value) -> Value:
    """32 bytes of `yes` or `no` by 32 bits of 32 bytes: AVX2 has no masks, and LLVM may go bit by bit."""
    b = bits.b
    word = pick(bits, [4 * number + i // 8 for i in range(32)])
    ones = constant(word, [1 << i % 8 for i in range(32)])
    return Value(b, b.select(b.icmp_unsigned("==", (word & ones).v, ones.v), yes.v, no.v))


def choose_by_bits(bits: Value, chunk: int, yes: Value, no: Value) -> Value:
    """64 bytes of `yes` or `no` by the 64 bits, number `chunk`, of 32 bytes. Only AVX-512 has masks of 64 bits."""
    b = bits.b
    if ISA == "avx512vnni":
        words = b.bitcast(bits.v, ir.VectorType(I64, 4))
        return _choose(Value(b, b.extract_element(words, I32(chunk))), yes, no)
    halves, words = [], b.bitcast(bits.v, ir.VectorType(I32, 8))
    for half in range(2):
        word = 2 * chunk + half
        if ISA == "avx2":
            choose = partial(_choose_by_word, bits, word)
        else:
            choose = partial(_choose, Value(b, b.extract_element(words, I32(word))))
        halves.append(choose(*(pick(x, range(32 * half, 32 * half + 32)) for x in (yes, no))))
    return join(*halves)


# --- code books -----------------------------------------------------------------------------------------------

Index = tuple[Value, "Value | None"]  # bits 0 .. 7 of a block's indices and, where there are more, the rest: bytes


def table_of(b: ir.IRBuilder, name: str, values: np.ndarray) -> Value:
    """The address of a constant of the module, which LLVM does not see through: a linker might replace a weak one."""
    full = f"localmoe.grid.{name}"
    table = b.module.globals.get(full)
    if table is None:
        table = ir.GlobalVariable(b.module, ir.ArrayType(I8, values.nbytes), full)
        table.linkage, table.align = "weak", 64
        table.initializer = ir.Constant(table.value_type, bytearray(values.tobytes()))
    return Value(b, b.ptrtoint(table, I64))


def _scalar_entries(name: str, index: Index, times: int, plus: int) -> list[Value]:
    """`entries` by a load each."""
    low, high = index
    b = low.b
    values = (grid(name).astype(np.int16) * times + plus).astype(np.uint8)
    width, n = values.shape[1], low.v.type.count
    wider = zero_extend(low, 16)
    if high is not None:
        wider = wider | (zero_extend(high, 16) << 8)
    table = table_of(b, f"{name}.{times}.{plus}", values)
    if ISA == "avx2":
        slot, table = Value(b, in_memory(b, wider.v)), Value(b, hidden(b, table.v))
    else:
        slot = Value(b, b.ptrtoint(cgutils.alloca_once(b, wider.v.type), I64))
        slot.store(wider)
    element = ir.IntType(8 * width)
    vectors = []
    for chunk in range(4):
        vector = ir.Constant(ir.VectorType(element, n // 4), ir.Undefined)
        for i in range(n // 4):
            at = (slot + 2 * (chunk * n // 4 + i)).load(I16)
            entry = table + Value(b, b.zext(at.v, I64)) * width
            vector = b.insert_element(vector, entry.load(element).v, I32(i))
        vectors.append(Value(b, vector).bits(U8X64))
    return vectors


def _permute_two(first: Value, index: Value, second: Value) -> Value:
    """Bytes of 128 by bits 0 .. 6 of 64 indices."""
    args = [first.v, index.v, second.v]
    return Value(index.b, call(index.b, "llvm.x86.avx512.vpermi2var.qi.512", U8X64, args))


def _looked_up(table: np.ndarray, low: Value, bits: Sequence[Any]) -> Value:
    """table[i] for 64 indices: registers of 128 bytes by bits 0 .. 6, chosen between by the bits from 7 on."""
    parts = [[constant(low, half) for half in part] for part in table.reshape(-1, 2, 64).tolist()]
    found = [_permute_two(first, low, second) for first, second in parts]
    for is_set in bits:
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [Value(low.b, low.b.select(is_set, odd.v, even.v)) for even, odd in pairs]
    return found[0]


def _planes(book: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A code book as two bytes an entry, uint8 (2, entries), of 8 codes of 2 bits or 4 of 4; the codes' values."""
    levels, codes = np.unique(book, return_inverse=True)
    width = book.shape[1]
    words = (codes.reshape(book.shape) << (16 // width * np.arange(width))).sum(axis=1)
    return np.stack([words & 0xFF, words >> 8]).astype(np.uint8), levels.astype(np.int16)


def _shuffled_entries(name: str, index: Index, times: int, plus: int) -> list[Value]:
    """`entries` of 64 indices by shuffles of VBMI, in as many vectors of 64 bytes as that makes."""
    low, high = index
    b, book = low.b, grid(name)
    width = book.shape[1]
    planes, levels = _planes(book)
    bits = [b.icmp_signed("<", low.v, low.constant(0))]
    if high is not None:
        met = [(high & (1 << bit)).v for bit in range(len(book).bit_length() - 9)]
        bits += [b.icmp_unsigned("!=", value, high.constant(0)) for value in met]
    first, second = (_looked_up(plane, low, bits) for plane in planes)
    values = (levels * times + plus).astype(np.uint8).tolist()
    values += [0] * (2 ** (16 // width) - len(values))
    decoded = ir.Constant(U8X64, values * (64 // len(values)))
    starts = ir.Constant(U8X64, [8 * width * (i // width) % 64 + 16 // width * (i % width) for i in range(64)])
    vectors = []
    for start in range(0, 64, 64 // width):
        places = [0] * 64
        for i in range(64 // width):
            places[width * i : width * i + 2] = start + i, 64 + start + i
        placed = _permute_two(first, constant(low, places), second)
        codes = call(b, "llvm.x86.avx512.pmultishift.qb.512", U8X64, [starts, placed.v])
        vectors.append(Value(b, call(b, "llvm.x86.avx512.permvar.qi.512", U8X64, [decoded, codes])))
    return vectors


def entries(name: str, indices: Sequence[Index], times: int, plus: int) -> list[list[Value]]:
    """For each of one or two blocks four vectors of 64 bytes: a code book's entries, times `times` plus `plus`.

    With VBMI 64 indices are looked up at a time: those of one block, or of two whose entries are of eight.
    """
    if not VBMI:
        return [_scalar_entries(name, index, times, plus) for index in indices]
    if indices[0][0].v.type.count == 64:
        return [_shuffled_entries(name, index, times, plus) for index in indices]
    lows, highs = zip(*(indices if len(indices) == 2 else [*indices, *indices]), strict=True)
    vectors = _shuffled_entries(name, (join(*lows), join(*highs) if highs[0] is not None else None), times, plus)
    return [vectors[:4], vectors[4:]][: len(indices)]
