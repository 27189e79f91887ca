"""File systems mounted for a test, which are gone with it whatever ends it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# It holds the mount until nobody has the other end of its input any more, also where the tests were killed.
_HOLD = """
trap '' INT TERM HUP
folder=$1; shift
mount "$@" "$folder" && echo mounted && cat && umount -l "$folder"
"""


@contextmanager
def mounted(folder: Path, *what: str) -> Iterator[bool]:
    """Mount with these arguments for as long as the block lasts; whether that could be done."""
    if os.geteuid() != 0:
        yield False
        return
    with subprocess.Popen(
        ["sh", "-c", _HOLD, "sh", str(folder), *what], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        yield holder.stdout.readline() == b"mounted\n"


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[bool]:
    """A file system of so many bytes in a folder; whether there can be one."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs") as there:
        yield there
