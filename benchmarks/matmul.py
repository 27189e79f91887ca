"""Speed of the matrix kernels for many tokens: one JSON line a type, GMAC/s on one core, beside the core's peak.

    python benchmarks/matmul.py [TYPE ...] [--cols 2048] [--kb 512] [--tokens 8 16 32 128 512] [--seconds 0.2]
                                [--memory 8 16 32] [--mb 192] [--markdown MACHINE]

Wall time of the best of all runs that fit into `--seconds`. `peak` is a loop of nothing but the dot product (or FMA)
instruction on registers, the best of some beside each type; `share` is GMAC/s over it. For integers AVX2 takes three
instructions, and fewer for small weights, whose share may exceed 1; plain vectors have no peak. `--kb` of weights stay
in the second-level cache. With `--memory`, weights of `--mb` are read from memory by two threads, in turn with a loop
that only reads them: `gbs_N` is GB/s of weights with N tokens and `read_share_N` its share of that loop's. With
`--markdown`, rows for RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from localmoe.jit import njit
from localmoe.kernels.limits import peak, read_speed
from localmoe.kernels.limits import seconds as wall_seconds
from localmoe.kernels.shapes import MATMUL_SCRATCH
from localmoe.kernels.simd import call_address
from localmoe.kernels.table import KERNELS, matmul_address
from localmoe.target import isa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.markdown import heading, row
from tests import naive

THREADS = 2  # of what is read from memory
MEMORY_CELLS = {"gbs": ".1f", "read_share": ".2f"}


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


@dataclass(frozen=True)
class Product:
    """One type's matrix of at least `n_bytes`, activations for `most` tokens, and room for the results."""

    kind: GGMLQuantizationType
    cols: int
    raw: np.ndarray
    act: np.ndarray
    out: np.ndarray
    index: np.ndarray
    scratch: np.ndarray

    @classmethod
    def make(cls, kind: GGMLQuantizationType, cols: int, n_bytes: int, most: int) -> Product:
        rng = np.random.default_rng(0)
        some = naive.random_weights(kind, 64, cols, rng)
        raw = np.tile(some, (max(1, n_bytes // some.nbytes), 1))
        row = naive.activation_row(KERNELS[kind].act, rng.normal(size=cols).astype(np.float32))
        act = np.zeros((most, -(-row.size // 64) * 64), np.uint8)
        act[:, : row.size] = row
        scratch = np.zeros((THREADS, MATMUL_SCRATCH + 64), np.uint8)
        return cls(
            kind, cols, raw, act, np.zeros((most, len(raw)), np.float32), np.arange(most, dtype=np.int32), scratch
        )

    def call(self, n_tok: int, r0: int, r1: int, times: int = 1, thread: int = 0) -> Callable[[], None]:
        """What multiplies rows r0..r1 with n_tok tokens, `times` times."""
        room = self.scratch[thread].ctypes.data
        index, out = self.index.ctypes.data, self.out
        args = (
            self.raw.ctypes.data, self.act.ctypes.data, self.act.strides[0], index, out.ctypes.data, out.strides[0],
            index, n_tok, r0, r1, self.cols, room + -room % 64,
        )  # fmt: skip
        return partial(repeat, times, matmul_address(self.kind), args)

    def parts(self, n_tok: int) -> list[Callable[[], None]]:
        """The whole product as one call a thread."""
        cuts = [len(self.raw) * i // THREADS for i in range(THREADS + 1)]
        return [self.call(n_tok, cuts[i], cuts[i + 1], thread=i) for i in range(THREADS)]


def measure(kind: GGMLQuantizationType, cols: int, kb: int, tokens: list[int], seconds: float) -> dict[str, Any]:
    """GMAC/s of one type's kernel on one thread for each number of tokens, weights in the cache."""
    product = Product.make(kind, cols, kb << 10, max(tokens))
    rows = len(product.raw)
    times = max(1, (1 << 24) // (rows * cols))  # a call from Python costs as much as a few rows
    tops, speeds = [peak(unit(kind), 1)], {}
    for n in tokens:
        speeds[n] = rows * cols * n * times / best(product.call(n, 0, rows, times), seconds) / 1e9
        tops.append(peak(unit(kind), 1))  # one alone may fall where something else runs
    line: dict[str, Any] = {"type": kind.name, "isa": isa(), "cols": cols, "rows": rows}
    if top := max(tops):
        line["peak"] = round(top)
    for n, speed in speeds.items():
        line[f"gmacs_{n}"] = round(speed, 1)
        if top:
            line[f"share_{n}"] = round(speed / top, 3)
    return line


def unit(kind: GGMLQuantizationType) -> str:
    """Which peak a type is measured by."""
    return "float" if KERNELS[kind].block == 1 else "int"


def measure_memory(kind: GGMLQuantizationType, cols: int, mb: int, tokens: list[int], runs: int = 6) -> dict[str, Any]:
    """GB/s on two threads with weights from memory, beside the read loop's; the best of runs in turn."""
    product = Product.make(kind, cols, mb << 20, max(tokens))
    for n in tokens:
        product.call(n, 0, 64)()
    read, taken = 0.0, dict.fromkeys(tokens, float("inf"))
    for _ in range(runs):
        read = max(read, read_speed([product.raw.reshape(-1)], THREADS))
        for n in tokens:
            taken[n] = min(taken[n], wall_seconds(product.parts(n)))
    line: dict[str, Any] = {"read": round(read, 1)}
    for n in tokens:
        speed = product.raw.nbytes / taken[n] / 1e9
        line[f"gbs_{n}"], line[f"read_share_{n}"] = round(speed, 1), round(speed / read, 3)
    return line


def cells(line: dict[str, Any], tokens: list[int], memory: list[int]) -> list[object]:
    """A row of the table whose heading `main` prints."""
    speeds = ", ".join(str(round(line[f"gmacs_{n}"])) for n in tokens)
    found = [line["type"], line.get("peak", ""), speeds, ", ".join(f"{line.get(f'share_{n}', 0):.2f}" for n in tokens)]
    if memory:
        found.append(line["read"])
        found += [", ".join(f"{line[f'{key}_{n}']:{form}}" for n in memory) for key, form in MEMORY_CELLS.items()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=[kind.name for kind in KERNELS])
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--kb", type=int, default=512)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 16, 32, 128, 512])
    parser.add_argument("--memory", type=int, nargs="*", default=[])
    parser.add_argument("--mb", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--markdown", metavar="MACHINE")
    options = parser.parse_args()
    if options.markdown:
        at, beside = (", ".join(map(str, counts)) for counts in (options.tokens, options.memory))
        names = ["type", "peak", f"GMAC/s at {at} tokens", "share of the peak"]
        if beside:
            names += ["read loop, GB/s", f"from memory at {beside} tokens, GB/s", "share of the read loop"]
        print(heading(names))
    for name in options.types:
        kind = GGMLQuantizationType[name]
        line = measure(kind, options.cols, options.kb, options.tokens, options.seconds)
        if options.memory:
            line |= measure_memory(kind, options.cols, options.mb, options.memory)
        text = row(options.markdown, cells(line, options.tokens, options.memory)) if options.markdown else None
        print(text or json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
