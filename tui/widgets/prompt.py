"""The input: Enter sends, Ctrl+J or Shift+Enter makes a new line, up and down walk through what was sent."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events

from ..messages import Submitted
from .editor import Editor

HINT = "Message the model"
TEXT_HINT = "Text for the model to go on with"
NEW_LINE = ("ctrl+j", "shift+enter", "alt+enter")


class Prompt(Editor):
    """A text of one or more lines that grows with what is typed, with a history."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id, soft_wrap=True, tab_behavior="focus", show_line_numbers=False, compact=True, placeholder=HINT
        )
        self.highlight_cursor_line = False
        self.sent: list[str] = []
        self._at = 0
        self._draft = ""
        self._before: str | None = None
        self._completes = False

    def recall(self, sent: Sequence[str]) -> None:
        """Let up find what was sent before this prompt was there, the newest last."""
        self.sent = [*sent, *self.sent]
        self._at = len(self.sent)

    def complete_text(self) -> None:
        """Send texts as they are typed, spaces at the ends included, and an empty one too: the model goes on."""
        self._completes = True
        self.placeholder = TEXT_HINT

    async def _on_key(self, event: events.Key) -> None:
        # Not priority bindings: those run before the letters typed just before them have arrived here.
        if event.key not in ("enter", *NEW_LINE):
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()
        if event.key in NEW_LINE:
            self.insert("\n")
        elif self._completes:
            self.post_message(Submitted(self.text if self.text.strip() else ""))
        elif text := self.text.strip():
            self.post_message(Submitted(text))

    def _toggle_cursor_blink_visible(self) -> None:
        if not (self._cursor_visible and getattr(self.screen, "busy", False)):  # each blink is a drawing
            super()._toggle_cursor_blink_visible()

    def remember(self, text: str) -> None:
        """Put a text that was sent into the history and empty the input, unless it has another text by now."""
        if text and (not self.sent or self.sent[-1] != text):
            self.sent.append(text)
        self._at, self._draft = len(self.sent), ""
        if text in (self.text, self.text.strip()):
            self.clear()

    @property
    def changing(self) -> bool:
        """Whether a text that was said before is in the input."""
        return self._before is not None

    def change(self, text: str | None) -> None:
        """Put a text that was said before into the input to be changed; None: what was typed before comes back."""
        if self._before is None and text is not None:
            self._before = self.text
        self.text = (self._before or "") if text is None else text
        self._before = self._before if text is not None else None
        self.set_class(text is not None, "-editing")
        self.move_cursor(self.document.end)
        self.focus()

    def action_cursor_up(self, select: bool = False) -> None:
        if not select and self.cursor_location[0] == 0 and self._at > 0:
            self._recall(self._at - 1)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        last = self.cursor_location[0] == self.document.line_count - 1
        if not select and last and self._at < len(self.sent):
            self._recall(self._at + 1)
        else:
            super().action_cursor_down(select)

    def _recall(self, place: int) -> None:
        if self._at == len(self.sent):
            self._draft = self.text
        self._at = place
        self.text = self.sent[place] if place < len(self.sent) else self._draft
        self.move_cursor(self.document.end)
