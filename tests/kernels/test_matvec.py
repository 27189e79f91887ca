"""Matrix-vector kernels against gguf-py's decoding and float64 sums, on every instruction set the machine has."""

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

from localmoe.kernels.table import KERNELS, MATVEC_ARGS, matvec_address
from localmoe.target import isa
from tests import naive

TYPES = list(KERNELS)
ROWS = 9


def kernel(kind: GGMLQuantizationType) -> Callable[..., None]:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * MATVEC_ARGS)(matvec_address(kind))


def widths(block: int) -> list[int]:
    return [1, 7, 16, 100, 576, 2048] if block == 1 else [block, 3 * block, 2048, 2816]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_products_equal_the_reference_for_random_blocks(kind: GGMLQuantizationType) -> None:
    row = KERNELS[kind]
    rng = np.random.default_rng(0)
    errors, quantized_errors = [], []
    for cols in widths(row.block):
        raw = naive.random_weights(kind, ROWS, cols, rng)
        x = rng.normal(size=cols).astype(np.float32)
        act = naive.activation_row(row.act, x)
        out = np.full(ROWS, 7, np.float32)
        for r0, r1 in ((1, 4), (4, 4), (4, 8)):
            kernel(kind)(raw.ctypes.data, act.ctypes.data, out.ctypes.data, r0, r1, cols)
        assert out[[0, 8]].tolist() == [7, 7]
        weights = naive.weight_values(kind, raw)[1:8]
        errors.append(naive.nmse(out[1:8], naive.products(kind, raw[1:8], row.act, x)))
        if cols >= 576:
            quantized_errors.append(naive.nmse(out[1:8], weights @ x.astype(np.float64)))
    assert max(errors) <= 1e-12
    assert max(quantized_errors) < 3e-4


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_extreme_weights_and_activations_do_not_overflow(kind: GGMLQuantizationType) -> None:
    """All bits of the weights set or clear, all activations at +-127."""
    row = KERNELS[kind]
    cols = 1024
    x = np.where(np.arange(cols) % 3 == 0, -1, 1).astype(np.float32)
    act = naive.activation_row(row.act, x)
    raw = naive.random_weights(kind, 3, cols, np.random.default_rng(1))
    if row.block > 1:
        naive.fill_but_scales(kind, raw[0], 0xFF)
        naive.fill_but_scales(kind, raw[1], 0x80)
    out = np.zeros(3, np.float32)
    kernel(kind)(raw.ctypes.data, act.ctypes.data, out.ctypes.data, 0, 3, cols)
    assert naive.nmse(out, naive.products(kind, raw, row.act, x)) <= 1e-12


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_nan_in_the_activations_comes_out(kind: GGMLQuantizationType) -> None:
    row = KERNELS[kind]
    raw = naive.random_weights(kind, 2, 512, np.random.default_rng(2))
    act = naive.activation_row(row.act, np.ones(512, np.float32))
    act.view(np.float32)[{"f32": 0, "q8_0": 128, "q8_k": 128}[row.act]] = np.nan
    out = np.zeros(2, np.float32)
    kernel(kind)(raw.ctypes.data, act.ctypes.data, out.ctypes.data, 0, 2, 512)
    assert np.isnan(out).all()


@pytest.mark.skipif(sys.platform == "win32", reason="protects a page through mprotect")
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_nothing_is_read_outside_of_the_matrix(kind: GGMLQuantizationType) -> None:
    """Rows between two pages that may not be touched, once against each: a read outside kills the process."""
    row, page = KERNELS[kind], mmap.PAGESIZE
    cols = 768 if row.block > 1 else 777
    raw = naive.random_weights(kind, 3, cols, np.random.default_rng(3)).reshape(-1)
    inside = -(-raw.size // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    view = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None)
    for guard in (view.ctypes.data, view.ctypes.data + page + inside):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    act = naive.activation_row(row.act, np.ones(cols, np.float32))
    expected = naive.weight_values(kind, raw.reshape(3, -1)).sum(axis=1)
    for start in (page, page + inside - raw.size):
        view[start : start + raw.size] = raw
        out = np.zeros(3, np.float32)
        kernel(kind)(view.ctypes.data + start, act.ctypes.data, out.ctypes.data, 0, 3, cols)
        np.testing.assert_allclose(out, expected, rtol=2e-3, atol=1e-2)


def test_the_table_says_what_the_kernels_take() -> None:
    assert {kind.name: (row.act, row.block) for kind, row in KERNELS.items()} == {
        **dict.fromkeys(("F32", "F16", "BF16"), ("f32", 1)),
        **dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"), ("q8_0", 32)),
        **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ3_S", "IQ3_XXS"), ("q8_k", 256)),
        **dict.fromkeys(("IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0"), ("q8_k", 256)),
    }


def other_isas() -> list[str]:
    """The instruction sets this machine can run besides the one under test."""
    features = llvm.get_host_cpu_features()
    names = [name for name, needs in (("avx2", "avx2"), ("avxvnni", "avxvnni")) if features.get(needs)]
    return [name for name in [*names, "generic"] if name != isa()]


@pytest.mark.skipif("LOCALMOE_ISA" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("name", other_isas())
def test_other_instruction_sets_pass_the_same_tests(name: str) -> None:
    """The SIMD, activation, attention and matvec tests in a process whose LOCALMOE_ISA is another."""
    here = Path(__file__).parent
    files = [
        str(here / file) for file in ("test_simd.py", "test_activations.py", "test_attention.py", "test_matvec.py")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "LOCALMOE_ISA": name},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
