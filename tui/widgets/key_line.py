"""The line of keys: as many as fit, none cut."""

from __future__ import annotations

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

AROUND = 3
"""Columns of a key beside its name and what it does."""


class KeyLine(Footer):
    """A footer that leaves out the keys that have no room, from the end."""

    def compose(self) -> ComposeResult:
        left = self.screen.size.width
        for key in super().compose():
            if isinstance(key, FooterKey):
                left -= cell_len(key.key_display) + cell_len(key.description) + AROUND
            if left < 0:
                return
            yield key

    async def on_resize(self, event: events.Resize) -> None:  # noqa: ARG002
        await self.recompose()
