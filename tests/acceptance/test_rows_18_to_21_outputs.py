"""Rows 18, 20 and 21 through the command line: an output that cannot be finished leaves the older one as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.acceptance.command import LOCALMOE, PATIENCE, contents, environment, localmoe, start, together
from tests.checkpoints import Tiny, write_checkpoint
from tests.small_disk import small_disk
from tests.tiny import write_tiny

SMALL = {"n_layer": 2, "n_embd": 64, "n_ff": 96}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's tmpfs or signals")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("small") / "in.gguf", **SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """52 MB, so that there is time to interrupt."""
    return write_tiny(tmp_path_factory.mktemp("large") / "in.gguf", n_layer=2, n_embd=512, n_ff=512, n_head=8)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, 256 << 10) as there:
        if not there:
            pytest.skip("a small file system cannot be mounted here")
        yield folder


@linux_only
def test_row_18_the_disk_is_full(small: Path, disk: Path) -> None:
    out = disk / "out.gguf"
    out.write_bytes(b"older output")
    checkpoint = write_checkpoint(disk.parent / "m", Tiny())
    answers = together(("quantize", small, out, "F16"), ("convert", checkpoint, "-o", out, "--type", "F32"))
    for answer in answers:
        answer.failed(4, f"error: {out}: ", "space")
    assert contents(disk) == {"out.gguf": b"older output"}
    localmoe("quantize", small, "new.gguf", "F16", cwd=disk).failed(4, "new.gguf", "space")
    for limit in (("--split-max-size", "1M"), ("--split-max-tensors", "4")):
        localmoe("quantize", small, "new.gguf", "F32", *limit, cwd=disk).failed(4, "new-00001-of-0000", "space")
    assert contents(disk) == {"out.gguf": b"older output"}


@linux_only
def test_row_18_the_disk_fills_in_a_later_part(tmp_path: Path, small: Path) -> None:
    """The old set stays: the parts before had their data, and no names yet."""
    parts = ("--split-max-tensors", "3")
    localmoe("quantize", small, tmp_path / "s.gguf", "Q8_0", *parts).succeeded()
    before = contents(tmp_path)
    limited = ("sh", "-c", 'ulimit -f 500; exec "$@"', "sh")  # blocks of 512 bytes: the first part has fewer
    answer = localmoe("quantize", small, tmp_path / "s.gguf", "F32", *parts, prefix=limited)
    answer.failed(4, f"error: {tmp_path}/s-0000", "File too large")
    assert "s-00001-of" not in answer.err
    assert contents(tmp_path) == before


@linux_only
@pytest.mark.parametrize("command", ["quantize", "convert"])
def test_row_18_the_disk_fills_while_it_is_written(tmp_path: Path, small: Path, command: str) -> None:
    """There is room when it begins; a limit on the file's size then refuses a write in the middle."""
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older output")
    if command == "quantize":
        arguments: tuple[object, ...] = ("quantize", small, out, "F32")
    else:
        arguments = ("convert", write_checkpoint(tmp_path / "m", Tiny(n_layer=8)), "-o", out, "--type", "F32")
    before = contents(tmp_path)
    limited = ("sh", "-c", 'ulimit -f 400; exec "$@"', "sh")  # blocks of 512 bytes
    localmoe(*arguments, prefix=limited).failed(4, f"error: {out}: ", "File too large")
    assert contents(tmp_path) == before


def writing(child: subprocess.Popen[bytes], folder: Path) -> bool:
    """Whether a process has an unfinished file in this folder: hidden, or without a name, which shows as deleted."""
    if any(path.name.startswith(".") for path in folder.iterdir()):
        return True
    try:
        return any(os.readlink(link).startswith(f"{folder}/#") for link in Path(f"/proc/{child.pid}/fd").iterdir())
    except OSError:  # it ended, or a descriptor was closed meanwhile
        return False


def wait_until_writing(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Return when it writes, or has ended."""
    end = time.monotonic() + PATIENCE
    while child.poll() is None and not writing(child, folder) and time.monotonic() < end:
        time.sleep(0.002)


@linux_only
@pytest.mark.parametrize("command", ["quantize", "convert"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_row_20_interrupted_while_writing(tmp_path: Path, large: Path, command: str, number: int) -> None:
    """Ctrl-C: 130 and one line; SIGTERM: 143 or the signal itself. Both leave the older output alone.

    A signal may also come when the command is done, or while the new file gets its name, which is not stopped in the
    midst: the file is complete then, and the signal is sent to another one.
    """
    out = tmp_path / "out.gguf"
    arguments = ("quantize", large, out, "Q6_K") if command == "quantize" else ("convert", large, "-o", out)
    whole = None
    for _ in range(20):
        out.write_bytes(b"older output")
        with start(*arguments) as child:
            wait_until_writing(child, tmp_path)
            time.sleep(0.01)
            child.send_signal(number)
            printed, said = child.communicate(timeout=PATIENCE)
        code, err = child.returncode, said.decode()
        assert code in (0, 130 if number == signal.SIGINT else 143, -number), f"exit code {code}: {err}"
        assert "Traceback" not in err, err
        assert printed == b""
        if code and number == signal.SIGINT:
            assert code == 130, err
            assert [line for line in err.splitlines() if "error" in line] == ["error: interrupted"]
        if (left := contents(tmp_path)) == {"out.gguf": b"older output"}:
            break
        assert left == {"out.gguf": whole or (whole := completed(arguments, out))}, f"exit code {code}: {err}"
    assert code != 0, "done 20 times before the signal came"


def completed(arguments: tuple[object, ...], out: Path) -> bytes:
    """What a command writes that nothing stops."""
    localmoe(*arguments).succeeded()
    return out.read_bytes()


@linux_only
def test_row_20_before_anything_is_open(tmp_path: Path, small: Path) -> None:
    """Ctrl-C while modules are imported and models are read."""
    out = tmp_path / "out.gguf"
    commands = (("quantize", small, out, "Q8_0"), ("run", "-m", small, "-p", "a"), ("inspect", small))
    for command, delay_s in product(commands, (0.02, 0.1, 0.25)):
        with start(*command) as child:
            time.sleep(delay_s)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=PATIENCE)
        assert b"Traceback" not in err, err.decode()
        # CPython dies by SIGINT, which a shell calls 130 too, once the interrupt has passed through exec of a string,
        # as dataclasses do while modules are imported
        assert child.returncode in (130, -signal.SIGINT, 0), (command, delay_s, child.returncode, err)
    assert not [path for path in tmp_path.iterdir() if path != out]


@linux_only
@pytest.mark.parametrize("delay_s", [0.2, 0.5, 0.9])
def test_row_20_while_kernels_are_compiled(tmp_path: Path, small: Path, delay_s: float) -> None:
    """The first run compiles; Ctrl-C then lands in the compiler's callbacks, which Python cannot raise it from."""
    anew = environment({"LOCALMOE_CACHE": str(tmp_path)})
    command = [*LOCALMOE, "run", "-m", str(small), "-p", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=anew) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith(b"compiling kernels")
        time.sleep(delay_s)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out, err) == (130, b"", b"error: interrupted\n")


def test_row_21_input_and_output_are_the_same_file(tmp_path: Path, small: Path) -> None:
    """Directly, through links, by another spelling; of a part of a split model too."""
    model = tmp_path / "m.gguf"
    model.write_bytes(small.read_bytes())
    (tmp_path / "soft.gguf").symlink_to(model)
    os.link(model, tmp_path / "hard.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "around").symlink_to(tmp_path, target_is_directory=True)
    split = write_tiny(tmp_path / "s.gguf", split_max_tensors=12, **SMALL)
    second = split.with_name(split.name.replace("00001", "00002"))
    os.link(model, tmp_path / "p-00002-of-00002.gguf")
    before = contents(tmp_path)
    names = ["m.gguf", "soft.gguf", "hard.gguf", "folder/../m.gguf", "around/m.gguf"]
    pairs = [(model, tmp_path / name) for name in names] + [(split, second)]
    commands = [("quantize", source, out, "Q8_0") for source, out in pairs]
    commands.append(("convert", tmp_path / "soft.gguf", "-o", model, "--type", "Q8_0"))
    commands.append(("quantize", model, tmp_path / "p.gguf", "F16", "--split-max-tensors", "12"))
    commands.append(("quantize", split, tmp_path / "s.gguf", "F16", "--keep-split"))
    for answer in together(*commands):
        answer.failed(2, "input and output are the same file").quickly()
    folder = write_checkpoint(tmp_path / "checkpoint", Tiny())
    whole = contents(folder)
    localmoe("convert", folder, "-o", folder / "model.safetensors").failed(2, "the same file")
    localmoe("convert", folder, "-o", folder).failed(2, folder)
    assert contents(folder) == whole
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before


def test_an_interrupted_run_leaves_what_it_said(small: Path) -> None:
    """Row 20 for `run`: 130, the text so far on stdout, one line on stderr; to write all of it would take long."""
    arguments = ("run", "-m", small, "-p", "the", "-c", "32768", "-n", "32000", "--ignore-eos", "--temp", "0")
    with start(*arguments) as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, err.decode()
    assert (first + out).endswith(b"\n")
    assert [line for line in err.decode().splitlines() if line.startswith("error")] == ["error: interrupted"]
    assert "Traceback" not in err.decode()
