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

    def show_model(self, model: Model, n_used: int) -> None:
        """Show the model's name, and its experts or that it has none."""
        config = model.config
        name = model.gguf.metadata.get("general.name")
        name = name if isinstance(name, str) and name else model.gguf.path.name
        detail = f"top-{n_used} of {config.n_expert} experts" if config.n_expert else "dense, no experts"
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
        narrow = self.size.width < 100
        bar = 16 if not narrow else 0 if self.rules else 8
        parts: list[Content | str | tuple[str, str]] = [" ", self._state()]
        if self.state == "reading":
            done, left = meter(self.prompt_part, max(8, bar) + 4)
            count = f"{round(self.prompt_part * self.prompt_total)}/{self.prompt_total}"
            parts += [" ", (done, "$text-accent"), (left, "$text-disabled"), f" {count} tokens"]
        else:
            parts += [("  prompt ", MUTED), self.prompt_rate, ("  reply ", MUTED), self.reply_rate]
            parts.append((" tok/s", MUTED))
        if self.rules:
            parts += ["  ", (self.rules, "$text-warning")]
        return Content.assemble(*parts, "  ", self._context_meter(bar))

    def _state(self) -> tuple[str, str]:
        names = {"ready": ("● ready  ", "$text-success"), "reading": ("● reading", "$text-accent")}
        return names.get(self.state, (f"● {self.state}".ljust(9), "$text-warning"))

    def _context_meter(self, bar: int) -> Content:
        size = max(1, self.size_of_context)
        part = self.used / size
        tint = "$text-error" if part >= 0.95 else "$text-warning" if part >= 0.8 else "$text-accent"
        done, left = meter(part, bar)
        counts = f" {self.used}/{self.size_of_context}"
        return Content.assemble(("context ", MUTED), (done, tint), (left, "$text-disabled"), counts)
