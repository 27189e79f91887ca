"""What the app's driver does with a terminal: whole drawings, no waiting, all of it in the end, no threads."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

if sys.platform != "linux":
    pytest.skip("the driver for Linux", allow_module_level=True)

from localmoe.tui import driver
from localmoe.tui.driver import Output

from .settling import DEADLINE
from .test_terminal import ENTERED, LEFT, Terminal

LONG = "".join(f"{number} " for number in range(40_000))  # 230 KB: a pipe holds 64


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read, and where to write without waiting."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    yield ends
    for end in ends:
        os.close(end)


async def read_all(end: int, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += await asyncio.to_thread(os.read, end, 1 << 16)
    return got


def test_a_drawing_is_sent_at_once(pipe, monkeypatch):
    """Pieces that are written before `flush` are one system call."""
    calls, write = [], os.write

    def watched(end: int, data: bytes) -> int:
        calls.append(bytes(data))
        return write(end, data)

    async def draw() -> None:
        output = Output(pipe[1], "utf-8")
        for piece in ("begin", "é", "end"):
            output.write(piece)
        monkeypatch.setattr(os, "write", watched)
        output.flush()
        await asyncio.sleep(0.01)

    asyncio.run(draw())
    assert calls == ["beginéend".encode()]


def test_what_nobody_flushes_is_sent_too(pipe):
    """As a bell or a text for the clipboard."""

    async def ring() -> bytes:
        Output(pipe[1], "utf-8").write("\a")
        await asyncio.sleep(0.01)
        return os.read(pipe[0], 10)

    assert asyncio.run(ring()) == b"\a"


def test_a_slow_terminal_holds_nothing_up_and_gets_everything(pipe):
    """The loop goes on while nobody reads; later pieces come behind those that wait."""

    async def write_on() -> bytes:
        output = Output(pipe[1], "utf-8")
        output.write(LONG)
        output.flush()
        output.write("last")
        output.flush()
        await asyncio.sleep(0.05)
        return await read_all(pipe[0], len(LONG) + 4)

    assert asyncio.run(asyncio.wait_for(write_on(), DEADLINE)) == LONG.encode() + b"last"


def test_the_end_waits_until_all_is_sent(pipe):
    """The terminal's modes are set back by what comes last."""
    got: list[bytes] = []

    def read() -> None:
        time.sleep(0.2)
        got.append(asyncio.run(read_all(pipe[0], len(LONG))))

    async def stop() -> None:
        output = Output(pipe[1], "utf-8")
        output.write(LONG)
        output.stop()
        output.write("too late")
        output.flush()

    reader = threading.Thread(target=read)
    reader.start()
    asyncio.run(stop())
    reader.join()
    assert got == [LONG.encode()]
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 10)


def test_memory_is_bounded_where_nobody_reads(pipe, monkeypatch):
    """A terminal that is too far behind is waited for."""
    monkeypatch.setattr(driver, "BACKLOG", len(LONG) + 1)

    async def flood() -> float:
        output = Output(pipe[1], "utf-8")
        output.write(LONG)
        output.flush()
        began = time.monotonic()
        threading.Timer(0.3, lambda: os.read(pipe[0], 1 << 17)).start()
        output.write("x" * (1 << 17))
        output.flush()
        return time.monotonic() - began

    assert asyncio.run(flood()) > 0.25


def test_a_terminal_that_has_gone_is_no_error(pipe):
    """Nothing waits for it either."""

    async def write_into_nothing() -> None:
        spare = os.dup(pipe[1])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, pipe[0])
        os.close(null)
        output = Output(spare, "utf-8")
        output.write(LONG)
        output.stop()
        os.close(spare)

    asyncio.run(asyncio.wait_for(write_into_nothing(), DEADLINE))


NAMES = """
import sys, threading
from pathlib import Path
from localmoe.tui.app import run_app
from tests.tui.fake_model import FakeModel
class Named(FakeModel):
    def chat(self, messages, **options):
        Path(sys.argv[1]).write_text(" ".join(thread.name for thread in threading.enumerate()))
        return super().chat(messages, **options)
sys.exit(run_app(Path("demo.gguf"), None, lambda progress: Named()))
"""


def test_no_thread_reads_or_writes_beside_the_engine(tmp_path):
    """Each would take a core from it to see that there is nothing to do."""
    terminal = Terminal(str(tmp_path / "names"), program=NAMES)
    terminal.read_until(b"Message")
    os.write(terminal.end, b"hello\r")
    terminal.read_until(b"mixture")  # of the answer
    os.write(terminal.end, b"\x11")
    terminal.ends(0)
    names = (tmp_path / "names").read_text().split()
    assert "localmoe-engine" in names
    assert not [name for name in names if name.startswith("textual")]


def test_an_app_that_was_suspended_goes_on():
    """SIGTSTP gives the terminal back, SIGCONT takes it again, draws all and takes keys."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.read_until(LEFT)
    terminal.wait_until_stopped()
    terminal.output = b""
    terminal.process.send_signal(signal.SIGCONT)
    terminal.read_until(ENTERED)
    terminal.read_until(b"Message")  # what comes before that may be taken for a line still, and Enter for its end
    os.write(terminal.end, b"hello\r")
    terminal.read_until(b"word")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.ends(143)
