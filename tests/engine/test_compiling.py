"""When a first run says that it compiles."""

from __future__ import annotations

from pathlib import Path

import numba
import pytest

import localmoe.jit  # noqa: F401  # it listens
from localmoe import target
from localmoe.engine.compiling import SAID, UNKEPT, compiling_said


def test_compiling_is_said_once_and_only_where_it_happens() -> None:
    """Two functions compiled: one line. The same again, or from the cache: none."""

    @numba.njit  # localmoe.jit would take it from the cache the second time
    def one(x):  # type: ignore[no-untyped-def]
        return x + 1

    @numba.njit  # localmoe.jit would take it from the cache the second time
    def two(x):  # type: ignore[no-untyped-def]
        return x * 2.5

    said: list[str] = []
    with compiling_said(said.append):
        assert one(1) + two(2) == 7
    assert said == [SAID]
    with compiling_said(said.append):
        assert one(1) + two(2) == 7
    assert said == [SAID]
    with compiling_said(None):
        assert one(1.5) == 2.5


def test_kernels_that_cannot_be_kept_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache folder that cannot be made: a folder for this process takes its place."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALMOE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("localmoe.engine.compiling.cache_dir", target.cache_dir.__wrapped__)

    @numba.njit  # localmoe.jit would take it from the cache the second time
    def one(x):  # type: ignore[no-untyped-def]
        return x + 1

    said: list[str] = []
    with compiling_said(said.append):
        assert one(1) == 2
    assert said == [SAID + UNKEPT]
