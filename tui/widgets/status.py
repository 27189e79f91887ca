"""The lines that say what is loaded and what is going on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from ..drawing import mark
from .turns import MUTED, shown_line
from .words import Words

if TYPE_CHECKING:
    from localmoe.engine.api import Model

ROOMY = 100
"""Columns from which on bars are long."""
FULL, EMPTY = "━", "─"


def meter(part: float, width: int) -> tuple[str, str]:
    """A bar's done and left part; `part` 0..1."""
    done = min(width, max(0, round(part * width)))
    return FULL * done, EMPTY * (width - done)


def rate(n: int, seconds: float) -> str:
    """Tokens a second in at most five characters, or a dash without data."""
    if n <= 0 or seconds <= 0:
        return "–"
    value = n / seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


class TitleBar(Horizontal):
    """What is loaded, and how many experts a token goes through."""

    def compose(self) -> ComposeResult:
        yield Static(id="title-name")
        yield Static(id="title-detail", markup=False)

    def show_model(self, model: Model, used: str) -> None:
        """Show the model's name, and its experts, of which a token uses so many, or that it has none."""
        config = model.config
        name = model.gguf.metadata.get("general.name")
        name = name if isinstance(name, str) and name else model.gguf.path.name
        detail = f"top-{used} of {config.n_expert} experts" if config.n_expert else "dense, no experts"
        if model.chat_template is None:
            detail += ", completes text"
        self.show(shown_line(name), detail)

    def show(self, name: str, detail: str) -> None:
        """Both must be harmless already."""
        self.query_one("#title-name", Static).update(
            Content.assemble((" localmoe  ", "bold $text-accent"), (name, "bold"))
        )
        self.query_one("#title-detail", Static).update(detail)


class StatusLine(Words):
    """State, speeds and the context meter; while a prompt is read, its progress."""

    state = reactive("loading")
    prompt_rate = reply_rate = "–"
    prompt_part, prompt_total, used = -1.0, 0, 0
    size_of_context = reactive(0)
    rules = reactive("")

    def follow(self, **figures: str | float) -> None:
        """Show other figures, given by their names."""
        changed = {name: value for name, value in figures.items() if getattr(self, name) != value}
        for name, value in changed.items():
            setattr(self, name, value)
        if changed:
            mark(self)

    def render(self) -> Content:
        """Of what has no room a bar goes first, then words, the prompt's speed, and the end of the rules."""
        bar = 8 if self.size.width < ROOMY else 16
        rules = Content.styled(f"  {self.rules}" if self.rules else "", "$text-warning")
        for begin, meter_of in (
            (self._going_on(bar), self._context_meter(bar)),
            (self._going_on(bar), self._context_meter(0)),
            (self._going_on(bar), self._context_meter(0, "")),
            (self._going_on(bar, short=True), self._context_meter(0, "")),
        ):
            left = self.size.width - begin.cell_length - meter_of.cell_length
            if rules.cell_length <= left:
                return begin + rules + meter_of
        return begin + rules.truncate(max(0, left), ellipsis=True) + meter_of

    def _going_on(self, bar: int, *, short: bool = False) -> Content:
        """The state, and how far the prompt is or how fast things went."""
        parts: list[str | tuple[str, str]] = [" ", self._state()]
        if self.state == "reading":
            done, left = meter(self.prompt_part, bar + 4)
            parts += [" ", (done, "$text-accent"), (left, "$text-disabled")]
            if self.prompt_total:
                parts.append(f" {round(self.prompt_part * self.prompt_total)}/{self.prompt_total} tokens")
        else:
            if not short:
                parts += [("  prompt ", MUTED), self.prompt_rate, ("  reply", MUTED)]
            parts += [f" {self.reply_rate}", (" tok/s", MUTED)]
        return Content.assemble(*parts)

    def _state(self) -> tuple[str, str]:
        names = {"ready": ("● ready  ", "$text-success"), "reading": ("● reading", "$text-accent")}
        return names.get(self.state, (f"● {self.state}".ljust(9), "$text-warning"))

    def _context_meter(self, bar: int, name: str = "context ") -> Content:
        size = max(1, self.size_of_context)
        part = self.used / size
        tint = "$text-error" if part >= 0.95 else "$text-warning" if part >= 0.8 else "$text-accent"
        done, left = meter(part, bar)
        counts = f" {self.used}/{self.size_of_context}"[not bar :]
        return Content.assemble("  ", (name, MUTED), (done, tint), (left, "$text-disabled"), counts)
