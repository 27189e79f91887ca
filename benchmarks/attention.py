"""Speed of the attention kernels alone: one JSON line a cache type, number of query rows and head size.

    python benchmarks/attention.py [f16 q8_0 f32] [--rows 1,4,8] [--dims 64,128] [--mb 192] [--runs 8]

`k_gbs` and `v_gbs` are GB/s of keys and values read from memory on two threads, `k_share` and `v_share` those beside a
plain read loop over as many bytes in the same run; `k_gmacs` and `v_gmacs` are GMAC/s on one thread with a block of
positions in cache. Best of `--runs`.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from kernels import read_rows, seconds

from localmoe.jit import kernel_address, njit
from localmoe.kernels.shapes import K_BLOCK, act_bytes, k_block_bytes, padded, v_row_bytes
from localmoe.kernels.simd import call_address
from localmoe.kernels.table import scores_address, values_address
from localmoe.target import isa

POSITIONS = 512  # a block of attention


@njit
def many_scores(kernel: int, q: int, q_stride: int, k: int, s: int, n_block: int, step: int, head_dim: int) -> None:
    """Scores of n_block blocks of POSITIONS keys, `step` bytes apart."""
    for i in range(n_block):
        call_address(kernel, (q, q_stride, k + i * step, s, 4 * POSITIONS, POSITIONS, head_dim))


@njit
def many_values(kernel: int, s: int, v: int, acc: int, width: int, n_block: int, step: int, head_dim: int) -> None:
    for i in range(n_block):
        call_address(kernel, (s, 4 * POSITIONS, v + i * step, acc, 4 * width, POSITIONS, head_dim))


@njit
def plain_read(kernel: int, at: int, out: int, n_block: int, step: int) -> None:
    call_address(kernel, (at, 0, out, 0, n_block, step))


def measure(kind: str, rows: int, dim: int, n_bytes: int, runs: int) -> dict[str, Any]:
    """Best figures of one kind of cache."""
    steps = {"k": k_block_bytes(kind, dim) * POSITIONS // K_BLOCK, "v": v_row_bytes(kind, dim) * POSITIONS}
    n_block = n_bytes // max(steps.values())
    memory = np.zeros(n_bytes + 65536, np.uint8)
    memory[:] = 1
    q = np.zeros((rows, act_bytes("f32", dim)), np.uint8)
    q_stride = act_bytes("q8_0", dim) if kind == "q8_0" else 4 * dim
    s = np.zeros((2, rows, POSITIONS), np.float32)
    acc = np.zeros((2, rows, padded(dim)), np.float32)
    sums = np.zeros(n_block, np.float32)
    kernels = {"k": scores_address(kind, rows), "v": values_address(kind, rows)}
    reader = kernel_address(read_rows, 6)
    out: dict[str, float] = {}

    def run(part: str, first: int, last: int, step: int) -> None:
        at, mine = memory.ctypes.data + first * steps[part], min(first, 1)
        if part == "k":
            many_scores(kernels["k"], q.ctypes.data, q_stride, at, s[mine].ctypes.data, last - first, step, dim)
        else:
            many_values(
                kernels["v"], s[mine].ctypes.data, at, acc[mine].ctypes.data, padded(dim), last - first, step, dim
            )

    def plain(first: int, last: int, step: int) -> None:
        plain_read(reader, memory.ctypes.data + first * step, sums.ctypes.data, last - first, step)

    for _ in range(runs):
        for part, step in steps.items():
            total = n_block * step / 1e9
            taken = seconds(lambda a, b, part=part, step=step: run(part, a, b, step), 2, n_block)
            out[f"{part}_gbs"] = max(out.get(f"{part}_gbs", 0.0), total / taken)
            taken = seconds(lambda a, b, step=step: plain(a, b, step), 2, n_block)
            out[f"{part}_read"] = max(out.get(f"{part}_read", 0.0), total / taken)
            start = time.perf_counter()
            run(part, 0, 200, 0)
            gmacs = 200 * POSITIONS * rows * dim / (time.perf_counter() - start) / 1e9
            out[f"{part}_gmacs"] = max(out.get(f"{part}_gmacs", 0.0), gmacs)
    shares = {f"{part}_share": round(out[f"{part}_gbs"] / out[f"{part}_read"], 3) for part in steps}
    figures = {name: round(value, 1) for name, value in sorted(out.items())}
    return {"kernel": "attention", "type": kind, "rows": rows, "head_dim": dim, "isa": isa(), **figures, **shares}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", default=["f16", "q8_0", "f32"])
    parser.add_argument("--rows", type=numbers, default=[1, 4, 8])
    parser.add_argument("--dims", type=numbers, default=[64, 128])
    parser.add_argument("--mb", type=int, default=192)
    parser.add_argument("--runs", type=int, default=8)
    args = parser.parse_args()
    for kind in args.types:
        for rows in args.rows:
            for dim in args.dims:
                print(json.dumps(measure(kind, rows, dim, args.mb << 20, args.runs)), flush=True)


if __name__ == "__main__":
    main()
