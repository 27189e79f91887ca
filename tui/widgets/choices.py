"""Lists to choose from, also below a line that always has the keyboard."""

from __future__ import annotations

from typing import Literal

from textual import events
from textual.widgets import OptionList


class Choices(OptionList):
    """Textual's, which stays as it is where a small window leaves no line for it: it knows no pages then."""

    def _move_page(self, direction: Literal[-1, 1]) -> None:
        if self.scrollable_content_region:
            super()._move_page(direction)


_MOVES = {"up": "cursor_up", "down": "cursor_down", "pageup": "page_up", "pagedown": "page_down"}


def moves(event: events.Key, options: OptionList) -> bool:
    """Move in the list if the key is for that, and keep it from the line."""
    action = _MOVES.get(event.key)
    if action is None:
        return False
    event.stop()
    getattr(options, f"action_{action}")()
    return True
