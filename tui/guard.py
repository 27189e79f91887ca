"""Who sets the terminal back where the app itself could not: killed, or dead of a fault in native code."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

DONE = b"done\n"
MODES = (1049, 1000, 1002, 1003, 1004, 1006, 1015, 1016, 2004, 2026, 2048)
"""Private modes that Textual may have set: the alternate screen, mouse, focus, paste, sizes."""
RESET = "\\033[<u" + "".join(f"\\033[?{mode}l" for mode in MODES) + "\\033[?25h\\033[0m\\r\\n"

CUT_OFF = "error: the model's file was cut off meanwhile, or its disk is gone"

# It waits for a word of the app's, or for its end; the terminal is its standard output. A shell that took the terminal
# over meanwhile has signals on, which the app had off: its modes are left alone. What Python says of a fault is read to
# its end, which is the app's; a bus error is what reading a mapped file gives where there is no file any more.
_SCRIPT = f"""
trap '' INT QUIT TERM TSTP TTIN TTOU
exec 3<&1
read said
case $said in done) exit 0;; esac
cat >/dev/null
printf '{RESET}'
case $(stty -a <&3) in *-isig*) stty "$1" <&3;; esac
case $said in *"Bus error"*) printf '%s\\r\\n' "$2";; esac
"""


@contextmanager
def guarded_terminal() -> Iterator[None]:
    """While this lasts a small process waits beside the app and sets the terminal back if the app dies of anything."""
    guard = _guard()
    if guard is None or guard.stdin is None:
        yield
        return
    told = not faulthandler.is_enabled()
    if told:
        faulthandler.enable(guard.stdin.fileno(), all_threads=False)
    try:
        yield
    finally:
        if told:
            faulthandler.disable()
        with suppress(OSError):
            guard.stdin.write(DONE)
        with suppress(OSError):
            guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            guard.wait(1.0)


def _guard() -> subprocess.Popen[bytes] | None:
    """The waiting process; None where there is no terminal, shell or stty to have one with."""
    if sys.platform == "win32":
        return None
    try:
        terminal = os.open(os.ttyname(sys.__stdin__.fileno() if sys.__stdin__ else 0), os.O_RDWR | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    try:
        modes = subprocess.run(["stty", "-g"], stdin=terminal, capture_output=True, timeout=10.0, check=True)
        command = ["/bin/sh", "-c", _SCRIPT, "localmoe-guard", modes.stdout.decode().strip(), CUT_OFF]
        return subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=terminal, stderr=subprocess.DEVNULL, cwd="/"
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    finally:
        os.close(terminal)
