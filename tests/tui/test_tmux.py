"""`localmoe tui` with the demo model in tmux: what a person sees on the screen, not what the program sends."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.cli.demo_model import demo_model_path

PROGRAM = "import sys; from localmoe.cli.app import main; sys.exit(main(sys.argv[1:]))"
COMPILING, DEADLINE = 480.0, 120.0  # seconds: the first run on a machine may compile; a busy machine takes its time

pytestmark = [
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
    pytest.mark.skipif(not demo_model_path().is_file(), reason="`localmoe demo --build-only` has not been run"),
    pytest.mark.timeout(900),
]


class Tmux:
    """A tmux server of its own with one window of 120 by 40 characters, in which a shell runs."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        env = {**os.environ, "LC_ALL": "C.UTF-8", "PS1": "$ ", "SHELL": "/bin/sh", "COLUMNS": "100", "LINES": "30"}
        self.run("-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "40", "sh", env=env)

    def run(self, *args: str, env: dict[str, str] | None = None) -> str:
        command = ["tmux", "-S", str(self.socket), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=60).stdout

    def type(self, text: str) -> None:
        self.run("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self.run("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def modes(self) -> list[str]:
        """Whether the alternate screen, any mouse report and the cursor are on."""
        return self.run("display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}").split()

    def until(self, shown: Callable[[str], bool], within: float = DEADLINE) -> str:
        end = time.monotonic() + within
        while not shown(screen := self.screen()):
            assert time.monotonic() < end, screen
            time.sleep(0.05)
        return screen


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    terminal = Tmux(tmp_path / "tmux")
    yield terminal
    terminal.run("kill-server")


def reply_of(screen: str) -> str:
    """The first line of the reply: the one with text below the message."""
    lines = [line.split("▏")[0].strip() for line in screen.splitlines()]
    below = lines[next((i for i, line in enumerate(lines) if line.startswith("▌")), len(lines)) + 1 :]
    return next((line for line in below if line), "")


def test_type_stop_resize_and_quit_with_the_demo_model(tmux: Tmux) -> None:
    """Esc keeps what was said, every size shows it and fills its window, and the shell's screen comes back."""
    tmux.type("echo before; " + shlex.join([sys.executable, "-c", PROGRAM, "tui", "-m", str(demo_model_path())]))
    tmux.type(" --no-save --temp 0 -n 2000; echo ended with $?")
    tmux.press("Enter")
    tmux.until(lambda screen: "ready" in screen, COMPILING)
    tmux.type("A story of a fox.")
    tmux.press("Enter")
    tmux.until(lambda screen: "writing" in screen and len(reply_of(screen).split()) > 3)
    tmux.press("Escape")
    stopped = tmux.until(lambda screen: "stopped" in screen)
    said = reply_of(stopped).split()[:4]
    assert "ready" in stopped
    time.sleep(0.5)
    assert tmux.screen() == stopped  # nothing is written any more
    for columns, rows, seen in ((80, 24, "EXPERTS"), (200, 60, "MEMORY MAP"), (120, 40, "entropy")):
        tmux.resize(columns, rows)
        screen = tmux.until(
            lambda screen, seen=seen, rows=rows: (
                len(screen.splitlines()) == rows and seen in screen and "Quit" in screen.splitlines()[-1]
            )
        )
        assert reply_of(screen).split()[:4] == said
        assert "top-2 of 4 experts" in screen.splitlines()[0]
    assert tmux.modes()[:2] == ["1", "1"]
    tmux.press("C-q")
    after = tmux.until(lambda screen: "ended with 0" in screen)
    assert "before" in after
    assert "EXPERTS" not in after
    assert tmux.modes() == ["0", "0", "1"]
