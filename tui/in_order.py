"""Keys one after the other: each takes effect before the next one is looked at."""

from __future__ import annotations

import time
from collections import deque

from textual import events, on
from textual.app import App
from textual.message import Message

LATE = 0.5
"""Seconds until a key counts as done whatever became of it."""


class Done(Message):
    """Goes the way that a key went, behind it, and once more behind what the key's binding sent."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.again = again


class OrderedKeys(App[None]):
    """Holds back keys while one is on its way.

    Textual sends a key to what has the keyboard, and runs the binding for it only when it comes back from there; some
    bindings are looked up before. Of keys that come faster than that, Enter was taken before the letters typed before
    it, and Backspace took away the letter that followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: deque[events.Event] = deque()
        self._busy_since: float | None = None

    async def on_event(self, event: events.Event) -> None:
        if not isinstance(event, (events.Key, events.Paste)) or event.is_forwarded:
            await super().on_event(event)
        elif self._held or (self._busy_since is not None and time.monotonic() < self._busy_since + LATE):
            self._held.append(event)
            self.set_timer(LATE, self._next_if_late)
        else:
            await self._take(event)

    async def _take(self, event: events.Event) -> None:
        if not self.screen_stack:  # the app is being left
            return
        self._busy_since = time.monotonic()
        await super().on_event(event)
        self._follow(again=True)

    def _follow(self, *, again: bool) -> None:
        if self.screen_stack:
            (self.focused or self.screen).post_message(Done(again=again))

    @on(Done)
    async def _done(self, event: Done) -> None:
        if event.again:
            self._follow(again=False)
        else:
            await self._next()

    async def _next(self) -> None:
        self._busy_since = None
        if self._held:
            event = self._held.popleft()
            if self._held:
                self.set_timer(LATE, self._next_if_late)
            await self._take(event)

    async def _next_if_late(self) -> None:
        if self._busy_since is None or time.monotonic() >= self._busy_since + LATE:
            await self._next()
