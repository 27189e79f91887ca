"""A file, new or in place of another: killed before each call of the system, it is whole with nothing beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from localmoe.output_file import OutputFile, replacing
from tests.acceptance.command import localmoe
from tests.acceptance.writers import OLD, Writers
from tests.tiny import write_tiny

# argv: folder, "old" where the target is there already, "unnamed" where files are while they are written. For every
# call, a child that is killed just before it; then what is there, and what the next writer says and leaves.
KILLS = """
import json, os, signal, sys
from pathlib import Path
from localmoe.output_file import replacing

folder, has_old, unnamed = Path(sys.argv[1]), sys.argv[2] == "old", sys.argv[3] == "unnamed"
target = folder / "out.gguf"
if not unnamed and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE

def killed_before(left):
    for name in ("open", "write", "fchmod", "fsync", "link", "replace", "unlink"):
        def call(*args, real=getattr(os, name), **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, call)

def run(left):
    pid = os.fork()
    if pid == 0:
        killed_before([left])
        with replacing(target) as file:
            file.write(b"new")
        os._exit(0)
    return os.waitpid(pid, 0)[1]

for steps in range(100):
    for path in folder.iterdir():
        path.unlink()
    if has_old:
        target.write_bytes(b"old")
    status = run(steps)
    found = target.read_text() if target.exists() else None
    hidden = [path.name for path in folder.iterdir() if path != target]
    said = []
    with replacing(target, said.append) as file:
        file.write(b"next")
    print(json.dumps([status, found, hidden, said, sorted(os.listdir(folder))]), flush=True)
    if status == 0:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks")
@pytest.mark.parametrize("before", ["old", "nothing"])
@pytest.mark.parametrize("unnamed", ["unnamed", "named"])
def test_row_19_killed_before_every_call(tmp_path: Path, before: str, unnamed: str) -> None:
    """A new file never leaves anything where files need no name; one that replaces another, between two calls alone."""
    arguments = [str(tmp_path), before, unnamed]
    done = subprocess.run([sys.executable, "-c", KILLS, *arguments], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 5, done.stderr
    assert rows[-1][:3] == [0, "new", []]
    old = "old" if before == "old" else None
    for status, found, hidden, said, after in rows:
        assert status in (0, 9)
        assert found in (old, "new")
        assert said == [f"removed {tmp_path / name}, left by a writer that was killed" for name in hidden]
        assert after == ["out.gguf"]
    n_left = sum(bool(row[2]) for row in rows)
    if unnamed == "unnamed":
        assert n_left == (1 if before == "old" else 0)
    else:
        assert n_left > 3


@pytest.mark.skipif(sys.platform == "win32", reason="no kill")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_waits_until_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]
) -> None:
    """Also one that the system gives to another thread, as any that the main one does not take."""
    appear, done = OutputFile.appear, threading.Event()

    def signalled(file: OutputFile) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        appear(file)

    monkeypatch.setattr(OutputFile, "appear", signalled)
    before = signal.getsignal(number)
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(error), replacing(tmp_path / "out.gguf") as file:
            file.write(b"new")
    finally:
        done.set()
        other.join()
    assert (tmp_path / "out.gguf").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.gguf"]
    assert signal.getsignal(number) == before


def test_a_command_says_what_it_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another writer's files, of other targets or still being written, stay."""
    model = write_tiny(tmp_path / "in.gguf", n_layer=1, n_embd=64, n_ff=64)
    left = tmp_path / ".out.gguf.0123456789ab-0.part"
    others = [tmp_path / name for name in (".other.gguf.0123456789ab-0.part", ".out.gguf.part", "out.gguf.part")]
    for path in (left, *others):
        path.write_bytes(b"half")
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    out = tmp_path / "out.gguf"
    with replacing(out) as file:
        alive = set(tmp_path.glob(".out.gguf.*-0.part"))
        answer = localmoe("quantize", model, out, "Q8_0").succeeded()
        assert alive == set(tmp_path.glob(".out.gguf.*-0.part"))
        file.write(b"mine")
    assert out.read_bytes() == b"mine"
    assert len(alive) == 1
    assert left not in alive
    assert answer.err.count("removed") == 0
    left.write_bytes(b"half")
    answer = localmoe("quantize", model, out, "Q8_0").succeeded()
    assert f"removed {left}, left by a writer that was killed\n" in answer.err
    assert sorted(tmp_path.iterdir()) == sorted([*others, model, out])


# argv: what is killed (a call of the system or the loading of the base model), whether it has unnamed files, arguments
KILLED = """
import os, signal, sys
import localmoe
from localmoe.cli import main
if sys.argv[2] == "named" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
where = localmoe if sys.argv[1] == "load" else os
setattr(where, sys.argv[1], lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses signals, and files without a name")
@pytest.mark.parametrize("unnamed", ["unnamed", "named"])
@pytest.mark.parametrize("call", ["write", "load"])
def test_row_19_killed_while_the_base_model_runs(tmp_path: Path, unnamed: str, call: str) -> None:
    """The base of a recipe is written for as long as it runs; a kill leaves no more of it than of any output."""
    writers = Writers(tmp_path)
    out = tmp_path / "out" / "moe.gguf"
    out.parent.mkdir()
    out.write_bytes(OLD)
    arguments = writers.commands["franken"](out)
    done = subprocess.run([sys.executable, "-c", KILLED, call, unnamed, *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path for path in out.parent.iterdir() if path != out]
    assert len(left) == (unnamed == "named")
    assert out.read_bytes() == OLD
    answer = localmoe(*arguments).succeeded()
    assert [line for line in answer.err.splitlines() if "killed" in line] == [
        f"note: removed {path}, left by a writer that was killed" for path in left
    ]
    assert list(out.parent.iterdir()) == [out]
