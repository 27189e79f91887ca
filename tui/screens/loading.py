"""The screen while a model is opened, and what is left of it when that fails."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import ProgressBar, Static

from ..messages import Submitted
from ..widgets.key_line import KeyLine
from ..widgets.prompt import Prompt
from ..widgets.turns import MUTED, shown, shown_line

KEPT = 5


@dataclass(frozen=True)
class Draft:
    """What was written before there was a model to read it: `sent` with Enter, and the text still in the input."""

    text: str = ""
    sent: str = ""


class LoadingScreen(Screen[None]):
    """Says what loading is doing, as compiling on a first run; the first message can be written meanwhile."""

    AUTO_FOCUS = "#prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "take_back", "Take back", id="loading.back", priority=True),
    ]

    def __init__(self, name_of_model: str, draft: Draft) -> None:
        super().__init__()
        self._model_name, self._draft = name_of_model, draft
        self._said: list[str] = []
        self._began = 0.0
        self._sent = ""

    def compose(self) -> ComposeResult:
        with Vertical(id="loading-body"), Vertical(id="loading-panel") as panel:
            panel.border_title = "localmoe"
            yield Static(Content(shown(self._model_name)), id="loading-name")
            yield Static("Opening the model…", id="loading-said", markup=False)
            yield ProgressBar(total=None, show_eta=False, show_percentage=False, id="loading-bar")
        yield Static(id="loading-note", markup=False)
        with Vertical(id="below"), Horizontal(id="line"):
            yield Static("›", id="sign", markup=False)
            yield Prompt(id="prompt")
        yield KeyLine()

    def on_mount(self) -> None:
        self._began = time.monotonic()
        self.set_interval(1.0, self.tell_time)
        self.query_one(Prompt).insert(self._draft.text)
        self._send(self._draft.sent)

    async def draft(self) -> Draft:
        """What was written, once every key that came here was taken."""
        for pump in (self.query_one(Prompt), self):
            taken = asyncio.Event()
            pump.call_later(taken.set)
            await taken.wait()
        return Draft(self.query_one(Prompt).text, self._sent)

    @on(Submitted)
    def _submitted(self, event: Submitted) -> None:
        event.stop()
        if self._sent:
            self.notify("One message waits already: Esc takes it back.", timeout=3)
        else:
            self.query_one(Prompt).remember(event.text)
            self._send(event.text)

    def _send(self, text: str) -> None:
        """Let a text wait for the model; none: nothing waits."""
        self._sent = text
        said = Content.assemble(("Sent when the model is open: ", MUTED), shown_line(text)) if text else ""
        self.query_one("#loading-note", Static).update(said)
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        return bool(self._sent) if action == "take_back" else True

    def action_take_back(self) -> None:
        """Put the message that waits back into the input, before what was written since."""
        prompt = self.query_one(Prompt)
        prompt.text = "\n".join(filter(None, (self._sent, prompt.text)))
        prompt.move_cursor(prompt.document.end)
        self._send("")

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
        Binding("o", "app.models", "Another model", id="error.models"),
        Binding("enter,escape,q", "app.quit", "Quit", id="error.quit"),
    ]

    def __init__(self, reason: str) -> None:
        super().__init__()
        self._reason = reason

    def compose(self) -> ComposeResult:
        with Vertical(id="error-panel") as panel:
            panel.border_title = "This model cannot be opened"
            yield Static(Content(shown(self._reason)), id="error-reason")
            yield Static("Enter closes the app, O opens another model.", id="error-hint", markup=False)
        yield KeyLine()
