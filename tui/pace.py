"""How often the app looks at the engine, which needs both cores, and draws what it did."""

from __future__ import annotations

import time

FRAMES = 10
"""Looks at the engine a second: text is drawn this often at most."""
PICTURES = 0.4
"""Seconds between drawings of the experts and the status line while text comes: one costs as much as three of text."""
PART, SLOWEST = 0.06, 0.5
"""The part of a core that drawing may take, and the seconds after which it looks all the same."""


class Pace:
    """Says when to look, and when to draw what is costly; times are of the thread that asks."""

    def __init__(self) -> None:
        self._looked = self._used = self._pictured = 0.0

    def look(self) -> bool:
        """Whether to look now: not while this thread has used more than its part of a core since the last look."""
        now = time.monotonic()
        waited = now - self._looked
        if waited < SLOWEST and time.thread_time() - self._used > PART * waited:
            return False
        self._looked, self._used = now, time.thread_time()
        return True

    def picture(self, *, only_now_and_then: bool) -> bool:
        """Whether to draw the experts and the status line at this look."""
        if only_now_and_then and self._looked - self._pictured < PICTURES:
            return False
        self._pictured = self._looked
        return True
