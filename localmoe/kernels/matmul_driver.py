"""Matrix times many activation rows: the loops that every weight type shares.

For each `ROWS` weight rows, and for each chunk of their columns, the weights are unpacked into scratch in registers'
order (lanes are rows, four bytes of consecutive columns a lane); then tiles of tokens run over the chunk and add their
sums to the output rows. The chunk stays in the L1 and L2 caches however long rows are. What a type adds is one
function that unpacks a block and one that runs a tile.

A kernel is `matmul(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch)`, all int64:
w is the address of row 0 of a (rows, n_cols) matrix in its GGUF layout. Token i < n_tok reads the activation row at
act + int32(in_idx[i]) * act_stride and writes float32 r0..r1 of the row at out + int32(out_idx[i]) * out_stride.
scratch has MATMUL_SCRATCH bytes, is 64-aligned and belongs to the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from numba.core import cgutils

from localmoe.jit import njit
from localmoe.kernels.shapes import (
    AHEAD_STATE,
    BIG,
    CHUNK,
    FACTORS,
    MINS,
    PITCH,
    ROW_VECS,
    ROWS,
    SCALES,
    SMALL,
    SPARE,
    STAGE,
    STAGE_STEP,
    SUMS,
    VEC_BYTES,
)
from localmoe.kernels.simd import LANES
from localmoe.kernels.tile import I32T, I64T, Value, compiled, loop, output_rows, token_rows

UNPACK_LINES = 64  # cache lines of the next chunk to ask for while unpacking one
# Columns of quantized weights unpacked at a time. Weights for few tokens are best used while in the first-level cache:
# 16 KB with 16 lanes. For many, fewer and longer turns over the tokens gain more than reading from the second costs.
FEW = 16
SHORT_CHUNK = 512
FLOAT_CHUNK = 256  # columns of float weights: 32 KB of them, and short sums keep float32's rounding small


def _emit_stage(source: Value, step: Value, target: Value, n_rows: Value, n_bytes: Value) -> None:
    b = source.b
    with loop(b, n_rows) as i:
        pointers = [(p + i * q).v for p, q in ((target, Value(b, I64T(STAGE_STEP))), (source, step))]
        byte = cgutils.voidptr_t
        cgutils.raw_memcpy(b, *(b.inttoptr(p, byte) for p in pointers), n_bytes.v, I64T(1))


def _emit_tail(out: Value, stride: Value, idx: Value, n: Value, n_rows: Value, spare: Value, load: Value) -> None:
    b = out.b
    with loop(b, n) as t:
        row = out + (idx + t * 4).load(I32T).signed(I64T) * stride
        extra = spare + t * PITCH
        into = Value(b, b.icmp_signed("!=", load.v, I64T(0)))
        target, source = into.choose(extra, row), into.choose(row, extra)
        byte = cgutils.voidptr_t
        cgutils.raw_memcpy(b, b.inttoptr(target.v, byte), b.inttoptr(source.v, byte), (n_rows * 4).v, I64T(1))


def _emit_clear(scratch: Value) -> None:
    b, byte = scratch.b, cgutils.voidptr_t
    for first, size in ((0, SUMS), (STAGE, LANES * STAGE_STEP)):
        cgutils.memset(b, b.inttoptr((scratch + first).v, byte), I64T(size), 0)


_clear = compiled(_emit_clear, 1)  # for rows that are not there: what lay there may be slow as a float32, or no number
_stage = compiled(_emit_stage, 5)  # copies n_bytes of n_rows rows to where blocks can be read whole for every lane
_tail = compiled(_emit_tail, 7)  # copies n_rows floats of n tokens' output rows to (load) or from their spare rows


def _emit_ahead(scratch: Value, lines: int) -> None:
    """Ask for the next `lines` cache lines of the next chunk.

    Its state in scratch: address of a row's part, bytes asked for of it, bytes of a part, step, end. A burst of more
    lines than a core has miss buffers would stall the loads behind it, so a few are asked for at a time. There is no
    branch because one in a tile's loop makes LLVM spill the sums.
    """
    state = scratch + AHEAD_STATE
    row, done, size, step, end = ((state + 8 * i).load(I64T) for i in range(5))
    source = (row < end).choose(row + done, scratch)
    for i in range(lines):
        (source + 64 * i).prefetch()
    done = done + 64 * lines
    more = done < size
    state.store(more.choose(row, row + step))
    (state + 8).store(more.choose(done, done - done))


def _emit_ahead_start(scratch: Value, row: Value, size: Value, step: Value, end: Value) -> None:
    state = scratch + AHEAD_STATE
    for i, value in enumerate((row, row - row, size, step, end)):
        (state + 8 * i).store(value)


_ahead_start = compiled(_emit_ahead_start, 5)

Ahead = Callable[[], None]
TileCode = Callable[[Sequence[Value], Sequence[Value], Value, Value, Value, Value, Ahead], None]
UnpackCode = Callable[[Value, Value, Value, Value, Value, Value], None]


def _tile_step(run_tile: TileCode, n: int, lines: int) -> Any:
    """One tile of n tokens as code that a kernel calls."""

    def emit(*args: Value) -> None:
        act, act_stride, in_idx, out, out_stride, out_idx, first, n_tok, end, scratch, k, n_k, n_cols = args
        tokens = token_rows(n, act, act_stride, in_idx, first, n_tok)
        outs = output_rows(n, out, out_stride, out_idx, first, end, scratch + SPARE)
        for row in outs:  # there by the time that the tile is done
            for rv in range(ROW_VECS):
                (row + rv * VEC_BYTES).prefetch(write=True)
        run_tile(tokens, outs, scratch, k, n_k, n_cols, lambda: _emit_ahead(scratch, lines))

    emit.__module__, emit.__qualname__ = run_tile.__module__, f"{run_tile.__qualname__}.{n}"
    return compiled(emit, 13)


def make_matmul(
    unpack_block: UnpackCode,
    run_tile: TileCode,
    *,
    unit: int,
    unit_bytes: int,
    vectors: int,
    scales: int = 0,
    mins: int = 0,
    factors: int = 0,
    chunk: int = CHUNK,
    ahead_every: int = 32,
) -> Any:
    """The whole product for one weight type, inlined into the kernel that calls it.

    unpack_block(block, step, weights, scales, mins, factors) writes code that unpacks `unit` columns, the `unit_bytes`
    bytes at block + i * step of each lane i, to vectors PITCH bytes apart: `vectors` of weights, then `scales`, `mins`
    and `factors` of those. run_tile(tokens, outs, scratch, k, n_k, n_cols, ahead) writes code that multiplies columns
    k..k + n_k and stores to the output rows if k is 0, adds to them otherwise; every `ahead_every` columns it has
    `ahead()` write code that asks for some of the next chunk.
    """
    w_step, scale_step, min_step, factor_step = (n * PITCH for n in (vectors, scales, mins, factors))
    row_lines = ceil(chunk // unit * unit_bytes / 64)
    unpack_lines = min(max(1, UNPACK_LINES * unit // chunk), row_lines)

    def emit_unpack(scratch: Value, block: Value, step: Value, first: Value, n: Value, to: Value) -> None:
        """Unpack n units, the first of them as number `first` of the chunk."""
        with loop(to.b, n) as i:
            _emit_ahead(scratch, unpack_lines)
            u = first + i
            areas = (to + SCALES + u * scale_step, to + MINS + u * min_step, to + FACTORS + u * factor_step)
            unpack_block(block + i * unit_bytes, step, to + u * w_step, *areas)

    emit_unpack.__module__, emit_unpack.__qualname__ = unpack_block.__module__, unpack_block.__qualname__
    unpack = compiled(emit_unpack, 6)
    short_chunk = min(chunk, SHORT_CHUNK)
    turns = chunk // ahead_every / ROWS  # of a tile for each row of the chunk, to be asked for by two or three tiles
    small_step = _tile_step(run_tile, SMALL, ceil(row_lines / (2 * turns)))
    big_step = _tile_step(run_tile, BIG, ceil(row_lines / ((2 if BIG == 8 else 3) * turns)))

    def product(w, act, act_stride, in_idx, out, out_stride, out_idx, n_tok, r0, r1, n_cols, scratch):  # type: ignore[no-untyped-def]
        row_bytes = n_cols * unit_bytes // unit
        step = short_chunk if n_tok <= FEW else chunk
        for r in range(r0, r1, ROWS):
            n_rows = min(ROWS, r1 - r)
            target = out + 4 * r
            if n_rows < ROWS:
                _clear((scratch,))
            for k in range(0, n_cols, step):
                n_k = min(step, n_cols - k)
                part = step // unit * unit_bytes  # bytes of the chunk in a row
                there = w + r * row_bytes + k // unit * unit_bytes + part
                if k + step >= n_cols:
                    there = w + (r + ROWS) * row_bytes
                _ahead_start((scratch, there, part, row_bytes, min(there + ROWS * row_bytes, w + r1 * row_bytes)))
                for rv in range(ROW_VECS):
                    here = min(n_rows - rv * LANES, LANES)
                    if here > 0:
                        to = scratch + rv * VEC_BYTES
                        at = k // unit * unit_bytes
                        block = w + (r + rv * LANES) * row_bytes + at
                        n_units = (n_k + unit - 1) // unit
                        whole = min(n_units, (row_bytes - at) // unit_bytes) if here == LANES else 0
                        unpack((scratch, block, row_bytes, 0, whole, to))
                        for u in range(whole, n_units):
                            skip = u * unit_bytes
                            stage = scratch + STAGE
                            _stage((block + skip, row_bytes, stage, here, min(unit_bytes, row_bytes - at - skip)))
                            unpack((scratch, stage, STAGE_STEP, u, 1, to))
                first = 0
                while first < n_tok:
                    left = n_tok - first
                    n = BIG if left > 2 * SMALL or SMALL < left <= BIG else SMALL
                    spare = scratch + SPARE
                    end = n_tok
                    if n_rows < ROWS:  # every token writes to its spare row
                        end = first
                        _tail((target, out_stride, out_idx + 4 * first, min(n, left), n_rows, spare, 1))
                    args = (act, act_stride, in_idx, target, out_stride, out_idx, first, n_tok, end, scratch)
                    if n == BIG:
                        big_step((*args, k, n_k, n_cols))
                    else:
                        small_step((*args, k, n_k, n_cols))
                    if n_rows < ROWS:
                        _tail((target, out_stride, out_idx + 4 * first, min(n, left), n_rows, spare, 0))
                    first += n

    return njit(inline=True)(product)
