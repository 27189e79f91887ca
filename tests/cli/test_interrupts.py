"""A signal reaches a prompt while the main thread is in compiled code, for which Python's handlers wait."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time

import pytest

from localmoe.cli.interrupts import prompt_ends_on_signals


class Told:
    def __init__(self) -> None:
        self.at: list[float] = []

    def interrupt(self) -> None:
        self.at.append(time.perf_counter())


@pytest.mark.skipif(sys.platform == "win32", reason="no kill")
def test_a_model_is_told_while_the_handler_waits() -> None:
    """A signal that comes between two calls of compiled code is handled at once and shows nothing: it is sent again."""
    for _ in range(5):
        sent, told, handled = signalled()
        assert len(sent) == len(told) == len(handled) == 1
        assert signal.set_wakeup_fd(-1) == -1  # as it was
        assert not [thread for thread in threading.enumerate() if thread.name == "localmoe-signals"]
        if sent[0] < told[0] < handled[0]:
            return
    raise AssertionError(f"sent {sent}, told {told}, handled {handled}")


def signalled() -> tuple[list[float], list[float], list[float]]:
    """When signals were sent, when the model was told, and when they were handled."""
    model = Told()
    sent: list[float] = []
    handled: list[float] = []

    def send() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda *_: handled.append(time.perf_counter()))
    try:
        with prompt_ends_on_signals(model):
            threading.Timer(0.05, send).start()
            deadline = time.perf_counter() + 40.0
            while not (handled and model.at) and time.perf_counter() < deadline:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # in one piece, as a compiled pass
    finally:
        signal.signal(signal.SIGINT, before)
    return sent, model.at, handled
