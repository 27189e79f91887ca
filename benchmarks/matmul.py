"""Speed of the matrix kernels for many tokens: one JSON line a type, GMAC/s on one core, beside the core's peak.

    python benchmarks/matmul.py [TYPE ...] [--cols 2048] [--rows 1024] [--tokens 8 16 32 128] [--seconds 0.2]

Wall time of the best of all runs that fit into `--seconds`. `peak` is a loop of nothing but the dot product (or FMA)
instruction on registers, measured beside each type; `share` is GMAC/s over it. AVX2 has no such instruction for
integers, so there both are left out. 1024 rows of 2048 stay in the caches; `--rows 65536` reads them from memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from localmoe.jit import isa, njit
from localmoe.kernels.limits import peak
from localmoe.kernels.matmul_driver import matmul_scratch_bytes
from localmoe.kernels.simd import call_address
from localmoe.kernels.table import KERNELS, matmul_address

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests import naive


@njit
def repeat(times: int, kernel: int, args: tuple[int, ...]) -> None:
    for _ in range(times):
        call_address(kernel, args)


def best(work: Callable[[], None], seconds: float) -> float:
    """The shortest time of `work` in as many runs as fit."""
    work()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def measure(
    kind: GGMLQuantizationType, rows: int, cols: int, tokens: list[int], seconds: float
) -> dict[str, float | str]:
    """GMAC/s of one type's kernel for each number of tokens."""
    rng, most = np.random.default_rng(0), max(tokens)
    raw = np.tile(naive.random_weights(kind, 64, cols, rng), (-(-rows // 64), 1))
    row = naive.activation_row(KERNELS[kind].act, rng.normal(size=cols).astype(np.float32))
    stride = -(-row.size // 64) * 64
    act = np.zeros((most, stride), np.uint8)
    act[:, : row.size] = row
    out, index = np.zeros((most, rows), np.float32), np.arange(most, dtype=np.int32)
    memory = np.zeros(matmul_scratch_bytes(cols) + 64, np.uint8)
    scratch = memory.ctypes.data + -memory.ctypes.data % 64
    address = matmul_address(kind)
    top = peak("float" if KERNELS[kind].block == 1 else "int", 1)
    times = max(1, (1 << 20) // (rows * cols))
    line: dict[str, float | str] = {"type": kind.name, "isa": isa(), "cols": cols, "rows": rows}
    if top:
        line["peak"] = round(top)
    for n in tokens:
        args = (
            raw.ctypes.data, act.ctypes.data, stride, index.ctypes.data, out.ctypes.data, out.strides[0],
            index.ctypes.data, n, 0, rows, cols, scratch,
        )  # fmt: skip
        speed = rows * cols * n * times / best(partial(repeat, times, address, args), seconds) / 1e9
        line[f"gmacs_{n}"] = round(speed, 1)
        if top:
            line[f"share_{n}"] = round(speed / top, 3)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=[kind.name for kind in KERNELS])
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 16, 32, 128])
    parser.add_argument("--seconds", type=float, default=0.2)
    options = parser.parse_args()
    for name in options.types:
        kind = GGMLQuantizationType[name]
        print(json.dumps(measure(kind, options.rows, options.cols, options.tokens, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
