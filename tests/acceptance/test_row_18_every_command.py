"""Row 18 for every command that writes: wherever the system refuses, 4, a line with the output's name, and no trace.

A real file system of a few pages, filled to several levels; and refusals of each call in turn, since a full disk is
seen by a write here, by a flush or a rename there.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localmoe import output_file
from localmoe.cli import main
from localmoe.converters import output, pipeline
from tests.acceptance.command import contents
from tests.acceptance.writers import NAMES, OLD, Writers
from tests.small_disk import small_disk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's tmpfs and unnamed files")
PAGE = 4096
DISK = 256 * PAGE


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Writers:
    return Writers(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of DISK bytes."""
    folder = tmp_path_factory.mktemp("disk")
    with small_disk(folder, DISK) as there:
        if not there:
            pytest.skip("a small file system cannot be mounted here")
        yield folder


def fails(
    writers: Writers, name: str, out: Path, reason: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Run a command in this process; it must fail with 4 and one last line, and leave the output's folder alone."""
    monkeypatch.setenv("LOCALMOE_DATA", str(writers.data))
    before = contents(out.parent)
    capsys.readouterr()
    code = main(list(writers.commands[name](out)))
    printed = capsys.readouterr()
    assert code == 4, printed.err
    lines = printed.err.splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert lines[-1].startswith(f"error: {out}: ")
    assert reason in lines[-1]
    assert "Traceback" not in printed.err
    assert contents(out.parent) == before


def fill(folder: Path, n_left: int) -> None:
    """Leave `n_left` bytes of the file system."""
    (folder / "filler").unlink(missing_ok=True)
    free = os.statvfs(folder).f_bavail * PAGE
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - n_left)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_to_several_levels(
    writers: Writers, disk: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing left, room for the header alone, for half, for all but a page; asked for room in advance or not."""
    out = writers.target(disk, name)
    for path in disk.iterdir():
        path.unlink()
    monkeypatch.setenv("LOCALMOE_DATA", str(writers.data))
    assert main(list(writers.commands[name](out))) == 0
    n_page = -(-out.stat().st_size // PAGE)
    out.write_bytes(OLD)
    levels = sorted({0, min(1, n_page - 1), n_page // 2, n_page - 1})
    for asked in (True, False):
        if not asked:
            monkeypatch.setattr(pipeline, "check_space", lambda *_: None)
            monkeypatch.setattr(output, "check_space", lambda *_: None)
        for level in levels:
            fill(disk, level * PAGE)
            fails(writers, name, out, "space", capsys, monkeypatch)
    fill(disk, n_page * PAGE)
    assert main(list(writers.commands[name](out))) == 0
    assert out.read_bytes() != OLD


class Refusing:
    """A function of the system's that works `n` times and then says that there is no room."""

    def __init__(self, function: Callable[..., Any], n: int) -> None:
        self.function, self.left, self.calls = function, n, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*arguments, **options)


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_call_that_can_be_refused(
    writers: Writers, tmp_path: Path, name: str, unnamed: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Opening, each write (the first ones, one in the middle, the last), permissions, flush, link and rename."""
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.setenv("LOCALMOE_DATA", str(writers.data))
    out = writers.target(tmp_path, name)
    out.write_bytes(OLD)
    counting = Refusing(os.write, 1 << 30)
    with monkeypatch.context() as counted:
        counted.setattr(output_file.os, "write", counting)
        assert main(list(writers.commands[name](out))) == 0
    out.write_bytes(OLD)
    writes = sorted({0, min(1, counting.calls - 1), counting.calls // 2, counting.calls - 1})
    points = [("write", n) for n in writes] + [("fchmod", 0), ("fsync", 0), ("replace", 0)]
    points += [("link", 0)] if unnamed else []
    for function, n in points:
        with monkeypatch.context() as refused:
            refused.setattr(output_file.os, function, Refusing(getattr(os, function), n))
            fails(writers, name, out, os.strerror(errno.ENOSPC), capsys, monkeypatch)
    assert main(list(writers.commands[name](out))) == 0
