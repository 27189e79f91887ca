"""Matrix kernels for many tokens against gguf-py's decoding and float64 sums, on every instruction set there is."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from localmoe.kernels.matmul_few import FEW
from localmoe.kernels.shapes import MATMUL_SCRATCH, ROWS
from localmoe.kernels.table import KERNELS, MATMUL_ARGS, matmul_address
from localmoe.target import isa
from tests import naive

TYPES = list(KERNELS)
UNTOUCHED = np.float32(-7.5)


def kernel(kind: GGMLQuantizationType) -> Callable[..., None]:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * MATMUL_ARGS)(matmul_address(kind))


def aligned(n_bytes: int) -> np.ndarray:
    memory = np.full(n_bytes + 64, 0xFF, np.uint8)  # NaN wherever a kernel reads what it has not written
    return memory[-memory.ctypes.data % 64 :][:n_bytes]


def activation_rows(fmt: str, x: np.ndarray) -> np.ndarray:
    """Rows of x in the format `fmt`, each padded to a multiple of 64 bytes."""
    rows = [naive.activation_row(fmt, row) for row in x]
    table = aligned(len(rows) * -(-rows[0].size // 64) * 64).reshape(len(rows), -1)
    table[:, : rows[0].size] = rows
    return table


def multiply(
    kind: GGMLQuantizationType, weights: int, act: np.ndarray, inputs: list[int], outputs: list[int],
    rows: tuple[int, int], shape: tuple[int, int],
) -> np.ndarray:  # fmt: skip
    """The output table of one kernel call, `shape` being that of the weights."""
    out = np.full((max(outputs) + 2, shape[0]), UNTOUCHED)
    in_idx, out_idx = np.array(inputs, np.int32), np.array(outputs, np.int32)
    scratch = aligned(MATMUL_SCRATCH)
    kernel(kind)(
        weights, act.ctypes.data, act.shape[1], in_idx.ctypes.data, out.ctypes.data, out.strides[0],
        out_idx.ctypes.data, len(inputs), *rows, shape[1], scratch.ctypes.data,
    )  # fmt: skip
    return out


def widths(block: int) -> list[int]:
    return [1, 7, 100, 576, 2048] if block == 1 else [block, 3 * block, 2048]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_products_equal_the_reference_for_random_blocks(kind: GGMLQuantizationType) -> None:
    """Every number of tokens a tile can be cut to, rows that fill no register, tokens in any order, long rows."""
    fmt, rng = KERNELS[kind].act, np.random.default_rng(0)
    n_rows, n_inputs = 2 * ROWS + 11, 40
    for cols in widths(KERNELS[kind].block):
        raw = naive.random_weights(kind, n_rows, cols, rng)
        x = rng.normal(size=(n_inputs, cols)).astype(np.float32)
        act = activation_rows(fmt, x)
        expected = np.stack([naive.products(kind, raw, fmt, row) for row in x])
        got, wanted = [], []  # judged together: one product alone may be next to nothing
        for n_tok in (1, 2, 3, 5, 8, 9, 17, 33):
            r0, r1 = [(0, n_rows), (3, 2 * ROWS + 3), (1, 2), (5, ROWS + 2)][n_tok % 4]
            inputs, outputs = rng.integers(0, n_inputs, n_tok).tolist(), rng.permutation(n_tok + 3)[:n_tok].tolist()
            out = multiply(kind, raw.ctypes.data, act, inputs, outputs, (r0, r1), (n_rows, cols))
            got.append(out[outputs, r0:r1].ravel())
            wanted.append(expected[inputs, r0:r1].ravel())
            out[outputs, r0:r1] = UNTOUCHED
            assert (out == UNTOUCHED).all()
        assert naive.nmse(np.concatenate(got), np.concatenate(wanted)) <= 1e-12


QUANTIZED = [kind for kind in TYPES if KERNELS[kind].block > 1]  # floats have no integer sums


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_extreme_weights_and_activations_do_not_overflow(kind: GGMLQuantizationType) -> None:
    """Blocks of one repeated byte, among them all bits set, and all activations at +-127."""
    fmt, cols, fill = KERNELS[kind].act, 512, [0xFF, 0x80, 0x00, 0x7F, 0x0F, 0xF0]
    raw = naive.random_weights(kind, len(fill), cols, np.random.default_rng(1))
    for row, byte in zip(raw, fill, strict=True):
        naive.fill_but_scales(kind, row, byte)
    x = np.array([np.ones(cols), -np.ones(cols), np.where(np.arange(cols) % 3, 1, -1)], np.float32)
    out = multiply(
        kind, raw.ctypes.data, activation_rows(fmt, x), [0, 1, 2], [0, 1, 2], (0, len(fill)), (len(fill), cols)
    )
    expected = np.stack([naive.products(kind, raw, fmt, row) for row in x])
    assert naive.nmse(out[:3], expected) <= 1e-12


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_result_depends_on_its_row_and_token_alone(kind: GGMLQuantizationType) -> None:
    """The same bits however rows are split among threads and whatever other tokens are there."""
    rng = np.random.default_rng(2)
    shape = (ROWS + 9, 1280)
    raw = naive.random_weights(kind, *shape, rng)
    act = activation_rows(KERNELS[kind].act, rng.normal(size=(11, shape[1])).astype(np.float32))
    tokens = list(range(11))
    whole = multiply(kind, raw.ctypes.data, act, tokens, tokens, (0, shape[0]), shape)
    for r0, r1 in ((0, 5), (5, ROWS + 9)):
        part = multiply(kind, raw.ctypes.data, act, tokens, tokens, (r0, r1), shape)
        np.testing.assert_array_equal(part[:11, r0:r1], whole[:11, r0:r1])
    if KERNELS[kind].block == 1:  # float sums of a few tokens have an order of their own
        few = multiply(kind, raw.ctypes.data, act, tokens[:FEW], tokens[:FEW], (0, shape[0]), shape)
        assert naive.nmse(few[:FEW, : shape[0]], whole[:FEW, : shape[0]]) <= 1e-12
        whole = few
    for token in (0, FEW - 1):
        alone = multiply(kind, raw.ctypes.data, act, [token], [0], (0, shape[0]), shape)
        np.testing.assert_array_equal(alone[0], whole[token])


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_nan_in_the_activations_comes_out_for_its_token_alone(kind: GGMLQuantizationType) -> None:
    fmt, cols = KERNELS[kind].act, 512
    raw = naive.random_weights(kind, 3, cols, np.random.default_rng(3))
    act = activation_rows(fmt, np.ones((2, cols), np.float32))
    act[1].view(np.float32)[{"f32": 0, "q8_0": cols // 4, "q8_k": cols // 4}[fmt]] = np.nan
    out = multiply(kind, raw.ctypes.data, act, [0, 1], [0, 1], (0, 3), (3, cols))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


@pytest.mark.skipif(sys.platform == "win32", reason="protects a page through mprotect")
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_nothing_is_read_outside_of_the_matrix(kind: GGMLQuantizationType) -> None:
    """Rows between two pages that may not be touched, once against each: a read outside kills the process."""
    n_rows, page = ROWS + 3, mmap.PAGESIZE
    cols = 768 if KERNELS[kind].block > 1 else 77
    raw = naive.random_weights(kind, n_rows, cols, np.random.default_rng(4)).reshape(-1)
    inside = -(-raw.size // page) * page
    view = np.frombuffer(mmap.mmap(-1, inside + 2 * page), np.uint8)
    protect = ctypes.CDLL(None).mprotect
    for guard in (view.ctypes.data, view.ctypes.data + page + inside):
        assert protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    act = activation_rows(KERNELS[kind].act, np.ones((3, cols), np.float32))
    expected = multiply(kind, raw.ctypes.data, act, [0, 1, 2], [0, 1, 2], (0, n_rows), (n_rows, cols))
    for start in (page, page + inside - raw.size):
        view[start : start + raw.size] = raw
        out = multiply(kind, view.ctypes.data + start, act, [0, 1, 2], [0, 1, 2], (0, n_rows), (n_rows, cols))
        np.testing.assert_array_equal(out, expected)


def test_rows_that_are_not_there_are_zeros() -> None:
    """What an earlier product left there may read as numbers so small that a processor stops for each."""
    cols, n_rows = 2048, 8
    rng = np.random.default_rng(8)
    weights, act = aligned(4 * n_rows * cols), aligned(4 * 16 * cols)
    weights[:] = rng.normal(size=n_rows * cols).astype(np.float32).view(np.uint8)
    scratch, ids, out = aligned(MATMUL_SCRATCH), np.arange(16, dtype=np.int32), np.zeros((16, n_rows), np.float32)
    scratch[:] = 0x01
    kernel(GGMLQuantizationType.F32)(
        weights.ctypes.data, act.ctypes.data, 4 * cols, ids.ctypes.data, out.ctypes.data, out.strides[0],
        ids.ctypes.data, 16, 0, n_rows, cols, scratch.ctypes.data,
    )  # fmt: skip
    lanes = scratch[: ROWS * 4 * 256].view(np.float32).reshape(-1, ROWS)  # a chunk's 256 columns
    assert lanes[:, :n_rows].any()
    assert not lanes[:, n_rows:].any()


def test_scratch_is_small() -> None:
    assert MATMUL_SCRATCH <= 128 << 10
    assert MATMUL_SCRATCH % 64 == 0


def other_isas() -> list[str]:
    """The instruction sets this machine can run besides the one under test."""
    features = llvm.get_host_cpu_features()
    names = [name for name, needs in (("avx2", "avx2"), ("avxvnni", "avxvnni")) if features.get(needs)]
    return [name for name in [*names, "generic"] if name != isa()]


@pytest.mark.skipif("LOCALMOE_ISA" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("name", other_isas())
def test_other_instruction_sets_pass_the_same_tests(name: str) -> None:
    """This file in a process whose LOCALMOE_ISA is another."""
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)],
        env={**os.environ, "LOCALMOE_ISA": name},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
