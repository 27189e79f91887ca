"""A list below a line that always has the keyboard."""

from __future__ import annotations

from textual import events
from textual.widgets import OptionList

_MOVES = {"up": "cursor_up", "down": "cursor_down", "pageup": "page_up", "pagedown": "page_down"}


def moves(event: events.Key, options: OptionList) -> bool:
    """Move in the list if the key is for that, and keep it from the line."""
    action = _MOVES.get(event.key)
    if action is None:
        return False
    event.stop()
    getattr(options, f"action_{action}")()
    return True
