"""How long work reports itself: a tiny protocol and its terminal form."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID


class Progress(Protocol):
    """Told about bytes as they are done; `start` opens a stage, `finish` closes it."""

    def start(self, total_bytes: int, label: str) -> None:
        """Begin a stage of `total_bytes`, called `label`."""

    def advance(self, n: int) -> None:
        """Another `n` bytes are done."""

    def finish(self) -> None:
        """The stage is over, or was given up."""


class Silent:
    """Says nothing."""

    def start(self, total_bytes: int, label: str) -> None:
        """Ignored."""

    def advance(self, n: int) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""


class TerminalProgress:
    """A bar with bytes/s and time left on stderr; without a terminal only a closing line for each stage."""

    def __init__(self) -> None:
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._done = self._total = 0
        self._began = 0.0

    def start(self, total_bytes: int, label: str) -> None:
        """Open the bar (if stderr is a terminal)."""
        self._label, self._done, self._total, self._began = label, 0, total_bytes, time.monotonic()
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichBar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = RichBar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(escape(label), total=total_bytes)
        self._bar.start()

    def advance(self, n: int) -> None:
        """Move the bar by `n` bytes."""
        self._done += n
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n)

    def finish(self) -> None:
        """Take the bar away; say in one line what was done, and how fast, if it was all of it."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        if self._done >= self._total:
            seconds = max(time.monotonic() - self._began, 1e-9)
            size, rate = self._done / 2**20, self._done / 2**20 / seconds
            print(f"{self._label}: {size:.1f} MiB in {seconds:.1f} s ({rate:.0f} MiB/s)", file=sys.stderr)
