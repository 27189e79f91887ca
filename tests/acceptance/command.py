"""The real command line as a child process: what it answered, and what it cost.

Time is processor time, so that other work on the machine does not count; memory is the peak of the resident set.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.slowness import slowness

LOCALMOE = (sys.executable, "-m", "localmoe")
PATIENCE = 240  # seconds until a command that does not end fails
# The same, which says on stderr when the program heeds signals: before, it is Python itself that answers one.
_BEGIN = """
import sys
from localmoe.cli import app
run = app._run
app._run = lambda arguments: (print("begun", file=sys.stderr, flush=True), run(arguments))[1]
sys.exit(app.main())
"""

# Metadata failures answer within these (acceptance.md).
MAX_SECONDS = 2.0
MAX_BYTES = 200_000_000

# A child that is started by a large process counts that process's memory as its own peak: a small one stands between.
_MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[2:], stdin=sys.stdin)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as out:
    json.dump([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss], out)
"""


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code (negative: the signal that ended it), output, processor time, peak memory."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int

    @property
    def errors(self) -> list[str]:
        """The lines that tell a failure."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def failed(self, code: int, *parts: object) -> Answer:
        """Check that it failed with this code and one last line that names all `parts`; returns itself."""
        assert self.code == code, f"exit code {self.code}, expected {code}: {self.err or self.out}"
        assert "Traceback" not in self.err
        assert len(self.errors) == 1, self.err
        assert self.err.endswith(self.errors[0] + "\n"), f"not the last line: {self.err}"
        assert self.errors[0].isprintable()
        for part in parts:
            assert str(part) in self.errors[0], f"{part!r} is not in {self.errors[0]!r}"
        return self

    def within(self, seconds: float) -> Answer:
        """Check that it took less processor time, of a machine that is not slow; returns itself."""
        assert self.seconds < seconds or self.seconds < seconds * slowness(), f"{self.seconds:.2f} s: {self.err}"
        return self

    def quickly(self) -> Answer:
        """Check the bounds of metadata failures; returns itself."""
        self.within(MAX_SECONDS)
        assert self.peak_bytes < MAX_BYTES, f"{self.peak_bytes} bytes: {self.err}"
        return self

    def succeeded(self) -> Answer:
        """Check that nothing went wrong; returns itself."""
        assert self.code == 0, f"exit code {self.code}: {self.err}"
        assert not self.errors
        assert "Traceback" not in self.err
        return self


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The children's environment: UTF-8, and a known width of help."""
    return {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "120", **(changes or {})}


class Child(subprocess.Popen[bytes]):
    """A process that a block waits for, unless something goes wrong in it."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, where)


def start(*arguments: object, env: Mapping[str, str] | None = None) -> Child:
    """A command whose program has begun and heeds signals, in a group of its own, as a shell starts it."""
    child = Child(
        [sys.executable, "-c", _BEGIN, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment(env), start_new_session=True,
    )  # fmt: skip
    assert child.stderr is not None
    first = child.stderr.readline()
    assert first == b"begun\n", first + child.communicate(timeout=PATIENCE)[1]
    return child


def localmoe(
    *arguments: object,
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    timeout_s: float = 480,
) -> Answer:
    """Run one command to its end; `prefix` is a program that starts it. A command that hangs is killed and fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        measured = [sys.executable, "-S", "-c", _MEASURE, str(report)]
        command = [*measured, *prefix, *LOCALMOE, *map(str, arguments)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
            env=environment(env), start_new_session=True,
        ) as child:  # fmt: skip
            try:
                out, err = child.communicate(stdin, timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                err = child.communicate()[1]
                raise AssertionError(f"no answer within {timeout_s} s: {' '.join(command[5:])}: {err!r}") from None
        assert report.exists(), f"ended by {child.returncode}: {err!r}"
        code, seconds, peak = json.loads(report.read_text())
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return Answer(code, out.decode(errors="replace"), err.decode(errors="replace"), seconds, peak_bytes)


def together(*commands: Sequence[object], stdin: bytes = b"") -> list[Answer]:
    """The answers of several commands, two of which run at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda command: localmoe(*command, stdin=stdin), commands))


def on_a_terminal(*arguments: object, typed: bytes = b"", env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code, and everything that a command shows on a terminal of its own, which is a dumb one without colours."""
    import pty

    master, slave = pty.openpty()
    plain = environment({"TERM": "dumb", "NO_COLOR": "1", **(env or {})})
    command = [*LOCALMOE, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=plain, start_new_session=True
    ) as child:  # fmt: skip
        os.close(slave)
        os.write(master, typed)
        shown = bytearray()
        with suppress(OSError):  # Linux's way to say that nobody has the other end any more
            while data := os.read(master, 65536):
                shown += data
    os.close(master)
    return child.returncode, shown.decode(errors="replace")


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its bytes (a link: its target), to see that nothing came, went or changed."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found
