"""Saying that kernels are compiled, when they are: not where they come from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from localmoe.target import cache_is_kept, on_compile

SAID = "compiling kernels for this CPU: once for each kind of weights, for about half a minute"
UNKEPT = "; they cannot be kept, since the cache folder cannot be written (LOCALMOE_CACHE names another)"


@contextmanager
def compiling_said(progress: Callable[[str], None] | None) -> Iterator[None]:
    """Within it, tell `progress` in a line when Numba begins to compile."""
    said = False

    def say() -> None:
        nonlocal said
        if not said and progress is not None:
            said = True
            progress(SAID + ("" if cache_is_kept() else UNKEPT))

    on_compile.append(say)
    try:
        yield
    finally:
        on_compile.remove(say)
