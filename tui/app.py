"""The terminal app: one factory for the command line and the tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider

from localmoe.errors import UsageError

from .commands import ChatCommands
from .engine_worker import EngineWorker, Loader, Progress
from .messages import EngineDied, LoadFailed, LoadProgress, ModelReady
from .options import AppOptions
from .screens.chat import ChatScreen
from .screens.help import HelpScreen
from .screens.loading import ErrorScreen, LoadingScreen
from .widgets.turns import shown_line

if TYPE_CHECKING:
    from localmoe.engine.api import Model

_SIGNALS = {"SIGTERM": 143, "SIGHUP": 129}
"""Signals that end the app as if by Ctrl+Q, with the exit code a shell expects."""

SWITCH = 0.0005
"""Seconds after which drawing gives the interpreter to the engine's thread, which needs it between two tokens."""


class LocalMoeApp(App[None]):
    """Loads a model on the engine's thread, then shows the chat."""

    CSS_PATH = "app.tcss"
    TITLE = "localmoe"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {*App.COMMANDS, ChatCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="app.help", priority=True),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True),
        Binding("ctrl+c", "copy_or_quit", "Quit", id="app.interrupt", show=False, priority=True),
    ]

    def __init__(self, name: str, loader: Loader, options: AppOptions) -> None:
        super().__init__()
        self._model_name, self._options = name, options
        self.failure: LoadFailed | None = None
        self.worker = EngineWorker(loader, self.post_message)

    def on_mount(self) -> None:
        self._catch_signals()
        self.push_screen(LoadingScreen(self._model_name))
        self.worker.start()

    def on_unmount(self) -> None:
        self.worker.stop()

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name, code in _SIGNALS.items():
            number = getattr(signal, name, None)
            # Windows has no SIGHUP and no signal handlers in its loop; a test's loop may not be the main thread's.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                if number is not None:
                    loop.add_signal_handler(number, self.exit, None, code)

    @on(LoadProgress)
    def loading_said(self, event: LoadProgress) -> None:
        if isinstance(self.screen_stack[-1], LoadingScreen):
            self.screen_stack[-1].say(event.text, event.part)

    @on(ModelReady)
    def model_ready(self, event: ModelReady) -> None:
        gc.freeze()  # what loading made stays: a full collection over it held up the engine for 60 ms
        self.switch_screen(ChatScreen(event.model, self.worker, self._options))

    @on(LoadFailed)
    def load_failed(self, event: LoadFailed) -> None:
        self.failure = event
        self.switch_screen(ErrorScreen(event.reason))

    @on(EngineDied)
    def engine_died(self, event: EngineDied) -> None:
        raise event.error

    def action_help(self) -> None:
        if isinstance(self.screen, HelpScreen):
            self.pop_screen()
        else:
            self.push_screen(HelpScreen())

    async def action_quit(self) -> None:
        self.worker.stop()
        self.exit(return_code=self.failure.exit_code if self.failure else 0)

    async def action_copy_or_quit(self) -> None:
        """Copy where text is selected, quit otherwise."""
        if self.screen.get_selected_text():
            self.screen.action_copy_text()
            self.screen.clear_selection()
        else:
            await self.action_quit()


def create_app(path: Path, options: AppOptions | None = None, loader: Loader | None = None) -> LocalMoeApp:
    """The app for a model's file; `loader` stands in for `localmoe.load` in tests."""
    options = options or AppOptions()

    def load(progress: Progress) -> Model:
        import localmoe

        return localmoe.load(str(path), progress=progress, **options.load)

    return LocalMoeApp(path.name, loader or load, options)


def run_app(path: Path | None, options: AppOptions | None = None, loader: Loader | None = None) -> int:
    """Run the app until the user leaves and return the process's exit code.

    Raises UsageError without a model or without a terminal. A model that cannot be opened is shown in the app, and its
    exit code is returned.
    """
    if path is None:
        raise UsageError("no model given", expected="-m MODEL")
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError("the terminal app needs a terminal", got="a pipe or a file")
    app = create_app(path, options, loader)
    sys.setswitchinterval(SWITCH)
    try:
        app.run()
    finally:
        app.worker.close()
    if app.failure is not None:
        sys.stderr.write(f"error: {shown_line(app.failure.reason)}\n")
    return app.return_code or 0
