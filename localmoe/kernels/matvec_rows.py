"""A matvec of many rows, made from what computes one; which types have rows of their own in vectors of 32 bytes."""

from __future__ import annotations

from typing import Any

from localmoe.jit import njit
from localmoe.kernels.simd import ISA, st_f32
from localmoe.target import is_zen, zmm_takes_two_turns

# types whose rows in 32 bytes are faster than those in 64 where these take two turns,
# and where only one unit of two shuffles them
_FASTER_THAN_TWO_TURNS = {"q4_0", "q4_1", "iq4_nl", "mxfp4", "q4_k", "iq1_s", "iq1_m", "tq1_0", "tq2_0"}
_FASTER_THAN_ONE_SHUFFLE = {"q4_0", "q4_1", "q5_0", "iq4_nl", "mxfp4", "iq2_s", "iq1_s", "iq1_m", "tq1_0"}


def ymm(kind: str) -> bool:
    """Whether a type's rows are those of matvec_*ymm.py: a processor's only ones, or measured to be its faster ones."""
    if ISA == "avx512vnni":
        if is_zen():
            return kind in _FASTER_THAN_TWO_TURNS and zmm_takes_two_turns()
        return kind in _FASTER_THAN_ONE_SHUFFLE
    return ISA in ("avxvnni", "avx2")


def by_row(row: Any, block: int, size: int) -> Any:
    """rows((w, act, out, r0, r1, n_cols)) from row(w, act, n_cols): blocks of `block` weights in `size` bytes."""

    @njit(fast=True, inline=True)
    def rows(args):  # type: ignore[no-untyped-def]
        w, act, out, r0, r1, n_cols = args
        for r in range(r0, r1):
            st_f32(out + 4 * r, row(w + r * (n_cols // block * size), act, n_cols))

    return rows
