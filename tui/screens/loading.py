"""The screen while a model is opened, and what is left of it when that fails."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, ProgressBar, Static

from ..widgets.turns import MUTED, shown

KEPT = 5


class LoadingScreen(Screen[None]):
    """Says what loading is doing; a first run compiles its kernels and says so."""

    def __init__(self, name_of_model: str) -> None:
        super().__init__()
        self._model_name = name_of_model
        self._said: list[str] = []
        self._began = 0.0

    def compose(self) -> ComposeResult:
        with Vertical(id="loading-panel") as panel:
            panel.border_title = "localmoe"
            yield Static(Content(shown(self._model_name)), id="loading-name")
            yield Static("Opening the model…", id="loading-said", markup=False)
            yield ProgressBar(total=None, show_eta=False, show_percentage=False, id="loading-bar")
        yield Footer()

    def on_mount(self) -> None:
        self._began = time.monotonic()
        self.set_interval(1.0, self.tell_time)

    def tell_time(self) -> None:
        """Show the seconds since loading began."""
        self.query_one("#loading-panel").border_subtitle = f"{time.monotonic() - self._began:.0f} s"

    def say(self, text: str, part: float | None) -> None:
        """Show the newest messages and how far it is."""
        if text and (not self._said or self._said[-1] != text):
            self._said = [*self._said, text][-KEPT:]
            lines = [Content.styled(shown(line), MUTED) for line in self._said[:-1]]
            said = Content("\n").join([*lines, Content(shown(self._said[-1]))])
            self.query_one("#loading-said", Static).update(said)
        bar = self.query_one(ProgressBar)
        bar.update(total=None if part is None else 1.0, progress=part or 0.0)


class ErrorScreen(Screen[None]):
    """Why the model could not be opened, in one line, and how to leave."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape,q", "app.quit", "Quit", id="error.quit"),
        Binding("o", "app.models", "Another model", id="error.models"),
    ]

    def __init__(self, reason: str) -> None:
        super().__init__()
        self._reason = reason

    def compose(self) -> ComposeResult:
        with Vertical(id="error-panel") as panel:
            panel.border_title = "This model cannot be opened"
            yield Static(Content(shown(self._reason)), id="error-reason")
            yield Static("Enter closes the app, O opens another model.", id="error-hint", markup=False)
        yield Footer()
