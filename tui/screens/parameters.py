"""The editor of a chat's parameters and its system prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from localmoe.errors import UsageError

from ..parameters import BY_NAME, PARAMETERS, changed, default_text, parse, shown_value
from ..widgets.editor import Editor
from ..widgets.fields import Fields
from ..widgets.key_line import KeyLine
from ..widgets.turns import shown_line

if TYPE_CHECKING:
    from localmoe.model.config import ModelConfig

_SYSTEM = "What the model is told before the first turn; empty: nothing. It holds from the next reply on."


@dataclass(frozen=True)
class Edited:
    """What the editor was left with."""

    system: str
    parameters: Mapping[str, Any]


class ParametersScreen(ModalScreen[Edited | None]):
    """A field a parameter; below, what the one with the keyboard means. Ctrl+S takes all, Esc leaves all as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s,f9", "take", "Take all", id="parameters.take", priority=True),
        Binding("ctrl+r", "reset", "Default", id="parameters.reset", priority=True),
        Binding("escape", "dismiss(None)", "Back, nothing changed", id="parameters.close", priority=True),
        Binding("up", "app.focus_previous", "Above", id="parameters.up", show=False),
        Binding("down", "app.focus_next", "Below", id="parameters.down", show=False),
    ]

    def __init__(self, system: str, values: Mapping[str, Any], config: ModelConfig, *, has_system: bool) -> None:
        super().__init__()
        self._system, self._values = system, values
        self._config, self._n_expert = config, config.n_expert
        self._has_system = has_system

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel", id="parameters") as panel:
            panel.border_title = "Parameters of this chat"
            with Fields(id="parameters-rows"):
                if self._has_system:
                    yield Static("system prompt", classes="parameter-name", markup=False)
                    yield Editor(self._system, id="p-system", compact=True, soft_wrap=True, tab_behavior="focus")
                for parameter in PARAMETERS:
                    if parameter.name == "n_expert_used" and not self._n_expert:
                        continue
                    with Horizontal(classes="parameter"):
                        yield Static(parameter.label, classes="parameter-name", markup=False)
                        yield Input(
                            shown_value(parameter, self._values.get(parameter.name)),
                            placeholder=default_text(parameter, self._config),
                            compact=True,
                            id=f"p-{parameter.name}",
                        )
            yield Static(id="parameters-meaning", markup=False)
            yield Static(id="parameters-error", markup=False)
            yield KeyLine()

    def on_mount(self) -> None:
        self.query_one("#p-temperature").focus()
        self.call_after_refresh(self.query_one("#parameters-rows").scroll_home, animate=False)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        name = (event.widget.id or "").removeprefix("p-")
        if name == "system":
            text = _SYSTEM
        elif name in BY_NAME:
            text = f"{BY_NAME[name].meaning} Default: {default_text(BY_NAME[name], self._config)}."
        else:
            return
        self.query_one("#parameters-meaning", Static).update(text)

    @on(Input.Changed)
    def _check(self, event: Input.Changed) -> None:
        name = (event.input.id or "").removeprefix("p-")
        try:
            parse(BY_NAME[name], event.value, self._n_expert)
            self._refuse("", event.input, wrong=False)
        except UsageError as error:
            self._refuse(str(error), event.input, wrong=True)

    def _refuse(self, text: str, field: Input, *, wrong: bool) -> None:
        field.set_class(wrong, "-wrong")
        self.query_one("#parameters-error", Static).update(Content(shown_line(text)))

    @on(Input.Submitted)
    def _next(self) -> None:
        self.focus_next()

    def action_reset(self) -> None:
        """Empty the field: its default."""
        if isinstance(self.focused, (Input, Editor)):
            self.focused.clear()

    def action_take(self) -> None:
        """Leave with what is entered, unless something is wrong."""
        values: dict[str, Any] = dict(self._values)
        for field in self.query(Input):
            name = (field.id or "").removeprefix("p-")
            try:
                values[name] = parse(BY_NAME[name], field.value, self._n_expert)
            except UsageError as error:
                self._refuse(str(error), field, wrong=True)
                field.focus()
                return
        system = self.query_one("#p-system", Editor).text.strip() if self._has_system else self._system
        self.dismiss(Edited(system, changed(values)))
