"""Compiled functions that are kept as object files: used without Numba, and not where they would not fit."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest

from localmoe import native, target

linux = pytest.mark.skipif(sys.platform != "linux", reason="object files are kept on Linux alone")

PROGRAM = """
import json, sys
import localmoe
with localmoe.load(sys.argv[1], n_ctx=128) as model:
    greedy = [s.token for s in model.generate("In the beginning", max_tokens=8, temperature=0.0)]
    drawn = [s.token for s in model.generate("In the beginning", max_tokens=8, seed=1, n_probs=3)]
print(json.dumps([greedy, drawn, "numba" in sys.modules]))
"""


def run(**environment: str) -> list[object]:
    model = Path(__file__).parents[1] / "localmoe/data/tiny-moe.gguf"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model)], capture_output=True, text=True, check=True, env=kept | environment
    )
    answer: list[object] = json.loads(done.stdout)
    return answer


@linux
def test_a_second_start_gives_the_same_tokens_without_numba() -> None:
    run()  # what is not there yet is compiled
    *tokens, with_numba = run()
    assert not with_numba
    *others, with_numba = run(NUMBA_OPT="3")  # anything set for Numba: all code is from Numba
    assert with_numba
    assert tokens == others


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of a kernel's file."""
    native.address("kernels.matvec_float", "matvec_f32", 6)
    path = tmp_path / "kernel.o"
    path.write_bytes((target.cache_dir() / "kernels.matvec_float.matvec_f32.o").read_bytes())
    return path


@linux
def test_a_kept_function_computes(kept: Path) -> None:
    address = native._load(kept)
    w, x, out = (ctypes.c_float * 4)(1, 2, 3, 4), (ctypes.c_float * 4)(1, 10, 100, 1000), (ctypes.c_float * 1)()
    kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(address)
    kernel(ctypes.addressof(w), ctypes.addressof(x), ctypes.addressof(out), 0, 1, 4)
    assert out[0] == 4321


@linux
def test_a_damaged_file_is_not_used_and_not_kept(kept: Path) -> None:
    raw = bytearray(kept.read_bytes())
    raw[-1] ^= 1
    kept.write_bytes(raw)
    assert native._load(kept) == 0
    assert not kept.exists()


@linux
def test_a_function_that_needs_what_is_not_here_is_left_to_numba(kept: Path) -> None:
    """LLVM would end the process."""
    head, _, code = kept.read_bytes().partition(b"\n")
    kept.write_bytes(head + b" no_such_function\n" + code)
    assert native._load(kept) == 0
    assert kept.exists()


@linux
def test_what_a_function_needs_is_written_down(kept: Path) -> None:
    """The matmul of quantized rows copies the ends of a matrix."""
    native.address("kernels.matmul_k", "matmul_q4_k", 12)
    head, _, code = (target.cache_dir() / "kernels.matmul_k.matmul_q4_k.o").read_bytes().partition(b"\n")
    check, symbol, *needed = head.decode().split(" ")
    assert int(check, 16) == crc32(code)
    assert "matmul_q4_k" in symbol
    assert "memcpy" in needed


def test_the_folder_is_another_for_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    before = target.cache_dir()
    monkeypatch.setattr(target, "_COMPILED", target._COMPILED[1:])
    assert target.cache_dir.__wrapped__() != before
