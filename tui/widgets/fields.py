"""The fields of a form."""

from __future__ import annotations

from textual.containers import VerticalScroll


class Fields(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Scrolls to the field with the keyboard where not all have room; Up and Down go to others, as its screen says."""
