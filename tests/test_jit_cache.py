"""Compiled code on disk: whatever others write at the same time, a signature finds its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe import jit, jit_cache


def halve(x: Any) -> Any:
    """What another signature's machine code gives another answer for."""
    return x / 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jit, "cache_dir", lambda: tmp_path)
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def process() -> Any:
    """`halve` as another process has it: nothing compiled yet."""
    return jit.njit(halve)


def from_disk(function: Any) -> tuple[int, int]:
    """Signatures that came from the disk, and those that were compiled."""
    return sum(function.stats.cache_hits.values()), sum(function.stats.cache_misses.values())


def test_two_processes_save_two_signatures_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, replace = process(), process(), os.replace

    def overtaken(source: Path, target: Path) -> None:
        monkeypatch.setattr(jit_cache.os, "replace", replace)
        assert second(np.float32(3)) == 1.5
        replace(source, target)

    monkeypatch.setattr(jit_cache.os, "replace", overtaken)
    assert first(7) == 3.5
    third = process()
    assert (third(9), third(np.float32(5))) == (4.5, 2.5)
    assert from_disk(third) == (2, 0)
    assert len(files(folder)) == 2


def test_the_same_signature_is_one_file(folder: Path) -> None:
    assert [process()(n) for n in (1, 2, 3)] == [0.5, 1.0, 1.5]
    assert len(files(folder)) == 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_off_is_made_anew(folder: Path, share: float) -> None:
    assert process()(5) == 2.5
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    again = process()
    assert again(5) == 2.5
    assert from_disk(again) == (0, 1)
    assert from_disk_after(again) == (1, 0)


def from_disk_after(before: Any) -> tuple[int, int]:
    """The same for one more process, after `before`."""
    assert before(7) == 3.5
    last = process()
    assert last(7) == 3.5
    return from_disk(last)


def test_code_of_another_source_or_version_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process()(5) == 2.5
    monkeypatch.setattr(jit_cache.numba, "__version__", "0.0")
    other = process()
    assert other(5) == 2.5
    assert from_disk(other) == (0, 1)
    assert len(files(folder)) == 1


def test_a_full_disk_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jit_cache.os, "replace", full)
    assert process()(5) == 2.5
    assert files(folder) == []


def test_recompiling_forgets_what_was_kept(folder: Path) -> None:
    function = process()
    assert function(5) == 2.5
    function.recompile()
    assert len(files(folder)) == 1
    function._cache.flush()
    assert files(folder) == []


def test_a_c_function_is_kept(folder: Path) -> None:
    def store(address: int) -> None:
        pass

    before = jit.compile_c(store, 1)
    again = jit.compile_c(store, 1)
    assert (before._cache_hits, again._cache_hits) == (0, 1)
    assert len(files(folder)) == 1


INTERRUPTED = """
import os, signal
from numba.core.codegen import CPUCodeLibrary
told, armed = CPUCodeLibrary._object_getbuffer_hook.__func__, []

def interrupted(library, module):
    if armed:
        armed.clear()
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
    return told(library, module)

CPUCodeLibrary._object_getbuffer_hook = classmethod(interrupted)
from tests.test_jit_cache import process
assert process()(3) == 1.5
armed.append(1)
try:
    process()(5)
except KeyboardInterrupt:
    print(process()(7), armed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill")
def test_a_signal_while_code_is_loaded_waits(tmp_path: Path) -> None:
    """Raised in a callback of LLVM's it was lost, and left a library without its code."""
    env = {**os.environ, "LOCALMOE_CACHE": str(tmp_path)}
    program = [sys.executable, "-c", INTERRUPTED]
    root = Path(__file__).parents[1]
    done = subprocess.run(program, env=env, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "3.5 []\n", done.stderr
