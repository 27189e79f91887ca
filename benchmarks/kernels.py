"""Speed of the matrix-vector kernels: one JSON line a type, GB/s of weights read, beside a plain read loop.

    python benchmarks/kernels.py [TYPE ...] [--cols 2048] [--mb 192] [--runs 12] [--markdown MACHINE]

`one` and `two` are from memory on one and two threads, `cache` is 256 KB again and again on one thread, `read_*` the
same bytes summed as float32 with nothing else done, and `share` is `two` / `read_two`: runs of both alternate, so that
a busy machine slows both; `share_one` is the same on one thread. Best of `--runs`. With `--markdown`, rows for
RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from localmoe.jit import kernel_address, njit
from localmoe.kernels.limits import read_span
from localmoe.kernels.simd import call_address
from localmoe.kernels.table import KERNELS, MATVEC_ARGS, matvec_address
from localmoe.target import isa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.markdown import heading, row
from tests import naive


def read_rows(w: int, act: int, out: int, r0: int, r1: int, n_bytes: int) -> None:  # noqa: ARG001
    """Sum rows of `n_bytes` as float32, with a matvec's arguments."""
    read_span(w + r0 * n_bytes, (r1 - r0) * n_bytes, out + 4 * r0)


@njit
def repeat(kernel: int, w: int, act: int, out: int, r0: int, r1: int, n: int, times: int) -> None:
    for _ in range(times):
        call_address(kernel, (w, act, out, r0, r1, n))


def seconds(work: Callable[..., None], n_threads: int, rows: int) -> float:
    """Wall time of `work(first row, end)` on `n_threads` threads that share the rows."""
    cuts = [rows * i // n_threads for i in range(n_threads + 1)]
    others = [threading.Thread(target=work, args=(cuts[i], cuts[i + 1])) for i in range(1, n_threads)]
    start = time.perf_counter()
    for thread in others:
        thread.start()
    work(cuts[0], cuts[1])
    for thread in others:
        thread.join()
    return time.perf_counter() - start


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on 64 bytes, as the engine's buffers do."""
    room = np.empty(array.size + 64, np.uint8)
    copy = room[-room.ctypes.data % 64 :][: array.size]
    copy[:] = array
    return copy


def measure(kind: GGMLQuantizationType, cols: int, n_bytes: int, runs: int) -> dict[str, float | str]:
    """Best GB/s of one type's kernel and of the read loop."""
    block, size = GGML_QUANT_SIZES[kind]
    row_bytes = cols // block * size
    rows, few = n_bytes // row_bytes, max(1, (256 << 10) // row_bytes)
    rng = np.random.default_rng(0)
    some = naive.random_weights(kind, 64, cols, rng)
    w = np.tile(some, (rows // 64 + 1, 1))[:rows]
    act = aligned(naive.activation_row(KERNELS[kind].act, rng.normal(size=cols).astype(np.float32)))
    out = np.zeros(rows, np.float32)
    programs = {"": (matvec_address(kind), cols), "read_": (kernel_address(read_rows, MATVEC_ARGS), row_bytes)}

    best: dict[str, float] = {}

    def note(name: str, total: int, taken: float) -> None:
        best[name] = max(best.get(name, 0.0), total / taken / 1e9)

    for _ in range(runs):
        for prefix, (kernel, n) in programs.items():

            def work(r0: int, r1: int, times: int = 1, kernel: int = kernel, n: int = n) -> None:
                repeat(kernel, w.ctypes.data, act.ctypes.data, out.ctypes.data, r0, r1, n, times)

            note(prefix + "one", w.nbytes, seconds(work, 1, rows))
            note(prefix + "two", w.nbytes, seconds(work, 2, rows))
            start = time.perf_counter()
            work(0, few, 20)
            note(prefix + "cache", few * row_bytes * 20, time.perf_counter() - start)
    figures = {name: round(value, 1) for name, value in sorted(best.items())}
    return {"kernel": "matvec", "type": kind.name, "cols": cols, "isa": isa(), **figures,
            "share": round(best["two"] / best["read_two"], 3),
            "share_one": round(best["one"] / best["read_one"], 3)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--mb", type=int, default=192)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--markdown", metavar="MACHINE")
    args = parser.parse_args()
    if args.markdown:
        print(heading(["type", "two threads, GB/s", "share", "one thread, GB/s", "share", "in cache, GB/s"]))
    for kind in [GGMLQuantizationType[name] for name in args.types] or list(KERNELS):
        line = measure(kind, args.cols, args.mb << 20, args.runs)
        cells = [line[name] for name in ("type", "two", "share", "one", "share_one", "cache")]
        print(row(args.markdown, cells) if args.markdown else json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
