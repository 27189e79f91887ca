"""Register tiles for matrix products, written straight into LLVM: what Numba would copy and type for seconds.

Functions here run while code is generated. `Value` is an LLVM value with operators, a tile is a list of them: a few
tokens by `ROW_VECS` vectors whose lanes are weight rows, vector `rv` of token t at `t * ROW_VECS + rv`. Everything over
tokens and row vectors is unrolled and stays in registers. Vectors of weights or scales lie `PITCH` bytes apart in
scratch, the row vectors of one group side by side. `compiled` makes such code callable from a kernel.

Numba functions inlined into one kernel took 8 s to compile (5 s of them copying Numba's IR), separate ones 3 s because
every level is optimized again; this takes 1.1 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from localmoe.kernels.shapes import PITCH, ROW_VECS, VEC_BYTES
from localmoe.kernels.simd import (
    ISA,
    LANES,
    call,
    emit_ahead,
    emit_dot2,
    emit_dot4,
    emit_dot4s,
    emit_pair_sums,
    emit_prefetch,
    load_at,
    splat,
    store_at,
)

# VNNI multiplies unsigned by signed bytes only, but the full range of both: signed weights are stored plus 128 and the
# tile starts from -128 times the sum of the activations. Elsewhere signed weights stay signed.
BIASED = ISA in ("avx512vnni", "avxvnni")

I16T, I32T, I64T, F16T, F32T = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()
I8V, I16V, I32V, F32V = (ir.VectorType(t, n * LANES) for t, n in ((ir.IntType(8), 4), (I16T, 2), (I32T, 1), (F32T, 1)))


class Value:
    """An LLVM value and the builder that goes on from it; Python numbers on the right are constants of its type."""

    def __init__(self, b: Any, v: Any) -> None:
        self.b = b
        self.v = v

    def constant(self, x: float) -> Any:
        kind = self.v.type
        return ir.Constant(kind, [x] * kind.count if isinstance(kind, ir.VectorType) else x)

    def _do(self, name: str, other: Value | float) -> Value:
        kind = self.v.type.element if isinstance(self.v.type, ir.VectorType) else self.v.type
        prefix = "f" if kind == F32T and name in ("add", "sub", "mul") else ""
        right = other.v if isinstance(other, Value) else self.constant(other)
        return Value(self.b, getattr(self.b, prefix + name)(self.v, right))

    def __add__(self, other: Value | float) -> Value:
        return self if isinstance(other, int) and other == 0 else self._do("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._do("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._do("mul", other)

    def __and__(self, other: Value | int) -> Value:
        return self._do("and_", other)

    def __or__(self, other: Value | int) -> Value:
        return self._do("or_", other)

    def __xor__(self, other: Value | int) -> Value:
        return self if isinstance(other, int) and other == 0 else self._do("xor", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self if isinstance(other, int) and other == 0 else self._do("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        """Zeros come in."""
        return self if isinstance(other, int) and other == 0 else self._do("lshr", other)

    def __floordiv__(self, other: int) -> Value:
        """Of a number that is not negative."""
        return self._do("udiv", other)

    def __lt__(self, other: Value) -> Value:
        return Value(self.b, self.b.icmp_signed("<", self.v, other.v))

    def choose(self, yes: Value, no: Value) -> Value:
        return Value(self.b, self.b.select(self.v, yes.v, no.v))

    def bits(self, kind: Any) -> Value:
        """The same bits as another type."""
        return Value(self.b, self.b.bitcast(self.v, kind))

    def signed(self, kind: Any) -> Value:
        """Widened with its sign."""
        return Value(self.b, self.b.sext(self.v, kind))

    def to_f32(self) -> Value:
        return Value(self.b, self.b.sitofp(self.v, ir.VectorType(F32T, self.v.type.count)))

    def signed_byte(self, j: int) -> Value:
        """Byte j of each int32 lane as int32."""
        up = self << (24 - 8 * j)
        return up._do("ashr", 24)

    def load(self, kind: Any) -> Value:
        """What lies at this address."""
        return Value(self.b, load_at(self.b, self.v, kind))

    def load_splat(self, kind: Any, n: int = LANES) -> Value:
        """The scalar at this address in every one of n lanes."""
        return Value(self.b, splat(self.b, load_at(self.b, self.v, kind), n))

    def store(self, value: Value) -> None:
        store_at(self.b, self.v, value.v)

    def prefetch(self, write: bool = False) -> None:
        """Ask for the cache line at this address, into the second level; to `write` it, into the first."""
        emit_prefetch(self.b, self.v, level=1 if write else 2, write=write)

    def ask_ahead(self) -> None:
        emit_ahead(self.b, self.v)

    def half(self, high: int, kind: Any = F16T) -> Value:
        """The low or high 16 bits of each int32 lane as a float16, or bfloat16 (kind None), widened to float32."""
        if kind is None:
            return (self & 0xFFFF0000 if high else self << 16).bits(F32V)
        narrow = self.b.trunc((self >> (16 * high)).v, ir.VectorType(I16T, LANES))
        return Value(self.b, self.b.fpext(self.b.bitcast(narrow, ir.VectorType(kind, LANES)), F32V))


Tile = list[Value]


def fma(x: Value, y: Value, z: Value) -> Value:
    """x * y + z with one rounding."""
    return Value(x.b, call(x.b, f"llvm.fma.v{z.v.type.count}f32", z.v.type, [x.v, y.v, z.v]))


def in_order(b: Any, sums: list[Any], count: int) -> list[Any]:
    """On AVX2, the sums, to be there before what comes next is loaded: through assembly without an instruction.

    LLVM's scheduler would load the weights and activations of many groups first, more than 16 registers hold, and
    spill. Of fewer than 8 groups (Q6_K) it does better.
    """
    if ISA != "avx2" or count < 8:
        return sums
    tied = [v is not None and not (isinstance(v, ir.Constant) and v.type == I32V) for v in sums]  # 0 adds nothing
    kinds = [ir.FunctionType(v.type, [v.type]) if tie else None for v, tie in zip(sums, tied, strict=True)]
    text = "=x,0,~{memory}"
    return [b.asm(kind, "", text, [v], side_effect=True) if kind else v for v, kind in zip(sums, kinds, strict=True)]


def zero(b: Any, kind: Any) -> Value:
    return Value(b, ir.Constant(kind, None))


@contextmanager
def loop(b: Any, count: Value | int) -> Iterator[Value]:
    """Code run for 0 <= index < count."""
    n = count.v if isinstance(count, Value) else I64T(count)
    with cgutils.for_range(b, n) as state:
        yield Value(b, state.index)


class Cells:
    """Vectors that change from one turn of a loop to the next."""

    def __init__(self, values: Sequence[Value]) -> None:
        self.b = values[0].b
        self._slots = [cgutils.alloca_once(self.b, value.v.type) for value in values]
        self.put(values)

    def put(self, values: Sequence[Value]) -> None:
        for slot, value in zip(self._slots, values, strict=True):
            self.b.store(value.v, slot)

    def get(self) -> Tile:
        return [Value(self.b, self.b.load(slot)) for slot in self._slots]


def compiled(emit: Callable[..., None], n_args: int) -> Any:
    """An intrinsic that takes a tuple of n_args int64 and runs the code that `emit(*values)` writes.

    It becomes a function of its own in the kernel's module, so that its registers are allocated by themselves.
    """
    name = f"localmoe.{emit.__module__}.{emit.__qualname__}"

    @intrinsic
    def run(typingctx: Any, args: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, values: Any) -> Any:
            fn = b.module.globals.get(name)
            if fn is None:
                fn = ir.Function(b.module, ir.FunctionType(ir.VoidType(), [I64T] * n_args), name)
                fn.linkage = "internal"
                fn.attributes.add("noinline")
                inner = ir.IRBuilder(fn.append_basic_block("entry"))
                emit(*(Value(inner, arg) for arg in fn.args))
                inner.ret_void()
            b.call(fn, cgutils.unpack_tuple(b, values[0], n_args))
            return ctx.get_dummy_value()

        return types.void(args), codegen

    return run


# --- tiles --------------------------------------------------------------------------------------------------


def row_vectors(address: Value, kind: Any) -> list[Value]:
    """The `ROW_VECS` vectors of one group."""
    return [(address + rv * VEC_BYTES).load(kind) for rv in range(ROW_VECS)]


def tile_zero(rows: Sequence[Value], kind: Any) -> Tile:
    return [zero(rows[0].b, kind)] * (ROW_VECS * len(rows))


def tile_spread(values: Sequence[Value]) -> Tile:
    """The tile whose token t holds values[t] in every row vector."""
    return [value for value in values for _ in range(ROW_VECS)]


def _make_dots(emit: Callable[[Any, Any, Any, Any], Any], weights: Any) -> Callable[..., Tile]:
    def dots(tile: Tile, rows: Sequence[Value], w: Value, count: int) -> Tile:
        """The tile plus `count` groups of weights from w on, times the 4 bytes a group from each row's address on."""
        out = list(tile)
        for g in range(count):
            out = [Value(w.b, v) for v in in_order(w.b, [value.v for value in out], count)]
            columns = row_vectors(w + g * PITCH, weights)
            for t, row in enumerate(rows):
                x = (row + 4 * g).load_splat(I32T).bits(weights)
                for rv, column in enumerate(columns):
                    i = t * ROW_VECS + rv
                    out[i] = Value(w.b, emit(w.b, out[i].v, column.v, x.v))
        return out

    return dots


def _emit_fma(b: Any, acc: Any, x: Any, y: Any) -> Any:
    return call(b, f"llvm.fma.v{LANES}f32", F32V, [x, y, acc])


_dot4 = _make_dots(emit_dot4, I8V)


def tile_dot4(tile: Tile, rows: Sequence[Value], w: Value, count: int, most: int = 127) -> Tile:
    """The tile plus `count` groups of unsigned weights, none above `most`, times activations: see `_make_dots`.

    AVX2 sums pairs of products in int16, which then take two more instructions to get to int32; of small weights
    several such sums fit in an int16 first.
    """
    fit = (2**15 - 1) // (2 * 127 * most)
    if ISA != "avx2" or fit < 2:
        return _dot4(tile, rows, w, count)
    out = list(tile)
    ones = Value(w.b, ir.Constant(I16V, [1] * I16V.count))
    for first in range(0, count, fit):
        sums = _pair_sums(rows, w, range(first, min(first + fit, count)), count)
        out = _widened(out, sums, [ones] * ROW_VECS)
    return out


def _pair_sums(rows: Sequence[Value], w: Value, groups: range, tied: int) -> Tile:
    """int16 sums of pairs of products over some groups, which fit; kept in order as those of `tied` groups are."""
    sums: list[Any] = [None] * (ROW_VECS * len(rows))
    for g in groups:
        sums = in_order(w.b, sums, tied)
        columns = row_vectors(w + g * PITCH, I8V)
        for t, row in enumerate(rows):
            x = (row + 4 * g).load_splat(I32T).bits(I8V)
            for rv, column in enumerate(columns):
                i = t * ROW_VECS + rv
                pairs = emit_pair_sums(w.b, column.v, x.v)
                sums[i] = pairs if sums[i] is None else w.b.add(sums[i], pairs)
    return [Value(w.b, v) for v in sums]


def _widened(tile: Tile, sums: Tile, by: Sequence[Value]) -> Tile:
    """The tile plus sums of pairs times int16, one vector of those a row vector."""
    pairs = enumerate(zip(tile, sums, strict=True))
    return [Value(t.b, emit_dot2(t.b, t.v, s.v, by[i % ROW_VECS].v)) for i, (t, s) in pairs]


def tile_dot4_scaled(tile: Tile, rows: Sequence[Value], w: Value, count: int, scales: Value) -> Tile:
    """On AVX2, `tile_dot4` of so few small weights that int16 hold all sums, times int16 pairs of a scale a row."""
    return _widened(tile, _pair_sums(rows, w, range(count), 8), row_vectors(scales, I16V))


tile_dot4s = _make_dots(emit_dot4 if BIASED else emit_dot4s, I8V)  # signed weights, plus 128 where BIASED
tile_dot2 = _make_dots(emit_dot2, I16V)
tile_fma = _make_dots(_emit_fma, F32V)


def tile_scale(total: Tile, part: Tile, scales: Value) -> Tile:
    """total + part * scales: an int32 tile times one float32 a row, from the row vectors at `scales`."""
    by = row_vectors(scales, F32V)
    return [fma(p.to_f32(), by[i % ROW_VECS], t) for i, (t, p) in enumerate(zip(total, part, strict=True))]


def tile_store(outs: Sequence[Value], tile: Tile, keep: Value) -> None:
    """Write a float32 tile to its output rows; add it to what is there if keep is not 0."""
    b = keep.b
    kept = b.sext(b.icmp_signed("!=", keep.v, I64T(0)), I32T)
    mask = Value(b, splat(b, kept, LANES))  # a select would become a branch around each load
    for t, row in enumerate(outs):
        for rv in range(ROW_VECS):
            at = row + rv * VEC_BYTES
            before = (at.load(I32V) & mask).bits(F32V)
            at.store(before + tile[t * ROW_VECS + rv])


# --- which tokens -------------------------------------------------------------------------------------------


def _indexed(base: Value, stride: Value, indices: Value, i: Value) -> Value:
    return base + (indices + i * 4).load(I32T).signed(I64T) * stride


def token_rows(n: int, base: Value, stride: Value, indices: Value, first: Value, end: Value) -> list[Value]:
    """Addresses base + int32(indices[i]) * stride of `n` tokens from `first`; past `end` the last one is repeated."""
    last = end - 1
    wanted = [first + t for t in range(n)]
    return [_indexed(base, stride, indices, (i < last).choose(i, last)) for i in wanted]


def output_rows(
    n: int, base: Value, stride: Value, indices: Value, first: Value, end: Value, spare: Value
) -> list[Value]:
    """As `token_rows`, but token t past `end` gets row t of the spare rows (`ROWS` float32 each)."""
    rows = []
    for t in range(n):
        i = first + t
        inside = i < end
        row = _indexed(base, stride, indices, inside.choose(i, i - i))
        rows.append(inside.choose(row, spare + t * PITCH))
    return rows


# --- reading many rows at once --------------------------------------------------------------------------------


def _shuffle(x: Value, y: Value, pattern: tuple[int, ...]) -> Value:
    """Shuffle inside each 128-bit part; `pattern` counts x's four lanes from 0 and y's from 4."""
    picks = [4 * part + p if p < 4 else LANES + 4 * part + p - 4 for part in range(LANES // 4) for p in pattern]
    return Value(x.b, x.b.shuffle_vector(x.v, y.v, ir.Constant(ir.VectorType(I32T, LANES), picks)))


def _join(parts: list[Value]) -> Value:
    """The vectors end to end."""
    b = parts[0].b
    while len(parts) > 1:
        n = 2 * parts[0].v.type.count
        both = ir.Constant(ir.VectorType(I32T, n), list(range(n)))
        parts = [Value(b, b.shuffle_vector(x.v, y.v, both)) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _transposed(v: list[Value]) -> list[Value]:
    """Vector d holds dword d of each 128-bit part of the four vectors."""
    low = [_shuffle(v[j], v[j + 1], (0, 4, 1, 5)) for j in (0, 2)]
    high = [_shuffle(v[j], v[j + 1], (2, 6, 3, 7)) for j in (0, 2)]
    return [_shuffle(x, y, pattern) for x, y in (low, high) for pattern in ((0, 1, 4, 5), (2, 3, 6, 7))]


def gather16(address: Value, step: Value) -> list[Value]:
    """The 16 bytes at address + i * step of each lane i, as four vectors: dword 0 of all lanes, dword 1, 2 and 3."""
    quad = ir.VectorType(I32T, 4)
    return _transposed([_join([(address + step * i).load(quad) for i in range(j, LANES, 4)]) for j in range(4)])


def gather32(address: Value, step: Value) -> list[Value]:
    """`gather16` of 32 bytes, as eight vectors: half the loads, and four instructions a vector instead of five."""
    if LANES == 4:
        return gather16(address, step) + gather16(address + 16, step)
    octet, b = ir.VectorType(I32T, 8), address.b
    halves = []
    for first in (0, LANES // 2):
        rows = [range(first + j, first + LANES // 2, 4) for j in range(4)]
        halves.append(_transposed([_join([(address + step * i).load(octet) for i in row]) for row in rows]))
    picks = [[4 * part + i for part in range(odd, LANES // 2, 2) for i in range(4)] for odd in (0, 1)]
    masks = [ir.Constant(ir.VectorType(I32T, LANES), pick) for pick in picks]
    return [Value(b, b.shuffle_vector(x.v, y.v, mask)) for mask in masks for x, y in zip(*halves, strict=True)]


def store_vectors(target: Value, vectors: Sequence[Value], step: int = 1) -> None:
    """Store vectors one after the other, `step` groups apart."""
    for i, vector in enumerate(vectors):
        (target + i * step * PITCH).store(vector)
