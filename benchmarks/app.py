"""What the terminal app costs, as one JSON line a test: the app is run in a pseudo-terminal and driven by keys.

    python benchmarks/app.py MODEL.gguf [--tests speed,text,keys,record] [-n 256] [--rounds 5]

speed: tokens/s of a reply with the app open beside `localmoe run` on the same prompt, processes in turn. keys: how long
a typed letter takes to come back while a long prompt is read. record: `localmoe experts record` beside `run`. Rates are
those seen from outside the engine, from one token to the next; `trace_part` is the part of a reply's time that goes
into the trace's ring and into reading it. text: how long it takes from one change of the reply on the screen to the
next, with numbered words in paragraphs and lists in place of the model's, at most `--pace` a second.
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
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Tell me a long story about a fox who lives in a lighthouse."
SENTENCE = "The keeper of the lighthouse wrote down every ship that passed, and the fox read the list each night. "
LETTERS = "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ"  # none is anywhere else on the screen
APART = 0.083  # seconds between two letters: no multiple of the app's own times
Size = tuple[int, int]


# ---- inside the measured process ----


def child(out: str, n: int, pace: float, command: list[str]) -> None:
    """Run a command of localmoe's with every generation of n tokens timed; append JSON lines to `out`.

    pace: numbered words in place of the model's, at most so many a second; 0: the model's own.
    """
    from localmoe.cli import app
    from localmoe.engine.api import Model
    from localmoe.experts.trace import RoutingTrace

    spent = [0.0]
    for name in ("append", "read"):
        setattr(RoutingTrace, name, _timed(getattr(RoutingTrace, name), spent))
    generate = Model.generate

    def timed(self: Model, prompt: Any, **options: Any) -> Iterator[Any]:
        if self.chat_template is not None and isinstance(prompt, str):
            prompt = self.chat_template.encode(self.tokenizer, [{"role": "user", "content": prompt}])
        options.update(max_tokens=n, ignore_eos=True)
        began = time.perf_counter()
        times: list[float] = []
        screen = time.pthread_getcpuclockid(threading.main_thread().ident or 0)
        for number, step in enumerate(generate(self, prompt, **options)):
            if not times:
                spent[0], drawn = 0.0, time.clock_gettime(screen)
            elif pace:
                time.sleep(max(0.0, times[0] + number / pace - time.perf_counter()))
            times.append(time.perf_counter())
            yield dataclasses.replace(step, text=word(number)) if pace and step.token >= 0 else step
        gaps = sorted(b - a for a, b in itertools.pairwise(times))
        row = {
            "rate": (len(times) - 1) / (times[-1] - times[0]),
            "prompt_s": times[0] - began,
            "p99_ms": 1e3 * gaps[int(0.99 * len(gaps))],
            "trace_part": spent[0] / (times[-1] - times[0]),
            "screen_part": (time.clock_gettime(screen) - drawn) / (times[-1] - times[0]),
        }
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    Model.generate = timed  # type: ignore[method-assign]
    app.main(command)


def word(number: int) -> str:
    """Numbered words that no line breaks, in paragraphs and a list in turn, some of them bold."""
    place = number % 160
    begins = "\n\n" if place in (0, 60, 100) else "\n- " if place > 100 and place % 12 == 0 else " "
    begins += "- " if place == 100 else ""
    return f"{begins}**w{number:04d}**" if number % 9 == 4 else f"{begins}w{number:04d}"


def _timed(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def wrapper(*args: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **keywords)
        finally:
            spent[0] += time.perf_counter() - began

    return wrapper


# ---- outside ----


class Terminal:
    """A measured process on a pseudo-terminal whose output is read as it comes."""

    def __init__(self, command: list[str], n: int, size: Size, pace: float = 0) -> None:
        self.rows = Path(tempfile.mkstemp(suffix=".jsonl")[1])
        self.end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        arguments = [sys.executable, __file__, "--child", str(self.rows), str(n), str(pace), *command]
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

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def measured(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.rows.read_text(encoding="utf-8").splitlines()]

    def close(self, keys: str = "") -> None:
        self.type(keys)
        end = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < end:
            self.read(0.05)
        self.process.kill()
        self.process.wait()
        os.close(self.end)
        self.rows.unlink()


def app_reply(args: argparse.Namespace, n: int, size: Size) -> dict[str, float]:
    """One reply in the app."""
    terminal = Terminal(["tui", *_options(args)], n, size)
    terminal.until(lambda: "Message" in terminal.seen, 120, "the chat")
    time.sleep(0.3)
    terminal.type(PROMPT)
    terminal.until(lambda: "lighthouse" in terminal.seen, 10, "what was typed")
    terminal.type("\r")
    terminal.until(lambda: terminal.measured(), 300, "the reply")
    row = terminal.measured()[0]
    terminal.close("\x11")
    return row


def _changes(terminal: Terminal) -> list[float]:
    """When a reply of numbered words changed on the screen."""
    terminal.until(lambda: "Message" in terminal.seen, 120, "the chat")
    time.sleep(0.3)
    terminal.type("hi\r")
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
        terminal = Terminal(["tui", *_options(args)], args.n, size, args.pace)
        times = _changes(terminal)
        gaps += [b - a for a, b in itertools.pairwise(times)]
        rows += terminal.measured()
        terminal.close("\x11")
    gaps.sort()
    figures = {"median_s": gaps[len(gaps) // 2], "p90_s": gaps[9 * len(gaps) // 10], "worst_s": gaps[-1]}
    for name in ("rate", "screen_part"):
        figures[name] = statistics.median(row[name] for row in rows)
    return {name: round(value, 3) for name, value in figures.items()} | {"changes": len(gaps), "rounds": args.rounds}


def plain_reply(args: argparse.Namespace, n: int, size: Size, record: bool = False) -> dict[str, float]:
    """One reply by `localmoe run`, or by `localmoe experts record`."""
    with tempfile.TemporaryDirectory() as folder:
        how = ["experts", "record", "-n", str(n), "-o", f"{folder}/trace.npz"] if record else ["run", "-n", str(n)]
        terminal = Terminal([*how, *_options(args), "-p", PROMPT], n, size)
        terminal.until(lambda: terminal.process.poll() is not None or terminal.measured(), 300, "the text")
        row = terminal.measured()[0]
        terminal.close()
    return row


def _options(args: argparse.Namespace) -> list[str]:
    return ["-m", args.model, "-t", str(args.t), "--temp", "0", "-c", "4096"]


def in_turn(args: argparse.Namespace, size: Size, one: str, other: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """`run` and another way to make the same reply, a process each, in turn."""
    rows: dict[str, list[dict[str, float]]] = {"run": [], one: []}
    for number in range(args.rounds):
        order = ["run", one] if number % 2 == 0 else [one, "run"]
        for name in order:
            rows[name].append(other() if name == one else plain_reply(args, args.n, size))
            print(f"round {number + 1}/{args.rounds}: {name} {rows[name][-1]['rate']:.1f}", file=sys.stderr)
    rates = {name: [row["rate"] for row in found] for name, found in rows.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "tokens_per_s": {name: round(value, 1) for name, value in medians.items()},
        "spread": {name: [round(min(values), 1), round(max(values), 1)] for name, values in rates.items()},
        "p99_ms": {name: round(statistics.median(r["p99_ms"] for r in found), 2) for name, found in rows.items()},
        "trace_part": {
            name: round(statistics.median(r["trace_part"] for r in found), 5) for name, found in rows.items()
        },
        "screen_part": round(statistics.median(row["screen_part"] for row in rows[one]), 4),
        "ratio": round(medians[one] / medians["run"], 4),
        "rounds": args.rounds,
    }


def keys(args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Milliseconds until a typed letter is on the screen, while a prompt of about 3000 tokens is read.

    `first_ms` is the letter typed while that prompt, 13 KB of text, is put into the chat.
    """
    terminal = Terminal(["tui", *_options(args)], 4, size)
    terminal.until(lambda: "Message" in terminal.seen, 120, "the chat")
    time.sleep(0.3)
    terminal.type(f"\x1b[200~{SENTENCE * 130}\x1b[201~")
    time.sleep(1.0)
    terminal.read(0)
    terminal.type("\r")
    terminal.until(lambda: "reading" in terminal.seen, 30, "the prompt")
    waits = []
    for letter in LETTERS:
        if terminal.measured():
            break  # the reply is there: this is no longer the prompt
        began = time.perf_counter()
        terminal.type(letter)
        while letter not in terminal.seen and time.perf_counter() - began < 2:
            terminal.read(0.01)
        if not terminal.measured():
            waits.append(1e3 * (time.perf_counter() - began))
        time.sleep(APART)
    terminal.until(lambda: terminal.measured(), 300, "the reply")
    seconds = terminal.measured()[0]["prompt_s"]
    terminal.close("\x11")
    first = waits[0]
    waits.sort()
    figures = {"first_ms": first, "median_ms": waits[len(waits) // 2], "p90_ms": waits[9 * len(waits) // 10]}
    figures |= {"worst_ms": waits[-1], "prompt_s": seconds}
    return {name: round(value, 1) for name, value in figures.items()} | {"keys": len(waits)}


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tests", default="speed,text,keys,record")
    parser.add_argument("-n", type=int, default=256, help="tokens of a reply")
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pace", type=float, default=100, help="tokens a second of the text test at most")
    parser.add_argument("--size", default="120x40", help="columns x lines")
    args = parser.parse_args()
    args.model = str(Path(args.model).resolve())
    columns, lines = map(int, args.size.split("x"))
    size = (columns, lines)
    tests: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: in_turn(args, size, "app", lambda: app_reply(args, args.n, size)),
        "text": lambda: text(args, size),
        "keys": lambda: keys(args, size),
        "record": lambda: in_turn(args, size, "record", lambda: plain_reply(args, args.n, size, record=True)),
    }
    for name in args.tests.split(","):
        row = {"test": name, "model": Path(args.model).name, "size": args.size, "n_threads": args.t}
        print(json.dumps(row | tests[name]()), flush=True)


if __name__ == "__main__":
    main()
