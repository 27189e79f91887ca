"""Textual's driver for Linux without its threads: each took a core from the engine to write a drawing or see no key."""

from __future__ import annotations

import asyncio
import os
import select
from codecs import getincrementaldecoder
from collections.abc import Iterable

from textual import constants
from textual._xterm_parser import XTermParser
from textual.drivers._writer_thread import WriterThread
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

BACKLOG = 1 << 20
"""Bytes that a terminal may be behind; the app waits for one that is further behind, as Textual's writer does."""
CHUNK = 4096


class Output:
    """Writes to a terminal from the loop's thread, a drawing at a time, and waits for none that takes no more."""

    def __init__(self, terminal: int, encoding: str) -> None:
        self._terminal, self._encoding = terminal, encoding
        self._loop = asyncio.get_running_loop()
        self._parts: list[str] = []
        self._rest = b""
        self._ended = False

    def start(self) -> None:
        """Nothing: there is no thread."""

    def write(self, text: str) -> None:
        """Take what is to be sent by the next `flush`, or when the loop comes to it."""
        if self._ended:
            return
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(text)

    def flush(self) -> None:
        """Send what there is, as much as is taken, and the rest when the terminal takes it."""
        behind = bool(self._rest)
        if self._parts:
            self._rest += "".join(self._parts).encode(self._encoding, "backslashreplace")
            self._parts.clear()
        self._send()
        while len(self._rest) > BACKLOG:
            self._wait()
        if self._rest and not behind:
            self._loop.add_writer(self._terminal, self.flush)
        elif behind and not self._rest:
            self._loop.remove_writer(self._terminal)

    def stop(self) -> None:
        """Send all, however long it takes, and take no more."""
        self.flush()
        while self._rest:
            self._wait()
        self._loop.remove_writer(self._terminal)
        self._ended = True

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._terminal, select.POLLOUT)
        poller.poll()
        self._send()

    def _send(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._terminal, self._rest) :]
        except BlockingIOError:
            return
        except OSError:  # the terminal has gone
            self._rest = b""


class LoopDriver(LinuxDriver):
    """Reads and writes on the loop's thread, where the terminal can be opened once more, without waiting.

    The descriptors that the app was given are shared with the shell: to make those not wait would be seen there.
    """

    _writer: Output | WriterThread | None = None
    _terminal: int | None = None
    _tick: asyncio.TimerHandle | None = None

    @property  # type: ignore[override] # Textual's would start, and write
    def _writer_thread(self) -> Output | WriterThread | None:
        return self._writer

    @_writer_thread.setter
    def _writer_thread(self, thread: WriterThread | None) -> None:
        if thread is not None and self._terminal is not None:
            self._writer = Output(self._terminal, getattr(self._file, "encoding", None) or "utf-8")
        else:
            self._writer = thread

    def start_application_mode(self) -> None:
        self._terminal = _opened(self.fileno)
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if self._terminal is not None and self._writer is not None:
            self._parser, self._decoder = XTermParser(self._debug), getincrementaldecoder("utf-8")("replace")
            self._loop.add_reader(self._terminal, self._read)
        self.flush()

    def _get_terminal_size(self) -> tuple[int, int]:
        """Columns and rows of the terminal itself, as it was resized: COLUMNS and LINES hold what once was."""
        try:
            columns, rows = os.get_terminal_size(self._terminal if self._terminal is not None else self.fileno)
        except OSError:
            columns = rows = 0
        return (columns, rows) if columns and rows else super()._get_terminal_size()

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def disable_input(self) -> None:
        super().disable_input()
        if self._terminal is not None:
            self._loop.remove_reader(self._terminal)

    def close(self) -> None:
        super().close()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None

    def run_input_thread(self) -> None:
        if self._terminal is None:  # else the loop reads, and there is nothing for a thread to do
            super().run_input_thread()

    def _read(self) -> None:
        assert self._terminal is not None
        try:
            data = os.read(self._terminal, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the terminal has gone
            self._loop.remove_reader(self._terminal)
            return
        self._tell(self._parser.feed(self._decoder.decode(data)))
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._loop.call_later(constants.ESCAPE_DELAY, self._escape)

    def _escape(self) -> None:
        """Take an Escape with nothing after it for the key."""
        self._tell(self._parser.tick())

    def _tell(self, events: Iterable[Message]) -> None:
        try:
            for event in events:
                self.process_message(event)
        except Exception as error:  # whatever it is, the app ends with it and sets the terminal back
            self._app._handle_exception(error)


def _opened(terminal: int) -> int | None:
    """Another descriptor of a terminal, which waits for nothing; None where there can be none."""
    try:
        return os.open(os.ttyname(terminal), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
