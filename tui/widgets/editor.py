"""A text of several lines to be changed."""

from __future__ import annotations

from textual.widgets import TextArea


class Editor(TextArea):
    """Textual's, which may undo and redo what makes its scrollbar come or go."""

    def _recompute_cursor_offset(self) -> None:
        # A scrollbar that goes asks where the cursor stands before the cursor is moved to where the text ends now.
        if self.cursor_location[0] < self.document.line_count:
            super()._recompute_cursor_offset()  # type: ignore[no-untyped-call]
