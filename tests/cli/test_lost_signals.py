"""Signals that land where Python cannot raise them, or under another exception."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from localmoe.cli.lost_signals import no_lost_signals
from localmoe.errors import FileError

posix = pytest.mark.skipif(sys.platform == "win32", reason="no kill")
ENDINGS = (KeyboardInterrupt(), SystemExit(143))


class Finalized:
    """An object in whose finalizer a signal lands."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def wait_under(number: int) -> None:
    """Half a minute, if nothing ends it."""
    Finalized(number)
    for _ in range(30):
        time.sleep(1)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_lost_in_a_finalizer_comes_again(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended, no_lost_signals():
        wait_under(number)
    assert time.monotonic() - began < 20
    assert number == signal.SIGINT or ended.value.args == (143,)
    assert capfd.readouterr().err == ""


def compile_under(number: int) -> None:
    """As the compiler does, fail for want of what a signal kept from being made."""
    Finalized(number)
    raise RuntimeError("no code was generated")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_failure_that_comes_first_is_that_ending(number: int) -> None:
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit), no_lost_signals():
        compile_under(number)


@contextmanager
def failing(error: Exception) -> Iterator[None]:
    """Something whose end fails."""
    try:
        yield
    finally:
        raise error


@pytest.mark.parametrize("ending", ENDINGS, ids=repr)
def test_a_failure_over_it_is_that_ending(ending: BaseException) -> None:
    with pytest.raises(type(ending)) as ended, no_lost_signals(), failing(RuntimeError("cannot release")):
        raise ending
    assert ended.value.args == ending.args
    assert ended.value.__context__ is None or ended.value.__suppress_context__


@pytest.mark.parametrize("ending", ENDINGS, ids=repr)
def test_what_the_user_must_know_is_told(ending: BaseException) -> None:
    for error in (FileError("cannot be written", file="f"), OSError("disk"), MemoryError()):
        with pytest.raises(type(error)), no_lost_signals(), failing(error):
            raise ending


def test_other_failures_stay_what_they_are() -> None:
    hook = sys.unraisablehook
    with pytest.raises(ValueError, match="a bug"), no_lost_signals():
        raise ValueError("a bug")
    assert sys.unraisablehook is hook
