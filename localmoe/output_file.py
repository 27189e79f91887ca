"""Writing files so that nobody ever sees half of them: beside their targets, flushed, then renamed.

One file takes its target's name in one step. Where it replaces another it has a hidden name just before, the only
moment at which a kill leaves one. Several take theirs one after the other, and a kill may come between two:

1. every part gets a hidden name beside its target (`.NAME.TOKEN-I.part`): until the last has one, the old set is whole;
2. the hidden first part is renamed to `.NAME.TOKEN-0.ready`: from now on the new set counts;
3. the old first part goes, so that no reader takes old and new parts for one model;
4. the parts get their names, the first one last.

`finish_interrupted` goes on from any point after 2. open_gguf calls it for a set whose first part is missing, and so
does whoever writes the same set again. The next writer of a target removes what killed ones left. A writer holds a lock
on its files: what is still being written is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from localmoe.errors import FileError, UsageError
from localmoe.late_signals import signals_wait

Notify = Callable[[str], None]


def unheard(_: str) -> None:
    """For those who need not know."""


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

    def __init__(self, target: Path, token: str, number: int) -> None:
        self.target = target
        self._hidden = _hidden(target, token, number, "part")
        self._ready = _hidden(target, token, number, "ready")
        self._stays = False
        with _naming(target):
            self._descriptor, self._named = _open_unnamed(self._hidden)
            _lock(self._descriptor)

    @property
    def path(self) -> Path:
        """What it can be opened by until it is closed."""
        return self._hidden if self._named else Path(f"/proc/self/fd/{self._descriptor}")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        left = memoryview(data).cast("B")
        while left:
            with _naming(self.target):
                left = left[os.write(self._descriptor, left) :]

    def settle(self) -> None:
        """Give it the permissions of what it replaces, and wait until it is on the disk."""
        with _naming(self.target):
            os.fchmod(self._descriptor, _mode(self.target))
            os.fsync(self._descriptor)

    def hide(self) -> None:
        """Give it a hidden name, if it has none yet."""
        with _naming(self.target):
            if not self._named:
                _name(self._descriptor, self._hidden)
            self._named = True

    def appear(self) -> None:
        """Take the target's name."""
        with _naming(self.target):
            if not self._named:
                with contextlib.suppress(FileExistsError):  # only a rename replaces a file, and it needs a name
                    _name(self._descriptor, self.target)
                    return
            self.hide()
            os.replace(self._hidden, self.target)

    def decide(self) -> None:
        """As the first of several: say that all are complete."""
        with _naming(self.target):
            os.replace(self._hidden, self._ready)
        _sync_folder(self._ready.parent)

    def stay(self) -> None:
        """Keep the hidden name when it is closed."""
        self._stays = True

    def close(self) -> None:
        """Close it; unless it has its name, nothing of it stays."""
        os.close(self._descriptor)
        if not self._stays:
            self._hidden.unlink(missing_ok=True)


def _hidden(target: Path, token: str, number: int, state: str) -> Path:
    """The name of part `number` beside its target; state "part", or "ready"."""
    name = target.name
    if len(os.fsencode(name)) > 200:  # a name may have 255 bytes
        name = os.fsdecode(os.fsencode(name)[:180]) + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return target.with_name(f".{name}.{token}-{number}.{state}")


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Turn what the system says about the target into a FileError."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot be written: {error.strerror or error}", file=target) from None


@contextlib.contextmanager
def replacing(target: Path, notify: Notify = unheard) -> Iterator[OutputFile]:
    """A file that becomes `target` when the block ends, and vanishes when it is left by any exception.

    Where the system has unnamed files (Linux) not even SIGKILL leaves anything behind, unless it comes between the two
    calls that replace an older file; elsewhere a hidden name beside the target is. The next one who writes the target
    removes it, and tells `notify`. SIGTERM counts as an exception. FileError: the system refused to write.
    """
    with replacing_all([target], notify) as open_next:
        yield open_next()


@contextlib.contextmanager
def replacing_all(targets: Sequence[Path], notify: Notify = unheard) -> Iterator[Callable[[], OutputFile]]:
    """Several files that appear together when the block ends, and not at all when an exception leaves it.

    The function given opens the next one. All are on the disk before one gets its name. Killed at any moment, the old
    set or the new one is what `open_gguf` finds. `notify` is told what earlier writers left.
    """
    opened: list[OutputFile] = []
    token = secrets.token_hex(6)
    finish_interrupted(targets)
    _sweep(targets, notify)

    def open_next() -> OutputFile:
        opened.append(OutputFile(targets[len(opened)], token, len(opened)))
        return opened[-1]

    with _terminating():
        try:
            yield open_next
            for file in opened:
                file.settle()
            with signals_wait():
                _show(opened, token)
        finally:
            for file in opened:
                file.close()
        for folder in {target.parent for target in targets}:
            _sync_folder(folder)


@contextlib.contextmanager
def scratch(target: Path) -> Iterator[OutputFile]:
    """A file on the same disk as `target`, to be written, read again by its `path`, and gone when the block ends.

    What SIGKILL leaves where the system has no unnamed files, the next writer of the target removes. FileError: the
    system refused to write.
    """
    with _terminating():
        file = OutputFile(target, secrets.token_hex(6), 0)
        try:
            yield file
        finally:
            file.close()


def _show(files: Sequence[OutputFile], token: str) -> None:
    """Give all files their names, by the steps that this module describes."""
    if len(files) == 1:
        files[0].appear()
        return
    for file in files:
        file.hide()
    files[0].decide()
    for file in files:
        file.stay()
    _rename([file.target for file in files], token)


def _rename(targets: Sequence[Path], token: str) -> None:
    """Steps 3 and 4 of a set that is complete, or what is left of them."""
    with _naming(targets[0]), contextlib.suppress(FileNotFoundError):
        os.unlink(targets[0])
    for number in range(len(targets) - 1, 0, -1):
        with _naming(targets[number]), contextlib.suppress(FileNotFoundError):  # it has its name already
            os.replace(_hidden(targets[number], token, number, "part"), targets[number])
    with _naming(targets[0]):
        os.replace(_hidden(targets[0], token, 0, "ready"), targets[0])


def finish_interrupted(targets: Sequence[Path]) -> None:
    """Give the parts of a set that was complete when its writer was killed their names; nothing where there is none.

    FileError: the system refuses.
    """
    if len(targets) < 2:
        return
    found = [Path(os.path.realpath(target)) for target in targets]
    for ready, token in _left_behind(found[0], 0, "ready"):
        with _abandoned(ready) as abandoned:
            if abandoned:
                _rename(found, token)
                _sync_folder(found[0].parent)


def _sweep(targets: Sequence[Path], notify: Notify) -> None:
    """Remove what killed writers of these targets left under hidden names."""
    for number, target in enumerate(targets):
        for path, _ in _left_behind(target, number, "part"):
            with _abandoned(path) as abandoned, contextlib.suppress(OSError):
                if abandoned:
                    os.unlink(path)
                    notify(f"removed {path}, left by a writer that was killed")


def _left_behind(target: Path, number: int, state: str) -> list[tuple[Path, str]]:
    """Hidden files of part `number` beside its target, the newest last, each with its set's token."""
    name = _hidden(target, "TOKEN", number, state).name
    pattern = re.compile(re.escape(name).replace("TOKEN", "([0-9a-f]{12})", 1))
    with contextlib.suppress(OSError):
        matches = [pattern.fullmatch(entry) for entry in os.listdir(target.parent)]
        found = [(target.with_name(match[0]), match[1]) for match in matches if match]
        return sorted(found, key=lambda item: item[0].stat().st_mtime_ns)
    return []


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether no process writes the file: its lock, held within the block, and its name still its own."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor) and _names(path, descriptor)
    finally:
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    """Whether the path is still that of the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed; False if another has. A system without such locks gives it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has none
        return True
    return True


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
