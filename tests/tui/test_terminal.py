"""The app in a real terminal: what it sends there, and how it leaves it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from localmoe.errors import UsageError
from localmoe.sessions.record import Record
from localmoe.sessions.store import Store
from localmoe.tui.app import run_app
from localmoe.tui.guard import CUT_OFF

from .settling import DEADLINE


def test_run_app_needs_a_model_and_a_terminal(capsys):
    """Usage errors, before anything is drawn."""
    with pytest.raises(UsageError, match="no model given"):
        run_app(None)
    with capsys.disabled(), pytest.raises(UsageError, match="needs a terminal, got none as stdin"):
        _without_terminal()


def _without_terminal() -> None:
    """Run with stdin from a pipe, whatever the test's own is."""
    read, write = os.pipe()
    os.close(write)
    saved, sys.stdin = sys.stdin, os.fdopen(read)
    try:
        run_app(Path("demo.gguf"))
    finally:
        sys.stdin.close()
        sys.stdin = saved


PROGRAM = """
import sys, time
from pathlib import Path
from localmoe.errors import BadInputError
from localmoe.tui.app import run_app
from localmoe.tui.options import AppOptions
from tests.tui.fake_model import FakeModel
what = sys.argv[1]
class Heard(FakeModel):
    def chat(self, messages, **options):
        Path(sys.argv[2]).write_text(messages[-1]["content"])
        return super().chat(messages, **options)
def load(progress):
    if what == "slow":
        time.sleep(1.5)
        return Heard()
    if what == "fail":
        raise BadInputError("bad magic", file="demo.gguf")
    if what == "bug":
        raise ZeroDivisionError("a bug")
    bad = ["\\x1b", "[2J", "\\x9b5m", "word "]
    model = FakeModel(delay=0.05, answer=bad * 2000, labels=["row \\x1b[2J\\x9b5m"] * 4, name="\\x1b[2Jname")
    model.tokenizer.token = lambda i: bad[i % 4].encode()
    return model
options = None
if what in ("kept", "picker"):
    options = AppOptions(sessions=Path(sys.argv[2]) / "chats.db", models=[("shown", Path(sys.argv[2]))])
if what == "picker":
    sys.exit(run_app(None, options, load))
sys.exit(run_app(Path("demo.gguf"), options, load))
"""
ENTERED, LEFT = b"\x1b[?1049h", b"\x1b[?1049l"
ESCAPE = b"\x1b[27u"  # as the kitty protocol has it: the plain one may be the beginning of the next key
RESET = [LEFT, b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?1003l", b"\x1b[?2004l"]


class Terminal:
    """A process on a real pseudo-terminal of 80 x 24."""

    def __init__(self, *what: str, program: str = PROGRAM) -> None:
        self.end, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        root = Path(__file__).parents[2]
        env = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join([str(root), *_extra_path()])}
        env |= {"COLUMNS": "100", "LINES": "30"}  # some programs set them: the terminal's own size counts
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *what], stdin=child, stdout=child, stderr=child, env=env, cwd=root
        )
        os.close(child)
        self.output = b""

    def read_until(self, what: bytes, seconds: float = DEADLINE) -> None:
        end = time.monotonic() + seconds
        while what not in self.output:
            assert time.monotonic() < end, f"no {what!r} in {self.output[-500:]!r}"
            self._read(0.1)

    def wait_until_stopped(self) -> None:
        """Return when the app sleeps until SIGCONT; one that comes before is lost."""
        end = time.monotonic() + DEADLINE
        while not os.WIFSTOPPED(os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)[1]):
            assert time.monotonic() < end, f"still runs after {self.output[-500:]!r}"
            self._read(0.02)

    def read_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(0.05)

    def _read(self, seconds: float) -> bool:
        """Take what comes within some seconds; whether anyone still has the other end."""
        if not select.select([self.end], [], [], seconds)[0]:
            return True
        try:
            got = os.read(self.end, 65536)
        except OSError:  # Linux's way to say that nobody has it
            got = b""
        self.output += got
        if not got:
            time.sleep(seconds)
        return bool(got)

    def finish(self) -> int:
        """Read until the app has ended, and whoever waits beside it; the app's exit code."""
        end = time.monotonic() + DEADLINE
        while (self._read(0.1) or self.process.poll() is None) and time.monotonic() < end:
            pass
        os.close(self.end)
        return self.process.wait(1)

    def ends(self, code: int) -> None:
        """Check the app's exit code; the end of what it sent says what it died of."""
        assert self.finish() == code, self.output[-3000:].decode(errors="replace")


def _extra_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _assert_restored(output: bytes) -> None:
    for code in RESET:
        assert code in output[output.index(ENTERED) :], code


@pytest.mark.parametrize("when", ["idle", "writing"])
def test_sigterm_restores_the_terminal(when):
    """Alternate screen, cursor, mouse and paste modes are reset, also while a reply is written; exit 143."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    if when == "writing":
        os.write(terminal.end, b"hello\r")
        terminal.read_until(b"word")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.ends(143)
    _assert_restored(terminal.output)


@pytest.mark.parametrize("when", ["idle", "writing"])
def test_the_app_ends_with_its_terminal(when):
    """A closed window leaves no process behind, also where its session sends no SIGHUP."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    if when == "writing":
        os.write(terminal.end, b"hello\r")
        terminal.read_until(b"word")
    os.close(terminal.end)
    assert terminal.process.wait(DEADLINE) == 129


def test_sigterm_ends_an_app_whose_terminal_takes_no_more_output():
    """A frozen terminal stops the app's loop; its modes are set back all the same."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    os.write(terminal.end, b"hello\r")
    time.sleep(6)  # nobody reads: a pseudo-terminal holds some kilobytes
    assert not termios.tcgetattr(terminal.end)[3] & termios.ECHO
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(DEADLINE) == 143
    assert termios.tcgetattr(terminal.end)[3] & termios.ECHO
    os.close(terminal.end)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_death_that_nothing_can_be_done_about_restores_the_terminal(number):
    """As where memory runs out or native code fails: whoever waits beside the app sets modes and screen back."""
    terminal = Terminal("chat")
    before = termios.tcgetattr(terminal.end)
    terminal.read_until(b"Message")
    os.write(terminal.end, b"hello\r")
    terminal.read_until(b"word")
    assert not termios.tcgetattr(terminal.end)[3] & termios.ECHO
    terminal.process.send_signal(number)
    terminal.read_until(LEFT)
    end = time.monotonic() + DEADLINE
    while termios.tcgetattr(terminal.end) != before and time.monotonic() < end:
        terminal.read_for(0.1)
    assert termios.tcgetattr(terminal.end) == before
    if number == signal.SIGBUS:  # what reading a file gives that was cut off while it was open
        terminal.read_until(CUT_OFF.encode())
    else:
        terminal.read_for(0.3)
        assert CUT_OFF.encode() not in terminal.output
    terminal.ends(-number)
    _assert_restored(terminal.output)


def test_nothing_is_left_of_an_app_that_ended_by_itself():
    """Whoever waited beside it is gone, and has sent nothing."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    children = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children")
    waiting = children.read_text().split() if children.is_file() else []
    os.write(terminal.end, b"\x11")
    terminal.ends(0)
    assert terminal.output.count(LEFT) == 1
    end = time.monotonic() + DEADLINE
    while any(_runs(pid) for pid in waiting):  # its last moments come after those of the terminal's descriptor
        assert time.monotonic() < end, f"{waiting} are still there"
        time.sleep(0.02)


def _runs(pid: str) -> bool:
    """Whether there is such a process, other than one that ended and that nobody has asked for."""
    try:
        return "\nState:\tZ" not in Path("/proc", pid, "status").read_text()
    except OSError:
        return False


def test_a_crash_restores_the_terminal():
    """A bug in the engine's thread: the terminal is reset before the traceback, exit 1."""
    terminal = Terminal("bug")
    terminal.ends(1)
    _assert_restored(terminal.output)
    assert terminal.output.rindex(LEFT) < terminal.output.index(b"ZeroDivisionError")


def test_a_failed_load_keeps_its_exit_code():
    """Enter leaves the panel; the line is repeated on stderr and the code is the error's."""
    terminal = Terminal("fail")
    terminal.read_until(b"bad magic")
    os.write(terminal.end, b"\r")
    terminal.ends(3)
    _assert_restored(terminal.output)
    assert b"error: demo.gguf: bad magic" in terminal.output[terminal.output.rindex(LEFT) :]


@pytest.mark.parametrize("key", [b"\x11", b"\x03"])
def test_quitting_restores_the_terminal(key):
    """Ctrl+Q and Ctrl+C."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    os.write(terminal.end, key)
    terminal.ends(0)
    _assert_restored(terminal.output)


def _rows_drawn(output: bytes) -> list[int]:
    return [int(row) for row in re.findall(rb"\x1b\[(\d+);\d+H", output)]


def test_type_resize_stop_and_quit_in_a_real_terminal():
    """While a reply is written the terminal grows and shrinks: its last line is drawn, and no row beyond it."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    os.write(terminal.end, b"hello\r")
    terminal.read_until(b"word")
    for rows, columns in ((40, 120), (60, 200), (24, 80)):
        begin = len(terminal.output)
        fcntl.ioctl(terminal.end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        terminal.process.send_signal(signal.SIGWINCH)
        end = time.monotonic() + DEADLINE
        while rows not in _rows_drawn(terminal.output[begin:]):
            assert time.monotonic() < end, f"row {rows} of {columns} columns was not drawn"
            terminal.read_for(0.2)
        while True:  # what was on its way may still come
            begin = len(terminal.output)
            terminal.read_for(1.0)
            if max(_rows_drawn(terminal.output[begin:]), default=rows + 1) <= rows:
                break
            assert time.monotonic() < end, f"still drawn beyond row {rows}"
    os.write(terminal.end, b"\x1b")
    terminal.read_until(b"stopped")
    os.write(terminal.end, b"\x11")
    terminal.ends(0)
    _assert_restored(terminal.output)


EVIL = "[red]a[/]\x1b[2J\x1b]0;own\x07\x9b5m\u202e[@click=app.quit]b[/]"


def _assert_harmless(output: bytes) -> None:
    """Nothing of EVIL as a control, after the first drawing, which clears the screen."""
    for control in (b"\x1b[2J", b"\x1b]0;own", "\x9b".encode(), "\u202e".encode()):
        assert control not in output[output.index(ENTERED) + 200 :], control


def test_nothing_of_the_chats_file_controls_a_real_terminal(tmp_path):
    """Title, path, system prompt, parameters and turns that someone else wrote: in the list, renaming, the chat."""
    with Store(tmp_path / "chats.db") as store:
        record = Record(store, f"/models/{EVIL}.gguf", EVIL, {EVIL: EVIL})
        record.rename(EVIL)
        record.ask(EVIL)
        reply = record.begin_reply()
        reply.text = EVIL
        record.end_reply(reply, EVIL)
    terminal = Terminal("kept", str(tmp_path))
    terminal.read_until(b"Message")
    os.write(terminal.end, b"\x13")
    terminal.read_until(b"[red]a[/]")
    for keys in (b"\x12", ESCAPE, b"\x05", ESCAPE, b"\r"):
        os.write(terminal.end, keys)
        terminal.read_for(0.6)
    terminal.process.send_signal(signal.SIGTERM)
    terminal.ends(143)
    _assert_restored(terminal.output)
    _assert_harmless(terminal.output)


def test_no_file_name_controls_a_real_terminal(tmp_path, monkeypatch):
    """In the picker, and as what is loading."""
    (tmp_path / f"{EVIL.replace('/', '|')}.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("LOCALMOE_MODELS", str(tmp_path))
    terminal = Terminal("picker", str(tmp_path))
    terminal.read_until(b"[red]a[|]")
    terminal.read_for(0.5)
    os.write(terminal.end, b"red\r")
    terminal.read_until(b"reply")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.ends(143)
    _assert_restored(terminal.output)
    _assert_harmless(terminal.output)


def test_no_key_is_lost_from_the_start_to_the_chat(tmp_path):
    """Letters typed from the first moment on, while the app starts, loads and shows the chat, in their order."""
    terminal = Terminal("slow", str(tmp_path / "heard"))
    typed = ""
    for number in range(400):
        if number >= 350:  # the last ones into the chat; and a line that nobody has read yet holds 4,095 letters
            terminal.read_until(b"reply")
        os.write(terminal.end, (piece := f"{number} ").encode())
        typed += piece
        terminal.read_for(0.01)
        if b"reply" in terminal.output and number % 50 == 49:
            break
    os.write(terminal.end, b"\r")
    end = time.monotonic() + DEADLINE
    while not (tmp_path / "heard").exists() and time.monotonic() < end:
        terminal.read_for(0.1)
    os.write(terminal.end, b"\x11")
    terminal.ends(0)
    assert b"reply" in terminal.output
    assert (tmp_path / "heard").read_text() == typed.strip()


def test_model_text_does_not_reach_a_real_terminal_as_control():
    """A clear-screen and a C1 sequence split over tokens never appear in what the terminal is sent."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    os.write(terminal.end, b"hello\r")
    terminal.read_until(b"word")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.finish()
    assert b"\x1b[2J" not in terminal.output[terminal.output.index(b"Message") :]
    assert "\x9b".encode() not in terminal.output


def test_no_view_of_the_tokens_sends_control_sequences():
    """Tokens, figures, a cell's tokens and the routing panel, over tokens, labels and a name full of sequences."""
    terminal = Terminal("chat")
    terminal.read_until(b"Message")
    os.write(terminal.end, b"hello\r")
    terminal.read_until(b"word")
    views = [(b"\x1b[18~", b"is the token's first"), (b"\x1b[21~", b"F1 explains"), (b"\x1b[19~", b"skip below")]
    for keys, seen in views:
        os.write(terminal.end, keys)
        terminal.read_until(seen)
        os.write(terminal.end, ESCAPE)
    os.write(terminal.end, b"\t\t")
    terminal.read_for(0.3)
    os.write(terminal.end, b"\x1b[B")
    terminal.read_for(0.3)
    os.write(terminal.end, b"\r")
    terminal.read_until(b"label: ")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.ends(143)
    _assert_restored(terminal.output)
    assert b"\x1b[2J" not in terminal.output[terminal.output.index(b"Message") :]
    assert "\x9b".encode() not in terminal.output
