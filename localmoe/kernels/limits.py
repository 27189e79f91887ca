"""What the machine could do at most: loops that only read memory, or only multiply, as compiled kernels.

`read_span` sums memory as float32 and does nothing else. `dots` and `fmas` are chains of nothing but the integer dot
product and the fused multiply-add on registers. `read_speed` and `peak` time them on any number of threads. AVX2's dot
product is three instructions; kernels exceed it where several sums of small weights fit in an int16.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from localmoe.jit import kernel_address, njit
from localmoe.kernels.clock import ticks
from localmoe.kernels.simd import (
    ISA,
    LANES,
    Vec,
    add,
    call_address,
    emit_dot4,
    hsum,
    ld_i64,
    make_constant,
    make_load,
    st_f32,
)
from localmoe.kernels.tile import F32V, I8V, I32V, Cells, Value, compiled, fma, in_order, loop, zero

HAS_DOT = ISA != "generic"  # plain vectors multiply and sum four bytes in many instructions
CHAINS, UNROLL = 12, 4
TURNS = 1_000_000  # some milliseconds: threads take a part of one to start
REST_S = 0.05  # before a loop: a session's threads spin for some milliseconds after a step, and would take part of it

_load = make_load(Vec("f32", 16))
_zero = make_constant(Vec("f32", 16), 0)


@njit(inline=True)
def read_span(at, n_bytes, out):  # type: ignore[no-untyped-def]
    """Sum `n_bytes` (whole 256s) from an address on as float32: what any kernel does at the least."""
    a0, a1, a2, a3 = _zero(), _zero(), _zero(), _zero()
    end = at + n_bytes - 255
    while at < end:
        a0 = add(a0, _load(at))
        a1 = add(a1, _load(at + 64))
        a2 = add(a2, _load(at + 128))
        a3 = add(a3, _load(at + 192))
        at += 256
    st_f32(out, hsum(add(add(a0, a1), add(a2, a3))))


def read_spans(spans: int, n: int, out: int) -> None:
    """`read_span` of n spans, (n, 2) int64 addresses and sizes."""
    for i in range(n):
        read_span(ld_i64(spans + 16 * i), ld_i64(spans + 16 * i + 8), out)


def _emit_dots(scratch: Value, turns: Value) -> None:
    x = scratch.load(I8V)
    sums = Cells([zero(scratch.b, I32V)] * CHAINS)
    with loop(scratch.b, turns):
        parts, y = sums.get(), x.v
        for _ in range(UNROLL):
            next_parts = []
            for part in parts:
                (y,) = in_order(x.b, [y], 8)  # a product of the same would be the same
                next_parts.append(Value(x.b, emit_dot4(x.b, part.v, y, y)))
            parts = next_parts
        sums.put(parts)
    for i, part in enumerate(sums.get()):
        (scratch + 64 * i).store(part)


def _emit_fmas(scratch: Value, turns: Value) -> None:
    x = scratch.load(F32V)
    sums = Cells([zero(scratch.b, F32V)] * CHAINS)
    with loop(scratch.b, turns):
        parts = sums.get()
        for _ in range(UNROLL):
            parts = [fma(x, x, part) for part in parts]
        sums.put(parts)
    for i, part in enumerate(sums.get()):
        (scratch + 64 * i).store(part)


_dots, _fmas = compiled(_emit_dots, 2), compiled(_emit_fmas, 2)


def dots(scratch: int, turns: int) -> None:
    _dots((scratch, turns))


def fmas(scratch: int, turns: int) -> None:
    _fmas((scratch, turns))


@njit
def run(kernel: int, args: tuple[int, ...]) -> None:
    """Call a kernel without the GIL."""
    call_address(kernel, args)


def seconds(works: Sequence[Callable[[], None]]) -> float:
    """Wall time of all of `works`, the first on this thread and each other on one of its own."""
    others = [threading.Thread(target=work) for work in works[1:]]
    start = time.perf_counter()
    for thread in others:
        thread.start()
    works[0]()
    for thread in others:
        thread.join()
    return time.perf_counter() - start


def read_speed(arrays: Sequence[npt.NDArray[np.uint8]], n_threads: int) -> float:
    """GB/s of the read loop over arrays, each shared out over the threads."""
    kernel, sums = kernel_address(read_spans, 3), np.zeros((n_threads, 16), np.float32)
    spans = np.zeros((n_threads, len(arrays), 2), np.int64)
    for i, array in enumerate(arrays):
        part = array.nbytes // n_threads // 256 * 256
        for thread in range(n_threads):
            spans[thread, i] = array.ctypes.data + thread * part, part
    works = [
        partial(run, kernel, (spans[thread].ctypes.data, len(arrays), sums[thread].ctypes.data))
        for thread in range(n_threads)
    ]
    run(kernel, (spans.ctypes.data, 0, sums.ctypes.data))  # compiled or loaded
    time.sleep(REST_S)
    return int(spans[:, :, 1].sum()) / seconds(works) / 1e9


def peak(kind: str, n_threads: int, runs: int = 5) -> float:
    """GMAC/s of "int" (the dot product; 0 for plain vectors) or "float" (FMA) on all threads."""
    if kind == "int" and not HAS_DOT:
        return 0.0
    kernel = kernel_address(dots if kind == "int" else fmas, 2)
    scratch = np.zeros((n_threads, 64 * CHAINS), np.uint8)
    works = [partial(run, kernel, (row.ctypes.data, TURNS)) for row in scratch]
    time.sleep(REST_S)
    seconds(works)
    macs = n_threads * TURNS * UNROLL * CHAINS * LANES * (4 if kind == "int" else 1)
    return macs / min(seconds(works) for _ in range(runs)) / 1e9


@njit
def now() -> int:
    """The clock that steps are timed by."""
    return ticks()
