"""`localmoe tui` with real models in a real terminal: type, stop, resize, quit."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from pathlib import Path

import pytest

from localmoe.cli.default_model import tiny_model_path
from localmoe.cli.demo_model import demo_model_path

from .test_terminal import RESET, Terminal

PROGRAM = """
import sys
from localmoe.cli.app import main
sys.exit(main(["tui", "--no-save", *sys.argv[1:]]))
"""
COMPILING = 480.0  # seconds that the first run on a machine may take to compile


@pytest.mark.parametrize("model", [tiny_model_path(), demo_model_path()], ids=["tiny", "demo"])
def test_type_stop_resize_and_quit(model: Path):
    """A reply comes, Esc keeps what there is of it, another size shows the same, and the terminal is as it was."""
    if not model.is_file():
        pytest.skip("`localmoe demo --build-only` has not been run")
    terminal = Terminal("-m", str(model), "--temp", "0", program=PROGRAM)
    terminal.read_until(b"ready", COMPILING)  # a message can be written before, and waits
    os.write(terminal.end, b"The lighthouse keeper and the fox")
    terminal.read_until(b"and the fox")
    os.write(terminal.end, b"\r")
    if model == demo_model_path():  # the tiny one has written its piece before a key can stop it
        terminal.read_until(b"writing")
        os.write(terminal.end, b"\x1b")
        terminal.read_until(b"stopped")
    else:
        terminal.read_until(b"a piece ends after so many tokens")
    terminal.output = b""
    fcntl.ioctl(terminal.end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.read_until(b"lighthouse")
    terminal.read_until(b"entropy")  # there is room for the figures now
    os.write(terminal.end, b"\x11")
    terminal.ends(0)
    for code in RESET:
        assert code in terminal.output, code
