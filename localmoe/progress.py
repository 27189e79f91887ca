"""How long work reports itself: a tiny protocol and its terminal form."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, Self

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


class ChunkProgress:
    """Chunks of a text on stderr with a figure that settles: a bar with time left, without a terminal `[1]5.43,[2]...`.

    A context: the bar goes, or the line ends, when it is left.
    """

    def __init__(self, n_chunk: int, label: str) -> None:
        self._n_chunk, self._label, self._written = n_chunk, label, False
        self._bar: RichBar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichBar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figure]}"),
            )
            self._bar = RichBar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._label, total=self._n_chunk, figure="")
            self._bar.start()
        return self

    def done(self, n: int, figure: str) -> None:
        """`n` chunks are done, and this is the figure so far."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=n, figure=figure)
        else:
            print(f"[{n}]{figure},", end="", file=sys.stderr, flush=True)
            self._written = True

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._written:
            print(file=sys.stderr)
