"""Nobody ever sees half a file: full disks, signals, links, permissions."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localmoe.converters import output
from localmoe.converters.gguf_source import gguf_source
from localmoe.converters.pipeline import WriteReport, write_model
from localmoe.errors import FileError
from localmoe.gguf_file import open_gguf
from localmoe.output_file import replacing
from tests.tiny import write_tiny

SHAPE = {"n_embd": 256, "n_ff": 256, "n_layer": 2}


def quantize(source: Path, out: Path, file_type: str, **options: object) -> WriteReport:
    with open_gguf(source) as opened:
        return write_model(gguf_source(opened), out, file_type, **options)  # type: ignore[arg-type]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "in.gguf", type="BF16", **SHAPE)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A good file that stands where the output goes."""
    path = tmp_path / "out.gguf"
    path.write_bytes(b"the old file")
    return path


def only_old_is_left(old: Path) -> bool:
    return old.read_bytes() == b"the old file" and os.listdir(old.parent) == [old.name]


# --- what is left behind ---------------------------------------------------------------------------------------------


def test_a_disk_too_small_is_seen_before_writing(source: Path, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FileError, match="not enough space on the disk, got 1000 bytes free"):
        quantize(source, old, "Q8_0")
    assert only_old_is_left(old)


RUN = """
import resource, sys
from pathlib import Path
from localmoe.cli import main
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(["quantize", sys.argv[1], sys.argv[2], "Q8_0", "-t", "2"]))
"""


def start(source: Path, out: Path, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(source), str(out), str(limit)],
                            stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])  # fmt: skip


def test_a_disk_that_fills_up(source: Path, old: Path) -> None:
    """Row 18: the system refuses half-way; one line, exit 4, the old file as it was."""
    run = start(source, old, limit=100_000)
    _, said = run.communicate(timeout=240)
    assert run.returncode == 4, said
    assert said.splitlines()[-1] == f"error: {old}: cannot be written: {os.strerror(errno.EFBIG)}"
    assert only_old_is_left(old)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source that takes long enough to be interrupted: 100 MB."""
    fields = {"n_embd": 256, "n_ff": 4096, "n_layer": 2}
    return write_tiny(tmp_path_factory.mktemp("large") / "in.gguf", type="F16", **fields)


@pytest.mark.parametrize(
    ("number", "code", "delay"),
    [(signal.SIGKILL, -9, 0.0), (signal.SIGKILL, -9, 0.05), (signal.SIGINT, 130, 0.0), (signal.SIGTERM, 143, 0.0)],
)
def test_killed_at_some_moment(large: Path, old: Path, number: int, code: int, delay: float) -> None:
    """Rows 19 and 20: whenever it comes, the old file stays (or the new one is whole), and nothing lies beside it."""
    run = start(large, old)
    deadline = time.monotonic() + 240
    while not _writes_in(run.pid, old.parent) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    run.send_signal(number)
    _, said = run.communicate(timeout=240)
    if run.returncode == 0 or old.read_bytes()[:4] == b"GGUF":  # it was done before the signal came
        with open_gguf(old) as whole:
            assert len(whole.tensors) > 10
        assert os.listdir(old.parent) == [old.name]
        return
    assert run.returncode == code, said
    if number == signal.SIGKILL:  # between the two calls that replace a file the new one has a hidden name
        for path in old.parent.glob(f".{old.name}.*.part"):
            path.unlink()
    assert only_old_is_left(old)
    assert number != signal.SIGINT or said.splitlines()[-1] == "error: interrupted"


def _writes_in(pid: int, folder: Path) -> bool:
    """Whether the process holds a file of that folder open (also one without a name)."""
    try:
        return any(os.readlink(entry.path).startswith(str(folder)) for entry in os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _write_half(target: Path) -> None:
    with replacing(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("unnamed", [True, False])
def test_an_exception_inside_leaves_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool) -> None:
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with pytest.raises(KeyboardInterrupt):
        _write_half(old)
    assert only_old_is_left(old)
    with replacing(old) as file:
        file.write(b"new")
    assert old.read_bytes() == b"new"
    assert os.listdir(old.parent) == [old.name]


def test_the_old_files_permissions_stay(old: Path) -> None:
    old.chmod(0o640)
    with replacing(old) as file:
        file.write(b"new")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path: Path, source: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.gguf"
    link.symlink_to(tmp_path / "real" / "out.gguf")
    quantize(source, link, "Q8_0")
    assert link.is_symlink()
    assert (tmp_path / "real" / "out.gguf").stat().st_size > 1000
