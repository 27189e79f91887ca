"""The app's end by a signal, also where its terminal is gone or takes no more output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from textual.app import ScreenError
from textual.css.query import QueryError
from textual.dom import NoScreen
from textual.widget import WidgetError

TAKEN_DOWN = (QueryError, ScreenError, NoScreen, WidgetError)
"""What is raised where a widget or a screen is wanted that is not there any more."""

SIGNALS = {"SIGTERM": 143, "SIGHUP": 129}
"""Signals that end the app as if by Ctrl+Q, with the exit code a shell expects."""

PATIENCE = 3.0
"""Seconds until a process that does not end by itself is ended."""


def end_on_signals(end: Callable[[int], Any], patience: float = PATIENCE) -> None:
    """Call `end(exit code)` in the running loop on any of SIGNALS, and leave the process after `patience` seconds.

    Once a terminal has gone, Textual's writer has too, and the loop waits forever to give it another frame: a handler
    of the loop's own would not be called. A terminal that hangs up counts as SIGHUP also where no signal comes, as it
    does not to a process of another session. For an app in a terminal, on the main thread.
    """
    loop = asyncio.get_running_loop()
    restore = _terminal_restorer()

    def leave(code: int) -> None:
        restore()
        os._exit(code)

    def ended(code: int) -> None:
        watchdog = threading.Timer(patience, leave, [code])
        watchdog.daemon = True
        watchdog.start()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(end, code)

    for name in SIGNALS.keys() & {each.name for each in signal.Signals}:  # Windows has no SIGHUP
        signal.signal(signal.Signals[name], lambda number, _frame: ended(SIGNALS[signal.Signals(number).name]))
    if sys.platform == "linux":  # elsewhere, poll does not know terminals
        threading.Thread(target=_await_hang_up, args=[ended], name="localmoe-terminal", daemon=True).start()


def _await_hang_up(ended: Callable[[int], None]) -> None:
    """Call `ended` when the terminal that is read has gone."""
    poller = select.poll()
    try:
        poller.register(_stdin(), 0)
        poller.poll()
    except (ValueError, OSError):
        return
    ended(SIGNALS["SIGHUP"])


def _stdin() -> int:
    return sys.__stdin__.fileno() if sys.__stdin__ is not None else 0


def _terminal_restorer() -> Callable[[], None]:
    """What makes the terminal echo and edit lines again."""
    if sys.platform == "win32":
        return lambda: None
    import termios

    try:
        modes = termios.tcgetattr(_stdin())
    except (termios.error, ValueError, OSError):
        return lambda: None
    modes[0] |= termios.ICRNL
    modes[3] |= termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN

    def restore() -> None:
        with contextlib.suppress(termios.error, ValueError, OSError):
            termios.tcsetattr(_stdin(), termios.TCSANOW, modes)

    return restore
