"""What the terminal app costs, as one JSON line a test: the app is run in a pseudo-terminal and driven by keys.

    python benchmarks/app.py MODEL.gguf [--tests speed,drawing,text,keys,typing,record] [-n 100] [--rounds 12]

speed: tokens/s of a reply with the app open beside `localmoe run` on the same prompt: both stay open and make the same
reply in turn, so that a pair is a few seconds long; of the pairs' ratios come the median, its 95% interval (bootstrap)
and the quartiles. record: `localmoe experts record` beside `run` in the same way. drawing: one long reply in the app,
whose screen follows it for a second and lets it be for a second in turn: what drawing alone costs, as the same figures.
keys, typing: how long a typed letter takes to come back while a long prompt is read and while a reply is written. Rates
are those seen from outside the engine, from one token to the next; `trace_part` is the part of a reply's time that goes
into the trace's ring and into reading it, `screen_part` the part of a core that the screen's thread takes. text: how
long it takes from one change of the reply on the screen to the next, with numbered words in paragraphs and lists in
place of the model's, at most `--pace` a second.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import fcntl
import itertools
import json
import os
import pty
import random
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app_inside import Plan

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Tell me a long story about a fox who lives in a lighthouse."
SENTENCE = "The keeper of the lighthouse wrote down every ship that passed, and the fox read the list each night. "
LETTERS = "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ"  # none is anywhere else on the screen
APART = 0.083  # seconds between two letters: no multiple of the app's own times
PHASE, CALM = 1.0, 1.0  # seconds of a phase of the drawing test, and of rest after a reply
AGAIN, QUIT = "\x12", "\x11"
Size = tuple[int, int]


class Terminal:
    """A measured process on a pseudo-terminal whose output is read as it comes."""

    def __init__(self, command: list[str], n: int, size: Size, **plan: float) -> None:
        self.rows = Path(tempfile.mkstemp(suffix=".jsonl")[1])
        self.end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        said = json.dumps(dataclasses.asdict(Plan(str(self.rows), n, **plan)))
        arguments = [sys.executable, str(Path(__file__).with_name("app_inside.py")), said, *command]
        self.process = subprocess.Popen(arguments, stdin=inner, stdout=inner, stderr=inner, env=env, cwd=ROOT)
        os.close(inner)
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self, seconds: float) -> None:
        """Take what is there, waiting for it at most so long."""
        if select.select([self.end], [], [], seconds)[0]:
            try:
                self.seen += self._decoder.decode(os.read(self.end, 1 << 16))
            except OSError:  # the other end is closed
                time.sleep(min(seconds, 0.05))

    def until(self, true: Callable[[], object], seconds: float, what: str) -> None:
        """Read until something is so."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end or self.process.poll() is not None:
                sys.exit(f"error: waited in vain for {what}: {self.seen[-600:]!r}")
            self.read(0.05)

    def rest(self, seconds: float) -> None:
        """Read for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def ask(self, text: str) -> None:
        """Wait for the chat and write a message, without sending it."""
        self.until(lambda: "Message" in self.seen, 120, "the chat")
        self.rest(0.3)
        self.type(text)
        self.rest(0.3)

    def measured(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.rows.read_text(encoding="utf-8").splitlines()]

    def close(self, keys: str = "") -> None:
        self.type(keys)
        end = time.monotonic() + 20
        while keys and self.process.poll() is None and time.monotonic() < end:
            self.read(0.05)
        self.process.kill()
        self.process.wait()
        os.close(self.end)
        self.rows.unlink()


def _options(args: argparse.Namespace) -> list[str]:
    return ["-m", args.model, "-t", str(args.t), "--temp", "0", "-c", "4096"]


class Same:
    """One way to make a reply, which makes the same one again whenever it is asked to."""

    def __init__(self, args: argparse.Namespace, size: Size, how: str, folder: str) -> None:
        n = ["-n", str(args.n), *_options(args), "-p", PROMPT]
        commands = {
            "run": ["run", *n],
            "record": ["experts", "record", "-o", f"{folder}/trace.npz", *n],
            "app": ["tui", *_options(args)],
        }
        self.how = how
        self.terminal = Terminal(commands[how], args.n, size)
        if how == "app":
            self.terminal.ask(PROMPT)
        self._key = "\r"
        self.reply()  # the first one reads the file and the prompt
        if how == "app":
            self._key = AGAIN

    def reply(self) -> dict[str, float]:
        """Its figures, and a rest after it."""
        done = len(self.terminal.measured())
        self.terminal.type(self._key)
        self.terminal.until(lambda: len(self.terminal.measured()) > done, 300, "the reply")
        self.terminal.rest(CALM)
        self.terminal.seen = ""
        return self.terminal.measured()[-1]

    def close(self) -> None:
        self.terminal.close(QUIT if self.how == "app" else "")


def in_turn(args: argparse.Namespace, size: Size, how: str) -> dict[str, Any]:
    """`run` and another way to make the same reply, in turn."""
    rows: dict[str, list[dict[str, float]]] = {"run": [], how: []}
    with tempfile.TemporaryDirectory() as folder:
        ways = [Same(args, size, name, folder) for name in rows]
        for number in range(args.rounds):
            for way in ways if number % 2 == 0 else ways[::-1]:
                rows[way.how].append(way.reply())
            rates = {name: round(found[-1]["rate"], 1) for name, found in rows.items()}
            print(f"round {number + 1}/{args.rounds}: {rates}", file=sys.stderr)
        for way in ways:
            way.close()
    rates = {name: [row["rate"] for row in found] for name, found in rows.items()}
    ratios = [other / run for run, other in zip(*rates.values(), strict=True)]
    return {
        "tokens_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "spread": {name: [round(min(values), 1), round(max(values), 1)] for name, values in rates.items()},
        **{
            figure: {name: round(statistics.median(row[figure] for row in found), 5) for name, found in rows.items()}
            for figure in ("p99_ms", "trace_part")
        },
        "screen_part": round(statistics.median(row["screen_part"] for row in rows[how]), 4),
        **ratio_of(ratios),
    }


def drawing(args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """A reply while the screen follows it over the same reply while it does not, phase by phase."""
    terminal = Terminal(["tui", *_options(args)], args.n, size, phase=PHASE)
    terminal.ask(PROMPT)
    terminal.type("\r")
    terminal.until(terminal.measured, 600, "the reply")
    row = terminal.measured()[0]
    terminal.close(QUIT)
    return {"rate": round(row["rate"], 1), "screen_part": round(2 * row["screen_part"], 4), **ratio_of(row["ratios"])}


def ratio_of(ratios: Sequence[float]) -> dict[str, Any]:
    """The median of ratios with a 95% interval, by drawing from them again and again, and their quartiles."""
    draws = random.Random(1)
    medians = sorted(statistics.median(draws.choices(ratios, k=len(ratios))) for _ in range(4000))
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(statistics.median(ratios), 4),
        "interval": [round(medians[100], 4), round(medians[-101], 4)],
        "quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "pairs": len(ratios),
    }


def _changes(terminal: Terminal) -> list[float]:
    """When a reply of numbered words changed on the screen."""
    terminal.ask("hi")
    terminal.type("\r")
    newest, times = -1, []
    while not terminal.measured():
        terminal.seen = ""
        terminal.read(0.05)
        seen = max((int(number) for number in re.findall(r"w(\d{4})", terminal.seen)), default=-1)
        if seen > newest:
            newest = seen
            times.append(time.monotonic())
    return times


def text(args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Seconds between two changes of the text on the screen, over `--rounds` replies."""
    gaps: list[float] = []
    rows: list[dict[str, float]] = []
    for _ in range(args.rounds):
        terminal = Terminal(["tui", *_options(args)], args.n, size, pace=args.pace)
        times = _changes(terminal)
        gaps += [b - a for a, b in itertools.pairwise(times)]
        rows += terminal.measured()
        terminal.close(QUIT)
    gaps.sort()
    figures = {"median_s": gaps[len(gaps) // 2], "p90_s": gaps[9 * len(gaps) // 10], "worst_s": gaps[-1]}
    for name in ("rate", "screen_part"):
        figures[name] = statistics.median(row[name] for row in rows)
    return {name: round(value, 3) for name, value in figures.items()} | {"changes": len(gaps), "rounds": args.rounds}


def keys(args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Milliseconds until a typed letter is on the screen, while a prompt of about 3000 tokens is read.

    `first_ms` is the letter typed while that prompt, 13 KB of text, is put into the chat.
    """
    terminal = Terminal(["tui", *_options(args)], 4, size)
    terminal.ask(f"\x1b[200~{SENTENCE * 130}\x1b[201~")
    terminal.rest(0.7)
    terminal.type("\r")
    terminal.until(lambda: "reading" in terminal.seen, 30, "the prompt")
    figures = _echoes(terminal)
    terminal.until(lambda: terminal.measured(), 300, "the reply")
    figures |= {"prompt_s": round(terminal.measured()[0]["prompt_s"], 1)}
    terminal.close(QUIT)
    return figures


def typing(args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Milliseconds until a typed letter is on the screen, while a reply of at most -n tokens is written."""
    terminal = Terminal(["tui", *_options(args)], args.n, size)
    terminal.ask(PROMPT)
    terminal.type("\r")
    terminal.until(lambda: "writing" in terminal.seen, 30, "the reply")
    terminal.rest(0.5)
    figures = _echoes(terminal)
    terminal.close(QUIT)
    return figures


def _echoes(terminal: Terminal) -> dict[str, Any]:
    """Type letters until all are or the reply is there, and see how long each takes to come back."""
    waits = []
    for letter in LETTERS:
        began = time.perf_counter()
        terminal.type(letter)
        while letter not in terminal.seen and time.perf_counter() - began < 2:
            terminal.read(0.01)
        if terminal.measured():
            break
        waits.append(1e3 * (time.perf_counter() - began))
        time.sleep(APART)
    first = waits[0]
    waits.sort()
    figures = {"first_ms": first, "median_ms": waits[len(waits) // 2], "p90_ms": waits[9 * len(waits) // 10]}
    figures |= {"worst_ms": waits[-1]}
    return {name: round(value, 1) for name, value in figures.items()} | {"keys": len(waits)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tests", default="speed,drawing,text,keys,typing,record")
    parser.add_argument("-n", type=int, default=100, help="tokens of a reply")
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--pace", type=float, default=100, help="tokens a second of the text test at most")
    parser.add_argument("--size", default="120x40", help="columns x lines")
    args = parser.parse_args()
    args.model = str(Path(args.model).resolve())
    columns, lines = map(int, args.size.split("x"))
    size = (columns, lines)
    tests: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: in_turn(args, size, "app"),
        "record": lambda: in_turn(args, size, "record"),
        "drawing": lambda: drawing(args, size),
        "text": lambda: text(args, size),
        "keys": lambda: keys(args, size),
        "typing": lambda: typing(args, size),
    }
    for name in args.tests.split(","):
        row = {"test": name, "model": Path(args.model).name, "size": args.size, "n_threads": args.t}
        print(json.dumps(row | tests[name]()), flush=True)


if __name__ == "__main__":
    main()
