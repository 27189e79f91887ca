"""What the heatmap's difference is from: what was until now, or a run that was saved; and saving one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from localmoe.errors import FileError, LocalMoeError
from localmoe.experts.trace_file import Outline, load_recording, outline, save_recording

from ..widgets.choices import Choices, moves
from ..widgets.key_line import KeyLine
from ..widgets.turns import MUTED, shown_line

if TYPE_CHECKING:
    from localmoe.experts.recording import Recording

MOST = 200
"""Files that are listed."""
NOW = "what was until now: the tokens from here on against those before"
ELSEWHERE = "(LOCALMOE_DATA chooses another folder)"
HINT = "Search, or the path of a recording (.npz)"


def runs_folder() -> Path:
    """Where the app saves runs: beside the chats."""
    from localmoe.sessions.schema import default_path

    return default_path().parent / "runs"


def _outline(path: Path) -> Outline | str:
    """What a recording is, or what is wrong with it."""
    try:
        return outline(path)
    except LocalMoeError as error:
        return error.reason


def saved_runs() -> list[Path]:
    """Recordings in the app's folder and in the one it was started in, the newest first."""
    found: dict[Path, float] = {}
    for folder in (runs_folder(), Path.cwd()):
        try:
            found.update({path: path.stat().st_mtime for path in folder.glob("*.npz")})
        except OSError:  # not ours to read
            continue
    return sorted(found, key=found.__getitem__, reverse=True)[:MOST]


class RunsScreen(ModalScreen["tuple[str, Recording | None] | None"]):
    """The search line has the keyboard; returns a name and the run, None for what was until now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Show", id="runs.take", priority=True),
        Binding("ctrl+s", "save", "Save this chat's run", id="runs.save", priority=True),
        Binding("escape", "dismiss(None)", "Back", id="runs.close", priority=True),
    ]

    def __init__(self, fits: Callable[[Recording | Outline], str], record: Callable[[], Recording], name: str) -> None:
        """`fits` says why a run is none of this model, or ""; `record` makes this chat's, saved under `name`."""
        super().__init__(classes="dialog")
        self._fits, self._record, self._name = fits, record, name
        self._files: list[Path] = []
        self._listed: list[Path | None] = [None]
        self._facts: dict[Path, Outline | str] = {}

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel wide-panel") as panel:
            panel.border_title = "Show the difference from"
            yield Input(placeholder=HINT, compact=True, id="runs-search")
            yield Choices(id="runs-list", markup=False, compact=True)
            yield Static(id="runs-said", markup=False)
            yield KeyLine()

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._look()

    @work(exclusive=True, group="look")
    async def _look(self) -> None:
        """List the recordings, then say of each what it is, as its headers are read off the screen's thread."""
        self._files = saved_runs()
        self._fill()
        for path in self._files:
            if path not in self._facts:
                self._facts[path] = await asyncio.to_thread(_outline, path)
                if path in self._listed:
                    at = self._listed.index(path)
                    self.query_one(OptionList).replace_option_prompt_at_index(at, self._line(path))

    @on(Input.Changed, "#runs-search")
    def _fill(self) -> None:
        terms = self.query_one(Input).value.lower().split()
        self._listed = [path for path in self._files if all(term in path.name.lower() for term in terms)]
        if not terms:
            self._listed.insert(0, None)
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(self._line(path)) for path in self._listed])
        if self._listed:
            options.highlighted = 0
        self._say("" if self._listed else "No recording is called that: Enter reads it as a path.")

    def _line(self, path: Path | None) -> Content:
        if path is None:
            return Content(NOW)
        try:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        except OSError:  # gone meanwhile
            when = "gone"
        where = "saved here" if path.parent == runs_folder() else "this folder"
        facts = self._facts.get(path, "…")
        wrong = facts if isinstance(facts, str) else self._fits(facts)
        said = (f"  {shown_line(wrong)}", "$text-error")
        if isinstance(facts, Outline) and not wrong:
            said = (f"  {facts.n_token} tokens", "$text-accent")
            if Path(facts.model).stem != self._name:
                said = (f"  {facts.n_token} tokens of {shown_line(facts.model)}", "$text-accent")
        return Content.assemble((f"{when}  ", MUTED), shown_line(path.name), said, (f"  {where}", MUTED))

    @on(OptionList.OptionSelected)
    def _clicked(self) -> None:
        self.action_take()

    def on_key(self, event: events.Key) -> None:
        moves(event, self.query_one(OptionList))

    def action_take(self) -> None:
        """Read the chosen run, or the one whose path is typed."""
        at, typed = self.query_one(OptionList).highlighted, Path(self.query_one(Input).value.strip()).expanduser()
        if at is not None and at < len(self._listed):
            path = self._listed[at]
            if path is None:
                self.dismiss((NOW, None))
            else:
                self._read(path)
        elif typed.name:
            self._read(typed)

    @work(exclusive=True)
    async def _read(self, path: Path) -> None:
        try:
            recording = await asyncio.to_thread(load_recording, path)
        except LocalMoeError as error:
            self._say(str(error), wrong=True)
            return
        if wrong := self._fits(recording):
            self._say(f"{path.name}: {wrong}", wrong=True)
        else:
            self.dismiss((path.stem, recording))

    @work(exclusive=True)
    async def action_save(self) -> None:
        """Save what the trace holds of this chat, and list it."""
        path = runs_folder() / f"{self._name}-{time.strftime('%Y%m%d-%H%M%S')}.npz"
        try:
            recording = await asyncio.to_thread(self._record)
            os.makedirs(path.parent, exist_ok=True)
            await asyncio.to_thread(save_recording, recording, path)
        except LocalMoeError as error:
            self._say(f"{error} {ELSEWHERE}" if isinstance(error, FileError) else str(error), wrong=True)
            return
        except OSError as error:
            self._say(f"{path.parent}: cannot be made: {error.strerror or error} {ELSEWHERE}", wrong=True)
            return
        with self.prevent(Input.Changed):
            self.query_one(Input).value = ""
        self._look()
        self._say(f"the newest {recording.n_token} tokens of this chat: {path}")

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self.query_one("#runs-said", Static).update(Content.styled(shown_line(text), "$text-error" if wrong else MUTED))
