"""Four blocks of 32 weights that lie side by side, taken apart by permutations of whole vectors: AVX-512 alone.

Two loads of 64 bytes cover the four blocks. One permutation then gives the scales of all, and one each the weights of
two, instead of a load, a shift and an insertion for every part: Q4_1 28 instructions for four blocks instead of 44, of
which a core starts 8 a cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localmoe.jit import njit
from localmoe.kernels.simd import VBMI, as_i8, halves, make_add_bits, make_field, make_pick

_nibbles = make_field([0, 4, 0, 4], 0x0F)
_add_fifth = make_add_bits(16)

Near = Callable[[int], Any]


def _two_blocks(size: int, at: int, first: int, offset: int) -> list[int]:
    """int16 lanes, each block's twice, of 16 bytes from byte `at` of two blocks, in a load that starts at `offset`."""
    starts = [(size * block + at - offset) // 2 for block in (first, first + 1)]
    return [start + i % 8 for start in starts for i in range(16)]


def make_near(size: int, n_scales: int, at: int, fifth: int = 0) -> Near | None:
    """A function of an address: the scales of four blocks of `size` bytes, 64 weights of two, 64 of the others.

    A block starts with its `n_scales` float16; weights are nibbles from byte `at` on; with `fifth`, 4 bytes from there
    on hold each one's fifth bit. None where there are no such permutations.
    """
    if not VBMI:
        return None
    far = 4 * size - 64
    words = [size * block // 2 + i for block in range(4) for i in range(n_scales)]
    scales = make_pick("i16", [w if w < 32 else w - far // 2 + 32 for w in words], far if max(words) >= 32 else 0)
    first = make_pick("i16", _two_blocks(size, at, 0, 0))
    last = make_pick("i16", _two_blocks(size, at, 2, far))

    @njit(fast=True, inline=True)
    def of_four_bits(o):  # type: ignore[no-untyped-def]
        return halves(scales(o)), _nibbles(as_i8(first(o))), _nibbles(as_i8(last(o + far)))

    if not fifth:
        return of_four_bits

    @njit(fast=True, inline=True)
    def of_five_bits(o):  # type: ignore[no-untyped-def]
        d, w0, w1 = of_four_bits(o)
        at = o + fifth
        return d, _add_fifth(w0, at, at + size), _add_fifth(w1, at + 2 * size, at + 3 * size)

    return of_five_bits
