"""Speed beside a core that another program keeps busy, ours and llama.cpp's, in turn: one JSON line a test.

    python benchmarks/busy.py MODEL.gguf [-p 512] [-n 32] [-t 2] [-r 2] [--rounds 2] [--core 0 | --free]
        [--llama .venv-llama/bin/python]

In each round every engine runs each test idle and then beside a loop that never ends, pinned to `--core`, or wherever
the system puts it with `--free`. A line holds the medians in tokens per second, `kept`, busy over idle, and `share`,
the processor time that the loop got of all cores' meanwhile (loading the model included): it costs no more than its
share where kept + share >= 1. Linux alone: it pins by `os.sched_setaffinity` and reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compare import ROOT, commands, run_rounds


class Loop:
    """A program that spins, on one core or on any (None), between `with` and its end; then `share` is known."""

    def __init__(self, core: int | None) -> None:
        self._core = core
        self.share = 0.0

    def __enter__(self) -> Loop:
        pin = "" if self._core is None else f"import os; os.sched_setaffinity(0, {{{self._core}}})\n"
        self._spinning = subprocess.Popen([sys.executable, "-c", pin + "while 1: pass"])
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        fields = Path(f"/proc/{self._spinning.pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)
        self.share = seconds / (time.perf_counter() - self._began) / len(os.sched_getaffinity(0))
        self._spinning.kill()
        self._spinning.wait()


def run_round(args: argparse.Namespace, loop: Loop | None) -> dict[str, tuple[str, list[float], float]]:
    """Each engine once, beside `loop` or idle: engine -> test, tokens per second, and the loop's share."""
    taken = {}
    for engine, command in commands(args).items():
        with loop or nullcontext():
            ((test, by_engine),) = run_rounds({engine: command}, 1).items()
        taken[engine] = test, by_engine[engine], loop.share if loop else 0.0
    return taken


def measure(args: argparse.Namespace) -> None:
    """One test, `args.p` or `args.n`, of every engine: a line each."""
    samples: dict[tuple[str, str], tuple[list[float], list[float], list[float]]] = {}
    for _ in range(args.rounds):
        for loop in (None, Loop(None if args.free else args.core)):
            for engine, (test, values, share) in run_round(args, loop).items():
                idle, busy, shares = samples.setdefault((engine, test), ([], [], []))
                (busy if loop else idle).extend(values)
                shares.extend([share] if loop else [])
    for (engine, test), (idle, busy, shares) in samples.items():
        medians = statistics.median(idle), statistics.median(busy)
        line = {"engine": engine, "test": test, "model": Path(args.model).name, "n_threads": args.t}
        line |= {"loop": "free" if args.free else "pinned", "idle": round(medians[0], 2), "busy": round(medians[1], 2)}
        line |= {"kept": round(medians[1] / medians[0], 3), "share": round(statistics.median(shares), 3)}
        line |= {"runs": len(busy), "spread": [[round(f(values), 2) for f in (min, max)] for values in (idle, busy)]}
        print(json.dumps(line), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-p", default="512", help="prompt tokens, 0 for no such test")
    parser.add_argument("-n", default="32", help="decoded tokens, 0 for no such test")
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("-r", type=int, default=2, help="counted runs in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="where the loop runs")
    parser.add_argument("--free", action="store_true", help="the loop runs on any core")
    llama = ROOT / ".venv-llama" / "bin" / "python"
    parser.add_argument("--llama", default=str(llama) if llama.exists() else None, help="Python with llama-cpp-python")
    args = parser.parse_args()
    args.model, args.d, args.ik, args.state = str(Path(args.model).resolve()), "0", None, None
    tests = [(args.p, "0"), ("0", args.n)]
    for args.p, args.n in [test for test in tests if test != ("0", "0")]:
        measure(args)


if __name__ == "__main__":
    main()
