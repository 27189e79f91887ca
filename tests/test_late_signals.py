"""Signals that wait until a block has ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from localmoe.late_signals import signals_wait

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no kill")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_handler_runs_after_the_block_whichever_thread_has_the_signal(number: int) -> None:
    handled: list[str] = []
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    before = signal.signal(number, lambda *_: handled.append("handled"))
    other.start()
    try:
        with signals_wait():
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            handled.append("ended")
    finally:
        signal.signal(number, before)
        done.set()
        other.join()
    assert handled == ["ended", "handled"]


def interrupted_and_failing() -> None:
    with signals_wait():
        os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError


def test_what_is_ignored_stays_ignored_and_errors_pass() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(ZeroDivisionError):
            interrupted_and_failing()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_other_threads_nothing_changes() -> None:
    seen: list[object] = []

    def look() -> None:
        with signals_wait():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
