"""How often the app looks at the engine, which needs both cores, and draws what it did."""

from __future__ import annotations

import time

EVERY = 0.1
"""Seconds between two questions whether to look at the engine: text is drawn this often at most."""
PICTURES = 1.0
"""Seconds between drawings of the experts and the status line while text comes; twice as many with a fast reply."""
PART, SLOWEST = 0.1, 0.5
"""The part of a core that drawing may take, and the seconds after which it looks all the same."""
FAST, PART_OF_FAST = 130.0, 0.025
"""Tokens a second that nobody reads along with, and the part of a core that drawing takes then: the engine needs it."""
FIRST, SHARE = 0.01, 0.2
"""Processor seconds a look is taken to cost at first, and how much the newest counts for what the next will cost."""


class Pace:
    """Says when to look, at even distances, and when to draw what is costly; times are of the thread that asks.

    What a look costs differs by ten times with whether the text got another line: the distance goes by the average.
    """

    def __init__(self) -> None:
        self._looked = self._pictured = 0.0
        self._part = PART
        self._used, self._cost = time.thread_time(), FIRST

    @property
    def distance(self) -> float:
        """Seconds from one look to the next."""
        return min(SLOWEST, max(EVERY, self._cost / self._part))

    def look(self, rate: float = 0.0) -> bool:
        """Whether to look now; `rate` is that of the reply, in tokens a second."""
        self._part = PART_OF_FAST if rate > FAST else PART
        now = time.monotonic()
        if now - self._looked < self.distance - EVERY / 2:  # the nearest tick: one comes a little early or late
            return False
        used = time.thread_time()
        if now - self._looked < 2 * SLOWEST:  # else nothing was written meanwhile: that says nothing about a look
            self._cost += SHARE * (used - self._used - self._cost)
        self._looked, self._used = now, used
        return True

    def picture(self) -> bool:
        """Whether to draw what is no text as well, in this look."""
        now = time.monotonic()
        if now - self._pictured < (2 * PICTURES if self._part == PART_OF_FAST else PICTURES):
            return False
        self._pictured = now
        return True
