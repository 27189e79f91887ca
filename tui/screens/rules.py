"""The panel that changes how tokens are routed, from the next reply on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from localmoe.errors import UsageError

from ..rules import FIELDS, Rules, read_rules
from ..widgets.fields import Fields
from ..widgets.key_line import KeyLine
from ..widgets.turns import MUTED, shown_line

if TYPE_CHECKING:
    from localmoe.model.config import ModelConfig

EXAMPLE = "Explain in two sentences what a lighthouse is for."
NOTE = "After a change the model reads the chat again before it answers."


class RulesScreen(ModalScreen["Rules | tuple[Rules, str] | None"]):
    """Fields of the rules; Enter returns them, Ctrl+T the first ones, Ctrl+B rules and a prompt to compare on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "apply", "Apply", id="rules.apply", priority=True),
        Binding("ctrl+t", "reset", "As started", id="rules.reset", priority=True),
        Binding("ctrl+b", "compare", "Compare", id="rules.compare", priority=True),
        Binding("escape,f8", "dismiss(None)", "Back, nothing changed", id="rules.close", priority=True),
        Binding("up", "app.focus_previous", "Above", id="rules.up", show=False),
        Binding("down", "app.focus_next", "Below", id="rules.down", show=False),
    ]

    def __init__(self, config: ModelConfig, now: Rules, start: Rules, skipped: str, prompt: str) -> None:
        """`skipped` says what was measured so far; `prompt` is offered for a comparison."""
        super().__init__()
        self._config, self._now, self._start = config, now, start
        self._skipped, self._prompt = skipped, prompt

    def compose(self) -> ComposeResult:
        with Vertical(id="rules-panel") as panel:
            panel.border_title = "Routing from the next reply on"
            with Fields(id="rules-rows"):
                for name, (title, hint) in FIELDS.items():
                    with Horizontal(classes="rules-line"):
                        yield Static(title, classes="rules-name", markup=False)
                        yield Input(self._now.texts[name], id=f"rules-{name}", compact=True)
                    yield Static(hint, classes="rules-hint", markup=False)
                with Horizontal(classes="rules-line"):
                    yield Static("compare on", classes="rules-name", markup=False)
                    yield Input(self._prompt or EXAMPLE, id="rules-prompt", compact=True)
                yield Static("answered as started (A) and as set (B), greedily", classes="rules-hint")
                yield Static(id="rules-said")
                yield Static(Content(f"{self._skipped}\n{NOTE}"), classes="rules-note")
            yield KeyLine()

    def on_mount(self) -> None:
        self.query_one("#rules-used", Input).focus()
        self._say()

    def _read(self) -> Rules | None:
        """The rules as typed; None, and the reason on the screen, where they cannot be."""
        texts = {name: self.query_one(f"#rules-{name}", Input).value for name in FIELDS}
        said = self.query_one("#rules-said", Static)
        try:
            rules = read_rules(self._config, texts)
        except UsageError as error:
            said.update(Content.styled(shown_line(str(error)), "$text-error"))
            return None
        said.update(Content.styled(shown_line(rules.routing.describe(self._config.n_expert)), MUTED))
        return rules

    @on(Input.Changed)
    def _say(self) -> None:
        self._read()

    def action_apply(self) -> None:
        rules = self._read()
        if rules is not None:
            self.dismiss(rules)

    def action_reset(self) -> None:
        """Put the fields back to how the app was started."""
        for name, text in self._start.texts.items():
            self.query_one(f"#rules-{name}", Input).value = text

    def action_compare(self) -> None:
        rules, prompt = self._read(), self.query_one("#rules-prompt", Input).value.strip()
        if rules is None or not prompt:
            return
        if rules == self._start:
            said = self.query_one("#rules-said", Static)
            said.update(Content.styled("nothing differs from how the app was started: change something", "$text-error"))
            return
        self.dismiss((rules, prompt))
