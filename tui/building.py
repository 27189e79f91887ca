"""Building a model's file on the engine's thread, before it is opened."""

from __future__ import annotations

import time
from collections.abc import Callable

from .options import Buildable

SAID_EVERY = 0.1
"""Seconds between two words about how far it is."""


class BuildProgress:
    """Tells a loader's `progress` how far a stage is: its label, bytes done and all of them."""

    def __init__(self, progress: Callable[..., None]) -> None:
        self._progress = progress
        self._label, self._done, self._total, self._said = "", 0, 0, 0.0

    def start(self, total_bytes: int, label: str) -> None:
        """Begin a stage."""
        self._label, self._done, self._total = label, 0, total_bytes
        self._progress(label, 0, total_bytes)

    def advance(self, n: int) -> None:
        """Another `n` bytes are done."""
        self._done += n
        if (now := time.monotonic()) - self._said >= SAID_EVERY:
            self._said = now
            self._progress(self._label, self._done, self._total)

    def finish(self) -> None:
        """Of what follows nothing is known."""
        self._progress(self._label)


def build(what: Buildable, progress: Callable[..., None]) -> None:
    """Build it, and tell what is done; LocalMoeError where it cannot be built."""
    progress("building the demo model: once, for about half a minute")
    what.build(BuildProgress(progress), notify=progress)
