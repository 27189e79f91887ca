"""The screen while a model is opened, and what is left of it when that fails."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import ProgressBar, Static

from localmoe.errors import BadInputError

from ..messages import Submitted
from ..model_files import look_into, size_text
from ..widgets.key_line import KeyLine
from ..widgets.prompt import Prompt
from ..widgets.turns import MUTED, shown, shown_line

KEPT = 5
FIRST = "opening the model"


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

    def __init__(self, path: Path, draft: Draft) -> None:
        super().__init__()
        self._path, self._draft = path, draft
        self._said = [FIRST]
        self._began = 0.0
        self._part: float | None = None
        self._sent = ""

    def compose(self) -> ComposeResult:
        with Vertical(id="loading-body"), Vertical(id="loading-panel") as panel:
            panel.border_title = "localmoe"
            yield Static(Content(shown_line(self._path.name)), id="loading-name")
            yield Static(id="loading-kind", markup=False)
            yield Static(FIRST, id="loading-said", markup=False)
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
        self._tell_kind()

    @work
    async def _tell_kind(self) -> None:
        """Show how large the file is, and what, as its header says; nothing where that is what goes wrong."""
        size, facts = await asyncio.to_thread(lambda: (size_text(self._path), look_into(self._path)))
        if not facts.error:
            self.query_one("#loading-kind", Static).update(Content(shown_line(f"{size}, {facts.kind}")))

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
        """Show the seconds since loading began, and how far it is: without colours a bar hardly tells."""
        part = "" if self._part is None else f"{self._part:.0%}, "
        self.query_one("#loading-panel").border_subtitle = f"{part}{time.monotonic() - self._began:.0f} s"

    def say(self, text: str, part: float | None) -> None:
        """Show the newest messages and how far it is."""
        if text and self._said[-1] != text:
            self._said = [*self._said, text][-KEPT:]
            lines = [Content.styled(shown(line), MUTED) for line in self._said[:-1]]
            said = Content("\n").join([*lines, Content(shown(self._said[-1]))])
            self.query_one("#loading-said", Static).update(said)
        bar = self.query_one(ProgressBar)
        bar.update(total=None if part is None else 1.0, progress=part or 0.0)
        self._part = part
        self.tell_time()


class ErrorScreen(Screen[None]):
    """Why the model could not be opened, in one line, and what can be done: try again, another one, back, or leave."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape", "app.open_before", "Back", id="error.back"),
        Binding("o", "app.models", "Another model", id="error.models"),
        Binding("r", "app.open_again", "Try again", id="error.again"),
        Binding("enter,escape,q", "app.quit", "Quit", id="error.quit"),
        Binding("ctrl+o", "app.models", id="app.models", show=False),
        Binding("ctrl+q", "app.quit", id="app.quit", show=False, priority=True),
    ]

    def __init__(self, reason: str, exit_code: int, before: str = "") -> None:
        """`before` is the name of the model that can be gone back to, "" for none."""
        super().__init__()
        self._reason, self._exit_code, self._before = reason, exit_code, before

    def compose(self) -> ComposeResult:
        leave = f"goes back to {shown_line(self._before)}" if self._before else "closes the app"
        hint = f"Enter {leave}, O opens another model, R tries this one again."
        if self._exit_code == BadInputError.exit_code:
            hint += " `localmoe inspect` says all that keeps a file from running."
        with Vertical(id="error-panel") as panel:
            panel.border_title = "This model cannot be opened"
            yield Static(Content(shown(self._reason)), id="error-reason")
            yield Static(Content(hint), id="error-hint")
        yield KeyLine()
