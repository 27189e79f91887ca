"""The terminal app: one factory for the command line and the tests."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events, on
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.command import CommandPalette, Provider
from textual.driver import Driver
from textual.screen import Screen

from localmoe.errors import LocalMoeError, UsageError
from localmoe.sessions.record import Record

from .building import build
from .commands import Commands
from .ending import TAKEN_DOWN, end_on_signals
from .engine_worker import EngineWorker, Loader, Progress
from .guard import guarded_terminal
from .keeping import KeepingApp
from .keys import binding_ids, keys_path, read_keys
from .legible import legible, of_16, of_own
from .messages import EngineDied, LoadFailed, LoadProgress, ModelReady, ReplyDone
from .options import AppOptions
from .parameters import changed
from .screens.cell import CellScreen
from .screens.chat import ChatScreen
from .screens.compare import CompareScreen
from .screens.figures import FiguresScreen
from .screens.help import HelpScreen
from .screens.loading import Draft, ErrorScreen, LoadingScreen
from .screens.models import ModelsScreen
from .screens.parameters import Edited, ParametersScreen
from .screens.sessions import Chosen
from .screens.tokens import TokensScreen
from .widgets.prompt import Prompt
from .widgets.turns import shown_line

if TYPE_CHECKING:
    from localmoe.engine.api import Model

_NEEDS: dict[str, tuple[type[Screen[None]], ...]] = {
    "sessions": (ChatScreen,),
    "parameters": (ChatScreen,),
    "models": (ChatScreen, ErrorScreen),
}
"""Actions that are offered only on these screens: on others they would do nothing."""

VIEWS = (CellScreen, CompareScreen, FiguresScreen, TokensScreen)
"""Screens on which the help begins with the words: their few keys stand in their last line."""

Opener = Callable[[Path, Mapping[str, Any]], Loader]
"""Makes what opens a file with keywords of `localmoe.load`."""

SWITCH = 0.0005
"""Seconds after which drawing gives the interpreter to the engine's thread, which needs it between two tokens."""
COLLECT, TIDY = (2000, 20, 1_000_000), 0.5
"""The garbage collector's thresholds, and seconds from a reply to a full collection: one held up keys for 45 ms."""


@dataclass(frozen=True)
class Before:
    """The model and the chat that were open before another was asked for, and the context asked for with it."""

    path: Path
    record: Record
    n_ctx: int | None


class LocalMoeApp(KeepingApp):
    """Loads a model on the engine's thread, then shows the chat; without a path it asks for a file first."""

    CSS_PATH = ["app.tcss", "chat.tcss"]  # noqa: RUF012 - the base declares it so
    TITLE = "localmoe"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {Commands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="app.help", priority=True),
        Binding("ctrl+s", "sessions", "Chats", id="app.sessions"),
        Binding("ctrl+o", "models", "Model", id="app.models"),
        Binding("f9", "parameters", "Parameters", id="app.parameters", show=False),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True),
        Binding("ctrl+c", "copy_or_quit", "Quit", id="app.interrupt", show=False, priority=True),
    ]

    def __init__(self, path: Path | None, opener: Opener, options: AppOptions) -> None:
        super().__init__(options)
        self._path, self._opener = path, opener
        self._record: Record | None = None
        self._draft = Draft()
        self.failure: LoadFailed | None = None
        self._before: Before | None = None
        self._n_ctx: int | None = None
        self.worker = EngineWorker(opener(path or Path(), options.load), self.post_message)

    async def on_mount(self) -> None:
        if not self.is_headless:
            end_on_signals(lambda code: self.exit(None, code))
        self._take_keys()
        self._open_store()
        if self._path is None:
            self.action_models()
        else:
            await self.open_model(self._path, self._resumed(self._options.resume))

    def on_unmount(self) -> None:
        self.worker.stop()

    def _take_keys(self) -> None:
        """Bind the user's own keys; a file that is wrong is told of, and the usual keys stay."""
        try:
            self.set_keymap(read_keys(keys_path(), binding_ids()))
        except LocalMoeError as error:
            self.notify(
                shown_line(str(error)), title="The usual keys stay", severity="warning", timeout=15, markup=False
            )

    async def open_model(self, path: Path, record: Record | None = None) -> None:
        """Close the model that is open and open another one, for a chat or for a new one."""
        options = self._options
        started = {
            **options.sampling,
            **options.parameters,
            "n_expert_used": options.load.get("n_expert_used"),
            "n_ctx": options.load.get("n_ctx"),
        }
        self._record = record or Record(self.store, str(path.absolute()), options.system, changed(started))
        self._path, self.failure = path, None
        if (chat := self.chat) is not None:
            self._draft = Draft(chat.query_one(Prompt).text)
            self._before = Before(chat.model.gguf.path, chat.record, self._n_ctx)
        loading, self._draft = LoadingScreen(path, self._draft), Draft()
        if isinstance(self.screen, (ChatScreen, ErrorScreen)):
            await self.switch_screen(loading)
        else:
            await self.push_screen(loading)
        old = self.worker
        await asyncio.to_thread(old.close, 30.0)
        load = dict(options.load)
        self._n_ctx = self._record.parameters.get("n_ctx")
        if self._n_ctx is not None:
            load["n_ctx"] = self._n_ctx
        self.worker = EngineWorker(self._opener(path, load), self.post_message)
        self.worker.start()

    @property
    def _loading(self) -> LoadingScreen | None:
        """The loading screen, also below another."""
        return next((screen for screen in self.screen_stack if isinstance(screen, LoadingScreen)), None)

    async def _leave_loading(self) -> Draft:
        """What was written while the model was opened."""
        return await self._loading.draft() if self._loading is not None else Draft()

    async def _replace_loading(self, screen: Screen[None]) -> None:
        """Put a screen in the place of the loading screen and of what is over it."""
        while self._loading not in (None, self.screen):
            await self.pop_screen()
        await self.switch_screen(screen)

    @on(LoadProgress)
    def loading_said(self, event: LoadProgress) -> None:
        if self._loading is not None:
            self._loading.say(event.text, event.part)

    @on(ModelReady)
    async def model_ready(self, event: ModelReady) -> None:
        gc.freeze()  # what loading made stays: a full collection over it held up the engine for 60 ms
        assert self._record is not None
        assert self._path is not None
        self._record.configure(model=str(self._path.absolute()))
        draft = await self._leave_loading()
        helped = isinstance(self.screen, HelpScreen)
        await self._replace_loading(ChatScreen(event.model, self.worker, self._options, self._record, draft))
        if helped:
            self.push_screen(HelpScreen())
        self._remember(self._path)
        self._tell_trouble()

    @on(ReplyDone)
    def reply_done(self) -> None:
        self.set_timer(TIDY, gc.collect)

    @on(LoadFailed)
    async def load_failed(self, event: LoadFailed) -> None:
        self.failure = event
        self._draft = await self._leave_loading()
        before = self._before
        if before is not None and (before.path, before.n_ctx) == (self._path, self._n_ctx):
            before = self._before = None  # to go back is to try again
        before_name = before.path.name if before is not None else ""
        await self._replace_loading(ErrorScreen(event.reason, event.exit_code, before_name))

    @on(EngineDied)
    def engine_died(self, event: EngineDied) -> None:
        raise event.error

    def action_command_palette(self) -> None:
        """Show all commands, once: the help may stand above them."""
        if not any(isinstance(screen, CommandPalette) for screen in self.screen_stack):
            super().action_command_palette()

    def action_help(self) -> None:
        if isinstance(self.screen, HelpScreen):
            self.pop_screen()
        else:
            self.push_screen(HelpScreen(words_first=isinstance(self.screen, VIEWS)))

    def get_css_variables(self) -> dict[str, str]:
        """A theme's colours so that they can be read: of 16 on a terminal's white no yellow and no light grey."""
        variables = super().get_css_variables()
        if self.console.color_system in (None, "standard"):
            return variables | of_16(dark=self.current_theme.dark)
        theme = self.current_theme
        self.theme_variables = variables | (of_own(dark=theme.dark) if theme.ansi else legible(variables))
        return self.theme_variables

    def get_system_commands(self, screen: Screen[Any]) -> Iterator[SystemCommand]:
        """Of Textual's own commands those that are not said in F1 already, with their meaning."""
        wanted = {"Theme", "Screenshot", "Quit"}
        yield from (command for command in super().get_system_commands(screen) if command.title in wanted)

    def deliver_screenshot(
        self, filename: str | None = None, path: str | None = None, time_format: str | None = None
    ) -> str | None:
        """Save a picture of the screen where the app was started: a folder for downloads may not be there."""
        return super().deliver_screenshot(filename, path or str(Path.cwd()), time_format)

    @on(events.DeliveryFailed)
    def picture_failed(self, event: events.DeliveryFailed) -> None:
        """Say which folder it was and what is wrong with it, which Textual does not."""
        event.prevent_default()
        error = event.exception
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        self.notify(shown_line(said), title="No picture was saved", severity="error", timeout=8, markup=False)

    def get_driver_class(self) -> type[Driver]:
        """On Linux one without threads of its own, unless the environment names another."""
        found = super().get_driver_class()
        if sys.platform == "linux" and found.__module__ == "textual.drivers.linux_driver":
            from .driver import LoopDriver

            return LoopDriver
        return found

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if action == "open_before":
            return self._before is not None
        needed = _NEEDS.get(action)
        seen = next((screen for screen in reversed(self.screen_stack) if not screen.is_modal), None)
        return needed is None or isinstance(seen, needed)

    def action_models(self) -> None:
        """Open another model, in a new chat."""
        if isinstance(self.screen, (LoadingScreen, ModelsScreen)) or (self.chat and not self._idle_chat()):
            return
        self.push_screen(
            ModelsScreen(self._recent_models(), self._options.models, self._options.demo), self._model_chosen
        )

    async def _model_chosen(self, path: Path | None) -> None:
        if path is not None:
            await self.open_model(path)
        elif self.chat is None and not isinstance(self.screen, ErrorScreen):
            self.exit()

    def action_sessions(self) -> None:
        """Go on with another chat that was kept."""
        if (chats := self._chats()) is not None:
            self.push_screen(chats, self._session_chosen)

    async def _session_chosen(self, chosen: Chosen | None) -> None:
        chat = self.chat
        if chosen is None or chat is None or (record := self._resumed(chosen.key)) is None:
            return
        its_model = Path(record.model)
        if chosen.with_its_model and its_model != (self._path or Path()).absolute():
            await self.open_model(its_model, record)
            return
        if its_model.name != chat.model.gguf.path.name:
            self.notify(
                f"This chat was with {shown_line(its_model.name)}; it goes on with this model.", timeout=6, markup=False
            )
        record.configure(model=str((self._path or its_model).absolute()))
        await chat.go_on_with(record)

    def action_parameters(self) -> None:
        """Edit the parameters and the system prompt."""
        if (chat := self._idle_chat()) is not None:
            config, has_system = chat.model.config, chat.model.chat_template is not None
            values = {**chat.record.parameters, "n_expert_used": chat.record.parameters.get("n_expert_used")}
            screen = ParametersScreen(chat.conversation.system, values, config, has_system=has_system)
            self.push_screen(screen, self._parameters_taken)

    async def _parameters_taken(self, edited: Edited | None) -> None:
        chat = self.chat
        if edited is None or chat is None:
            return
        before = chat.record.parameters.get("n_ctx")
        none = dict.fromkeys(chat.record.parameters)
        chat.record.configure(system=edited.system, **{**none, **edited.parameters})
        chat.take_parameters()
        if edited.parameters.get("n_ctx") != before and self._path is not None:
            await self.open_model(self._path, chat.record)

    async def action_open_again(self) -> None:
        """Try once more to open what could not be opened."""
        if self._path is not None:
            await self.open_model(self._path, self._record)

    async def action_open_before(self) -> None:
        """Go back to the chat, and the model, from which one was asked for that cannot be opened."""
        if (before := self._before) is not None:
            before.record.configure(n_ctx=before.n_ctx)
            await self.open_model(before.path, before.record)

    async def action_quit(self) -> None:
        self.worker.stop()
        self.exit(return_code=self.failure.exit_code if self.failure else 0)

    def _handle_exception(self, error: Exception) -> None:
        """End with a traceback; not where the app is left already, and something still wanted a widget of it."""
        if not (self._exit and isinstance(error, TAKEN_DOWN)):
            super()._handle_exception(error)

    async def action_copy_or_quit(self) -> None:
        """Copy where text is selected, quit otherwise."""
        if self.screen.get_selected_text():
            self.screen.action_copy_text()
            self.screen.clear_selection()
        else:
            await self.action_quit()


def create_app(path: Path | None, options: AppOptions | None = None, loader: Loader | None = None) -> LocalMoeApp:
    """The app for a model's file, None: one that the user picks; `loader` stands in for `localmoe.load` in tests."""

    demo = options.demo if options is not None else None

    def open_with(path: Path, load: Mapping[str, Any]) -> Loader:
        def run(progress: Progress) -> Model:
            import localmoe

            if demo is not None and path == demo.path and not os.path.isfile(path):
                build(demo, progress)
            return localmoe.load(str(path), progress=progress, **load)

        return loader or run

    return LocalMoeApp(path, open_with, options or AppOptions())


def run_app(path: Path | None, options: AppOptions | None = None, loader: Loader | None = None) -> int:
    """Run the app until the user leaves and return the process's exit code.

    Raises UsageError without a model or a picker's files, or without a terminal. A model that cannot be opened is shown
    in the app, and its exit code is returned.
    """
    if path is None and not (options and options.models):
        raise UsageError("no model given", expected="-m MODEL")
    streams = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    if elsewhere := [name for name, stream in streams.items() if not (stream and stream.isatty())]:
        raise UsageError("the terminal app needs a terminal", got=f"none as {' and '.join(elsewhere)}")
    if os.environ.get("TERM") == "dumb":
        raise UsageError("the terminal app draws", got="TERM=dumb", expected="another terminal, or `localmoe chat`")
    app = create_app(path, options, loader)
    sys.setswitchinterval(SWITCH)
    gc.set_threshold(*COLLECT)
    try:
        with guarded_terminal():
            app.run()
    finally:
        app.worker.close()
        app.close_store()
    if app.failure is not None:
        sys.stderr.write(f"error: {shown_line(app.failure.reason)}\n")
    return app.return_code or 0
