"""Every operation of the SIMD vocabulary against NumPy, at widths below, at and above the hardware's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from localmoe.jit import njit
from localmoe.kernels import simd
from localmoe.kernels.simd import Vec

RNG = np.random.default_rng(0)


def at(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def make_dots(n: int):
    """One function that runs all integer dot products on `n` bytes and stores `n / 4` int32 of each."""
    b_load, i_load, h_load = (simd.make_load(Vec(lane, m)) for lane, m in (("i8", n), ("i32", n // 4), ("i16", n // 2)))

    @njit
    def dots(u, x, biased, y, h, acc, out):
        start = i_load(acc)
        simd.store(out, simd.dot4(start, b_load(u), b_load(y)))
        simd.store(out + n, simd.dot4s(start, b_load(x), b_load(y)))
        simd.store(out + 2 * n, simd.dot4_biased(start, b_load(x), b_load(y)))
        simd.store(out + 3 * n, simd.dot4_scaled(start, b_load(u), b_load(y), h_load(h)))
        simd.store(out + 4 * n, simd.dot2(start, h_load(h), b_load(y)))
        simd.store(out + 5 * n, simd.dot4_full_scaled(start, b_load(biased), b_load(y), h_load(h)))

    return dots


@pytest.mark.parametrize("n", [16, 32, 64])
def test_integer_dot_products_are_exact_at_every_width(n: int) -> None:
    dots = make_dots(n)
    for extreme in (False, True):
        u = np.full(n, 127, np.uint8) if extreme else RNG.integers(0, 128, n).astype(np.uint8)
        x = np.full(n, -128, np.int8) if extreme else RNG.integers(-128, 128, n).astype(np.int8)
        y = np.full(n, -127, np.int8) if extreme else RNG.integers(-127, 128, n).astype(np.int8)
        h = np.repeat(np.full(n // 4, -128) if extreme else RNG.integers(-128, 128, n // 4), 2).astype(np.int16)
        acc = RNG.integers(-1000, 1000, n // 4).astype(np.int32)
        out = np.zeros((6, n // 4), np.int32)
        biased = (x.astype(np.int32) + simd.DOT4_BIAS).astype(np.uint8)
        dots(at(u), at(x), at(biased), at(y), at(h), at(acc), at(out))
        four = lambda a, b: (a.astype(np.int32) * b.astype(np.int32)).reshape(-1, 4).sum(axis=1)  # noqa: E731
        np.testing.assert_array_equal(out[0], acc + four(u, y))
        np.testing.assert_array_equal(out[1], acc + four(x, y))
        np.testing.assert_array_equal(out[2], acc + four(x, y) + simd.DOT4_BIAS * four(np.ones(n), y))
        np.testing.assert_array_equal(out[3], acc + h[::2] * four(u, y))
        pairs = h.astype(np.int32) * y.view(np.int16)
        np.testing.assert_array_equal(out[4], acc + pairs.reshape(-1, 2).sum(axis=1))
        np.testing.assert_array_equal(out[5], acc + h[::2] * (four(x, y) + simd.DOT4_BIAS * four(np.ones(n), y)))


load_b16, load_b32 = simd.make_load(Vec("i8", 16)), simd.make_load(Vec("i8", 32))
load_b64 = simd.make_load(Vec("i8", 64))
load_i16, load_f16 = simd.make_load(Vec("i32", 16)), simd.make_load(Vec("f32", 16))
twice = simd.make_load_twice(Vec("i8", 32))
shift_up = simd.make_shift("shl", Vec("i16", 16), [3] * 8 + [5] * 8)
mask = simd.make_mask(Vec("i8", 32), list(range(32)))
pick = simd.make_bit_pick(Vec("i8", 32), [1 << (i % 7) for i in range(32)], 9)
reverse = simd.make_shuffle(range(31, -1, -1))
weave = simd.make_shuffle2([0, 16, 1, 17])
constant = simd.make_constant(Vec("i8", 32), range(32))
add_bits = simd.make_add_bits(16)


@njit
def bytes_ops(x, out):
    v = load_b32(x)
    low = load_b16(x)
    simd.store(out, twice(x))
    simd.store(out + 32, shift_up(v))
    simd.store(out + 64, mask(v))
    simd.store(out + 96, pick(v))
    simd.store(out + 128, reverse(v))
    simd.store(out + 160, weave(low, load_b16(x + 16)))
    simd.store(out + 164, constant())
    simd.store(out + 196, simd.concat(low, low))
    simd.store(out + 228, simd.zero_extend(low))
    simd.store(out + 260, simd.widen(low))
    simd.store(out + 292, simd.widen_unsigned(low))
    simd.store(out + 324, simd.fold(v))
    simd.store(out + 340, simd.shr(v, 4))
    simd.store(out + 372, simd.bit_or(low, load_b16(x + 16)))
    simd.store(out + 388, add_bits(load_b64(x), x, x + 9))


def test_byte_vectors_shuffle_shift_mask_widen_and_pick() -> None:
    x = RNG.integers(0, 256, 64).astype(np.uint8)
    out = np.zeros(512, np.uint8)
    bytes_ops(at(x), at(out))
    v, low = x[:32], x[:16]
    unpacked = lambda a: np.unpackbits(a, bitorder="little") * np.uint8(16)  # noqa: E731
    words = v.view(np.uint16) << np.repeat([3, 5], 8).astype(np.uint16)
    expected = [
        np.tile(low, 2), words.view(np.uint8), v & np.arange(32, dtype=np.uint8),
        np.where(v & (1 << (np.arange(32) % 7)), 9, 0).astype(np.uint8), v[::-1], x[[0, 16, 1, 17]],
        np.arange(32, dtype=np.uint8), np.tile(low, 2), np.concatenate([low, np.zeros(16, np.uint8)]),
        low.view(np.int8).astype(np.int16).view(np.uint8), low.astype(np.uint16).view(np.uint8),
        x[:16] + x[16:32], v >> 4, x[:16] | x[16:32], x + np.concatenate([unpacked(x[:4]), unpacked(x[9:13])]),
    ]  # fmt: skip
    np.testing.assert_array_equal(out[:452], np.concatenate(expected))


def make_byte_fields(n: int):
    """Fields of bytes, the same for all and one for each half; blended bits; permuted int16 lanes; lookups."""
    load, vec = simd.make_load(Vec("i8", n)), Vec("i8", n)
    right, left = simd.make_field((3,), 0x0F, 0x50), simd.make_field((-4, -2), 0x30)
    blend = simd.make_blend(vec, [0x0F] * (n // 2) + [0xF0] * (n // 2))

    @njit
    def fields(x, y, out):
        simd.store(out, right(load(x)))
        simd.store(out + n, left(load(x)))
        simd.store(out + 2 * n, blend(load(x), load(y)))

    return fields


@pytest.mark.parametrize("n", [16, 32, 64])
def test_fields_of_bytes_and_blends(n: int) -> None:
    fields = make_byte_fields(n)
    x, y = RNG.integers(0, 256, (2, n)).astype(np.uint8)
    out = np.zeros((3, n), np.uint8)
    fields(at(x), at(y), at(out))
    bits = np.repeat([0x0F, 0xF0], n // 2).astype(np.uint8)
    shifts = np.repeat([4, 2], n // 2)
    np.testing.assert_array_equal(out[0], ((x >> 3) & 0x0F) ^ 0x50)
    np.testing.assert_array_equal(out[1], (x.astype(np.uint32) << shifts & 0x30).astype(np.uint8))
    np.testing.assert_array_equal(out[2], (x & bits) | (y & ~bits))


permuted = simd.make_permute([(7 * i + 3) % 16 for i in range(32)])
load_h16 = simd.make_load(Vec("i16", 16))


@njit
def permute_words(x, out):
    simd.store(out, permuted(load_h16(x)))


def test_permuted_int16_lanes() -> None:
    x, out = RNG.integers(-(2**15), 2**15, 16).astype(np.int16), np.zeros(32, np.int16)
    permute_words(at(x), at(out))
    np.testing.assert_array_equal(out, x[(7 * np.arange(32) + 3) % 16])


picked = simd.make_pick("i16", [5, 31, 0, 5])
picked_apart = simd.make_pick("i16", [5, 31, 32, 40], 10)


@njit
def pick_words(x, out):
    simd.store(out, simd.halves(picked(x)))
    simd.store(out + 16, simd.halves(picked_apart(x)))


def test_picked_float16_of_one_load_and_of_two() -> None:
    x, out = RNG.normal(size=40).astype(np.float16), np.zeros(8, np.float32)
    pick_words(at(x), at(out))
    np.testing.assert_array_equal(out, x[[5, 31, 0, 5, 5, 31, 5, 13]])


@njit
def look_up(table, index, out):
    simd.store(out, simd.lookup(load_b64(table), load_b64(index)))


@pytest.mark.skipif(not simd.HAS_LOOKUP, reason="plain LLVM has no table lookup; kernels multiply there")
def test_lookup_stays_within_16_lanes() -> None:
    table, index = RNG.integers(0, 256, 64).astype(np.uint8), RNG.integers(0, 16, 64).astype(np.uint8)
    out = np.zeros(64, np.uint8)
    look_up(at(table), at(index), at(out))
    np.testing.assert_array_equal(out, table[np.arange(64) // 16 * 16 + index])


@njit
def float_ops(x, y, out, sums):
    v = load_f16(x)
    w = load_f16(y)
    simd.store(out, simd.fma(v, w, v))
    simd.store(out + 64, simd.to_f32(simd.to_i32(v)))
    simd.store(out + 128, simd.maximum(v, w))
    simd.store(out + 192, simd.minimum(v, w))
    simd.store(out + 256, simd.absolute(v))
    simd.store(out + 320, simd.div(v, w))
    simd.st_f32(sums, simd.hsum(v))
    simd.st_f32(sums + 4, simd.hmax(v))
    simd.st_f32(sums + 8, simd.hmin(v))
    simd.st_i32(sums + 12, simd.hsum_i32(simd.to_i32(v)))
    simd.st_i32(sums + 16, simd.hmax_i32(simd.to_i32(v)))


def test_float_lanes_and_reductions() -> None:
    x = (RNG.integers(-40, 40, 16) / 2).astype(np.float32)  # halves: rounding to even shows, and sums are exact
    y = RNG.normal(size=16).astype(np.float32) + np.float32(3)
    out, sums = np.zeros((6, 16), np.float32), np.zeros(5, np.float32)
    float_ops(at(x), at(y), at(out), at(sums))
    np.testing.assert_allclose(out[0], x.astype(np.float64) * y + x, rtol=1e-6)
    expected = [np.rint(x), np.maximum(x, y), np.minimum(x, y), np.abs(x)]
    np.testing.assert_array_equal(out[1:5], expected)
    np.testing.assert_allclose(out[5], x / y, rtol=3e-7)
    assert sums[:3].tolist() == [x.sum(), x.max(), x.min()]
    assert sums[3:].view(np.int32).tolist() == [np.rint(x).sum(), np.rint(x).max()]


apart_1, apart_2 = simd.load_halves_apart(1, 4), simd.load_halves_apart(2, 2)


@njit
def halves_apart(h, out):
    simd.store(out, apart_1(h, h + 10, h + 6, h + 2))
    simd.store(out + 16, apart_2(h, h + 10))


def test_float16_from_several_addresses() -> None:
    h, out = RNG.normal(size=8).astype(np.float16), np.zeros(8, np.float32)
    halves_apart(at(h), at(out))
    np.testing.assert_array_equal(out, h[[0, 5, 3, 1, 0, 1, 5, 6]])


@njit
def half_ops(h, x, out, h_out):
    simd.store(out, simd.load_f16(h))
    simd.store(out + 4 * simd.LANES, simd.load_bf16(h))
    simd.store_f16(h_out, simd.load_f32(x))
    simd.st_f32(out + 8 * simd.LANES, simd.ld_f16(h))
    simd.st_f32(out + 8 * simd.LANES + 4, simd.ld_bf16(h))
    simd.st_f32(out + 8 * simd.LANES + 8, simd.round_f16(simd.ld_f32(x)))


def test_half_precision_loads_and_stores_round_to_even() -> None:
    n = simd.LANES
    h = RNG.normal(size=n).astype(np.float16)
    x = RNG.normal(size=n).astype(np.float32)
    out, h_out = np.zeros(2 * n + 3, np.float32), np.zeros(n, np.float16)
    half_ops(at(h), at(x), at(out), at(h_out))
    bf16 = (h.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(out[:n], h.astype(np.float32))
    np.testing.assert_array_equal(out[n : 2 * n], bf16)
    np.testing.assert_array_equal(h_out, x.astype(np.float16))
    np.testing.assert_array_equal(out[2 * n :], [h[0], bf16[0], x.astype(np.float16)[0]])


@njit
def exp_lanes(x, out):
    simd.store(out, simd.exp(load_f16(x)))


def test_exp_is_accurate_and_keeps_nan() -> None:
    out = np.zeros(16, np.float32)
    for values in (np.linspace(-87, 88, 16), RNG.normal(size=16), RNG.normal(size=16) * 20):
        x = values.astype(np.float32)
        exp_lanes(at(x), at(out))
        np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=2e-7)
    x = np.array([np.nan, -np.inf, -1000, 1000, 0] + [1] * 11, np.float32)
    exp_lanes(at(x), at(out))
    assert math.isnan(out[0])
    assert out[1:3].tolist() == [0, 0]
    assert np.isfinite(out[3])
    assert out[4] == 1
