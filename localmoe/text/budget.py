"""What rendering one template may use: steps, seconds, and the size of what it makes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_STEPS = 1_000_000
MAX_SECONDS = 5.0
MAX_SIZE = 4_000_000  # characters of a string, items of a list
MAX_BYTES = 1 << 30  # of everything made, whether it is kept or not
ITEM_BYTES = 64  # an item with what it is
MAX_DEPTH = 100  # of lists in lists: Python's own hash of a tuple has no limit but the stack

_CONTAINERS = (list, tuple, dict, set, frozenset)
_WALKED = (*_CONTAINERS, Namespace)


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.steps = MAX_STEPS
        self.bytes = MAX_BYTES
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise SecurityError(f"the template does more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"the template runs longer than {MAX_SECONDS:g} s")

    def size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise SecurityError(f"the template makes a value of more than {MAX_SIZE} characters or items")

    def made(self, value: Any) -> Any:
        """`value`, which was made just now, after its size was counted."""
        if isinstance(value, (str, bytes, *_CONTAINERS)):
            size = len(value)
            self.size(size)
            self.bytes -= size if isinstance(value, (str, bytes)) else ITEM_BYTES * size
            if self.bytes < 0:
                raise SecurityError(f"the template makes more than {MAX_BYTES >> 20} MiB of values")
        return value

    def walked(self, value: Any) -> Any:
        """`value`, after a step for everything in it: what looks at all of it takes as long.

        A list that holds another twice, which holds another twice, is 2^60 values to whoever shows, compares or hashes
        the sixtieth.
        """
        if isinstance(value, _WALKED):
            self._walk(value, MAX_DEPTH)
        return value

    def _walk(self, value: Any, depth: int) -> None:
        if depth == 0:
            raise SecurityError(f"the template nests values deeper than {MAX_DEPTH}")
        held = value._Namespace__attrs if isinstance(value, Namespace) else value
        items = [*held, *held.values()] if isinstance(held, dict) else held
        self.step(1 + len(items))
        for item in items:
            if isinstance(item, _WALKED):
                self._walk(item, depth - 1)

    def items(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.step()
            yield item

    def concat(self, parts: Iterable[str]) -> str:
        kept, total = [], 0
        for part in parts:
            total += len(part)
            self.size(total)
            kept.append(part)
        return str(self.made("".join(kept)))
