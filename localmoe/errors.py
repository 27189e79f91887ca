"""The project's errors: one line for a person, one exit code for a shell."""

from __future__ import annotations

import os


class LocalMoeError(Exception):
    """An expected failure, shown as `FILE: ITEM: reason, got X, expected Y`.

    `file` is the path it is about, `item` the tensor, key or offset in it. Entry points print it as one
    `error: ...` line on stderr and exit with `exit_code`.
    """

    exit_code = 1

    def __init__(
        self,
        reason: str,
        *,
        file: str | os.PathLike[str] | None = None,
        item: str | None = None,
        got: object = None,
        expected: object = None,
    ) -> None:
        self.reason = reason
        self.file = None if file is None else os.fspath(file)
        self.item = item
        where = "".join(f"{part}: " for part in (self.file, item) if part)
        seen = "" if got is None else f", got {got}"
        wanted = "" if expected is None else f", expected {expected}"
        super().__init__(f"{where}{reason}{seen}{wanted}")


class UsageError(LocalMoeError):
    """The command or call itself is wrong: exit code 2."""

    exit_code = 2


class BadInputError(LocalMoeError):
    """A file's content is not what it must be: exit code 3."""

    exit_code = 3


class FileError(LocalMoeError):
    """The operating system refused to read or write: exit code 4."""

    exit_code = 4


class MemoryLimitError(LocalMoeError):
    """It does not fit in memory: exit code 5."""

    exit_code = 5
