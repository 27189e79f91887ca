"""Ctrl-C while a prompt is read: Python's handler waits for the compiled pass, which can take seconds."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Interruptible(Protocol):
    def interrupt(self) -> None: ...


@contextmanager
def prompt_ends_on_signals(model: Interruptible) -> Iterator[None]:
    """While this lasts, a signal that Python handles has the model leave its prompt within a layer.

    The system's own handler writes a byte, which a thread waits for. What the signal means is still decided by Python's
    handler, which runs once the pass has returned. To be used in the main thread.
    """
    ours, told = socket.socketpair()
    told.setblocking(False)

    def wait() -> None:
        while ours.recv(1):
            model.interrupt()

    thread = threading.Thread(target=wait, name="localmoe-signals", daemon=True)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()
        thread.join()
        ours.close()
