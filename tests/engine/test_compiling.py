"""When a first run says that it compiles."""

from __future__ import annotations

import numba

import localmoe.jit  # noqa: F401  # it listens
from localmoe.engine.compiling import SAID, compiling_said


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
