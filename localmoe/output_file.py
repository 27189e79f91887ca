"""Writing a file so that nobody ever sees half of it: beside its target, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from localmoe.errors import FileError, UsageError


def check_target(out: Path, inputs: Sequence[Path], *, file: str) -> Path:
    """The path that will be replaced, links resolved.

    UsageError if it is one of the inputs, under any name; FileError if it is no regular file or its folder is missing.
    """
    target = Path(os.path.realpath(out))
    try:
        status = out.stat()  # of `out`: a pipe behind /dev/stdout has no path
    except (FileNotFoundError, NotADirectoryError):
        if not target.parent.is_dir():
            raise FileError("the folder does not exist", file=out) from None
        return target
    except OSError as error:
        raise FileError(error.strerror or str(error), file=out) from None
    for path in inputs:
        if path.exists() and os.path.samestat(path.stat(), status):
            raise UsageError("input and output are the same file", file=file)
    if not stat.S_ISREG(status.st_mode):
        raise FileError("cannot be replaced: not a regular file", file=out)
    return target


class OutputFile:
    """The file being written: every refusal of the system becomes a FileError that names the target."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._hidden = target.with_name(f".localmoe-{secrets.token_hex(8)}.part")  # its name may be long
        with _naming(target):
            self._descriptor, self._named = _open_unnamed(self._hidden)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        left = memoryview(data).cast("B")
        while left:
            with _naming(self._target):
                left = left[os.write(self._descriptor, left) :]

    def settle(self) -> None:
        """Give it the permissions of what it replaces, and wait until it is on the disk."""
        with _naming(self._target):
            os.fchmod(self._descriptor, _mode(self._target))
            os.fsync(self._descriptor)

    def appear(self) -> None:
        """Take the target's name."""
        with _naming(self._target):
            if not self._named:
                _name(self._descriptor, self._hidden)
            os.replace(self._hidden, self._target)

    def close(self) -> None:
        """Close it; unless it has its name, nothing of it stays."""
        os.close(self._descriptor)
        self._hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Turn what the system says about the target into a FileError."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot be written: {error.strerror or error}", file=target) from None


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[OutputFile]:
    """A file that becomes `target` when the block ends, and vanishes when it is left by any exception.

    Where the system has unnamed files (Linux) not even SIGKILL leaves anything behind; elsewhere a hidden name beside
    the target is removed. SIGTERM counts as an exception. FileError: the system refused to write.
    """
    with replacing_all([target]) as open_next:
        yield open_next()


@contextlib.contextmanager
def replacing_all(targets: Sequence[Path]) -> Iterator[Callable[[], OutputFile]]:
    """Several files that appear together when the block ends, and not at all when an exception leaves it.

    The function given opens the next one. All are on the disk before one gets its name, and the first gets it last.
    Where several are replaced the old first one goes before: were the process killed between two names, old and new
    files would otherwise pass for one set.
    """
    opened: list[OutputFile] = []

    def open_next() -> OutputFile:
        opened.append(OutputFile(targets[len(opened)]))
        return opened[-1]

    with _terminating():
        try:
            yield open_next
            for file in opened:
                file.settle()
            with _undisturbed():
                if len(targets) > 1:
                    targets[0].unlink(missing_ok=True)
                for file in reversed(opened):
                    file.appear()
        finally:
            for file in opened:
                file.close()
        for folder in {target.parent for target in targets}:
            _sync_folder(folder)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open_unnamed(hidden: Path) -> tuple[int, bool]:
    """A descriptor to write to, and whether it already has the name `hidden`."""
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    if os.path.isdir("/proc/self/fd"):  # through which it gets its name in the end
        with contextlib.suppress(AttributeError, OSError):  # not this system, or not this file system
            return os.open(hidden.parent, flags | os.O_TMPFILE, 0o600), False
    return os.open(hidden, flags | os.O_CREAT | os.O_EXCL, 0o600), True


def _name(descriptor: int, path: Path) -> None:
    """Give an unnamed file a name; only linkat follows /proc's link, and Python calls it when given a folder."""
    folder = os.open("/", os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _mode(target: Path) -> int:
    """The permissions of the file replaced, or those a new one gets."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(143) for as long as there is something to clean up."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
