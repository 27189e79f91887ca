"""When the app has done all that it has been told, however few cores other programs leave it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from textual.app import App
from textual.message_pump import MessagePump
from textual.pilot import Pilot, WaitForScreenTimeout

ROUNDS = 20  # at most: an app that is told more all the time never settles
DEADLINE = 180.0  # seconds until a test fails: beside other programs a step that takes one may take a minute


async def handled(pilot: Pilot[Any], timeout: float = DEADLINE) -> bool:
    """Wait until the app and all of its screen's widgets have handled what they were sent; whether they have.

    As Textual's own, which waits in vain for a widget that is removed meanwhile.
    """
    app, end = pilot.app, time.monotonic() + timeout
    if not app.screen_stack:
        return False
    waiting = {node for node in [app, *app.screen.walk_children(with_self=True)] if node._running}

    def handle(node: MessagePump) -> None:
        waiting.discard(node)

    for node in list(waiting):
        if not node.call_later(lambda node=node: handle(node)):
            handle(node)
    while waiting and not app._exception_event.is_set():
        if time.monotonic() > end:
            raise WaitForScreenTimeout(f"not handled within {timeout} s by {waiting}")
        await asyncio.sleep(0.002)
        waiting -= {node for node in waiting if node._closing or node._closed}
    return not waiting


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until every message is handled and all is laid out and drawn; no timers and threads are waited for."""
    app = pilot.app
    for _ in range(ROUNDS):
        if app._exit or not await pilot._wait_for_screen() or not app.screen_stack:
            return
        app.screen._on_timer_update()
        await asyncio.sleep(0)
        if not _has_work(app):
            return


def _has_work(app: App[Any]) -> bool:
    """Whether a message or a callback waits, or the screen is not as it should be."""
    pumps = [app, *(node for screen in app.screen_stack for node in screen.walk_children(with_self=True))]
    if any(pump.message_queue_size or pump._next_callbacks for pump in pumps):
        return True
    screen = app.screen if app.screen_stack else None
    return screen is not None and bool(
        screen._layout_required or screen._repaint_required or screen._dirty_widgets or screen._callbacks
    )
