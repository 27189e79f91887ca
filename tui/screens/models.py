"""The model picker: files opened lately, and those in the folders where models are kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ..model_files import Facts, Found, find, look_into, size_text
from ..options import Buildable
from ..widgets.choices import Choices, moves
from ..widgets.key_line import KeyLine
from ..widgets.turns import MUTED, shown_line

FIRST = 2
"""Screens where this one is the first: below it is the one that Textual begins with. The app ends with it then."""
PATH_HINT = "Search, or the path of a GGUF file"


class ModelsScreen(ModalScreen[Path | None]):
    """The search line has the keyboard; what a file is appears when its header has been read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", id="models.open", priority=True),
        Binding("escape", "back", "Back", id="models.close", priority=True),
        Binding("escape", "dismiss(None)", "Quit", id="models.close", priority=True),
    ]

    def __init__(
        self, recent: Sequence[str], always: Sequence[tuple[str, Path]], demo: Buildable | None = None
    ) -> None:
        super().__init__(classes="dialog")
        self._recent, self._always, self._demo = recent, always, demo
        self._files: list[Found] = []
        self._listed: list[Found] = []
        self._facts: dict[Path, tuple[str, Facts]] = {}
        self._chosen: Path | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel wide-panel") as panel:
            panel.border_title = "Open a model"
            yield Input(placeholder=PATH_HINT, compact=True, id="models-search")
            yield Choices(id="models-list", markup=False, compact=True)
            yield Static("Looking for files…", id="models-said", markup=False)
            yield KeyLine()

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._look()

    @work
    async def _look(self) -> None:
        """Find the files, then read their headers one by one, off the screen's thread."""
        files = await asyncio.to_thread(find, self._recent)
        always = [Found(path, name) for name, path in self._always]
        if self._demo is not None:
            always.append(Found(self._demo.path, "demo" if os.path.isfile(self._demo.path) else self._demo.about))
        for item in (*files, *always):  # each once, where it is found first
            if not any(item.path == other.path for other in self._files):
                self._files.append(item)
        self._fill()
        for item in self._files:
            if self._is_to_build(item):
                continue
            size = await asyncio.to_thread(size_text, item.path)
            self._facts[item.path] = (size, await asyncio.to_thread(look_into, item.path))
            self._update(item)

    def _is_to_build(self, item: Found) -> bool:
        return self._demo is not None and item.where == self._demo.about

    def _fill(self) -> None:
        terms = self.query_one(Input).value.lower().split()
        self._listed = [f for f in self._files if all(term in str(f.path).lower() for term in terms)]
        self._listed.sort(key=lambda item: bool(self._error(item)))  # what cannot be opened stands at the end
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(self._line(item)) for item in self._listed])
        if self._listed:
            paths = [item.path for item in self._listed]
            options.highlighted = paths.index(self._chosen) if self._chosen in paths else 0
        self._tell()

    def _error(self, item: Found) -> str:
        return self._facts.get(item.path, ("", Facts()))[1].error

    def _tell(self) -> None:
        at = self.query_one(OptionList).highlighted
        text = "No file found: type a path, or put one where LOCALMOE_MODELS, the Hugging Face cache or this folder is."
        if at is not None and at < len(self._listed):
            item = self._listed[at]
            _, facts = self._facts.get(item.path, ("", None))
            text = str(item.path) if facts is None else f"{item.path}: {facts.detail or facts.error or facts.kind}"
        self.query_one("#models-said", Static).update(Content(shown_line(text)))

    def _update(self, item: Found) -> None:
        if not self.is_mounted or item not in self._listed:
            return
        if self._error(item):
            self._fill()
        else:
            at = self._listed.index(item)
            self.query_one(OptionList).replace_option_prompt_at_index(at, self._line(item))
            if at == self.query_one(OptionList).highlighted:
                self._tell()

    def _line(self, item: Found) -> Content:
        size, facts = self._facts.get(item.path, ("" if self._is_to_build(item) else "…", None))
        parts: list[str | tuple[str, str]] = [(f"{size:>9}  ", MUTED), shown_line(item.path.name)]
        if facts is not None and facts.error:
            parts.append((f"  {shown_line(facts.error)}", "$text-error"))
        elif facts is not None:
            parts.append((f"  {shown_line(facts.kind)}", "$text-accent"))
        alike = sum(other.path.name == item.path.name for other in self._files) > 1
        folder = f": {shown_line(item.path.parent.name)}" if alike else ""
        parts.append((f"  {item.where}{folder}", MUTED))
        return Content.assemble(*parts)

    @on(Input.Changed, "#models-search")
    def _searched(self) -> None:
        self._chosen = None
        self._fill()

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._tell()

    @on(OptionList.OptionSelected)
    def _clicked(self) -> None:
        self.action_open()

    def on_key(self, event: events.Key) -> None:
        options = self.query_one(OptionList)
        if moves(event, options):
            self._chosen = self._listed[options.highlighted].path if options.highlighted is not None else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        return action != "back" or len(self.app.screen_stack) > FIRST

    def action_back(self) -> None:
        """Leave with what was there before."""
        self.dismiss(None)

    def action_open(self) -> None:
        """Open the chosen file, or the path that is typed."""
        at, typed = self.query_one(OptionList).highlighted, Path(self.query_one(Input).value.strip()).expanduser()
        if at is not None and at < len(self._listed):
            self.dismiss(self._listed[at].path)
        elif os.path.isfile(typed):
            self.dismiss(typed)
        elif typed.name:
            said = Content.styled(f"no such file: {shown_line(str(typed))}", "$text-error")
            self.query_one("#models-said", Static).update(said)
