"""Small questions over the screen: a line of text, one of several, yes or no, something to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from localmoe.errors import LocalMoeError

from ..widgets.choices import Choices
from ..widgets.turns import shown, shown_line

_CLOSE: list[BindingType] = [Binding("escape", "dismiss(None)", "Close", id="dialog.close", priority=True)]


class AskScreen(ModalScreen[str | None]):
    """Asks for a line; `accept` may refuse it with a LocalMoeError, which is shown."""

    BINDINGS: ClassVar[list[BindingType]] = _CLOSE

    def __init__(self, title: str, value: str, accept: Callable[[str], object] | None = None) -> None:
        super().__init__(classes="dialog")
        self._title, self._value, self._accept = title, value, accept

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = Content(self._title)
            panel.border_subtitle = "Enter takes it, Esc leaves it"
            yield Input(shown_line(self._value), compact=True, select_on_focus=False, classes="ask-input")
            yield Static(classes="dialog-error", markup=False)

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        event.stop()
        value = event.value.strip()
        if not value:
            return
        try:
            if self._accept is not None:
                self._accept(value)
        except LocalMoeError as error:
            self.query_one(".dialog-error", Static).update(Content(shown_line(str(error))))
            return
        self.dismiss(value)


class ChooseScreen(ModalScreen[int | None]):
    """Asks which of several lines."""

    BINDINGS: ClassVar[list[BindingType]] = _CLOSE

    def __init__(self, title: str, choices: Sequence[str]) -> None:
        super().__init__(classes="dialog")
        self._title, self._choices = title, choices

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = Content(self._title)
            panel.border_subtitle = "Enter chooses, Esc leaves"
            yield Choices(*(Option(Content(shown_line(line))) for line in self._choices), markup=False, compact=True)

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(event.option_index)


class NoticeScreen(ModalScreen[None]):
    """Something to know; Enter or Esc closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,space", "dismiss(None)", "Close", id="notice.close", priority=True)
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__(classes="dialog")
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel notice") as panel:
            panel.border_title = Content(self._title)
            panel.border_subtitle = "Enter closes"
            yield Static(Content(shown(self._text)))
