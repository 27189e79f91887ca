"""Saying that kernels are compiled, when they are: not where they come from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core.event import Listener, install_listener

SAID = "compiling kernels for this CPU (once for each kind of weights)"


class _Sayer(Listener):  # type: ignore[misc]  # numba has no types
    """Tells of the first function that is compiled."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress, self._said = progress, False

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        if not self._said:
            self._said = True
            self._progress(SAID)

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def compiling_said(progress: Callable[[str], None] | None) -> Iterator[None]:
    """Within it, tell `progress` in a line when Numba begins to compile."""
    if progress is None:
        yield
        return
    with install_listener("numba:compile", _Sayer(progress)):
        yield
