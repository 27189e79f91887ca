"""Speed beside a core that another program keeps busy, ours and llama.cpp's, in turn: one JSON line a test.

    python benchmarks/busy.py MODEL.gguf [-p 512] [-n 32] [-t 2] [-r 2] [--rounds 2] [--core 0]
        [--llama .venv-llama/bin/python]

In each round every engine runs idle and then beside a loop that never ends, pinned to `--core`. A line holds the
medians in tokens per second and `kept`, busy over idle. With two threads on two cores, three threads then share two
cores, so 0.75 is what an even share would leave. Linux alone: it pins by `os.sched_setaffinity`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compare import ROOT, commands, run_rounds


@contextmanager
def busy_core(core: int | None) -> Iterator[None]:
    """A program that spins on one core, or none."""
    if core is None:
        yield
        return
    spinning = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile 1: pass"]
    )
    try:
        yield
    finally:
        spinning.kill()
        spinning.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-p", default="512", help="prompt tokens, a list")
    parser.add_argument("-n", default="32", help="decoded tokens, a list")
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("-r", type=int, default=2, help="counted runs in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    llama = ROOT / ".venv-llama" / "bin" / "python"
    parser.add_argument("--llama", default=str(llama) if llama.exists() else None, help="Python with llama-cpp-python")
    args = parser.parse_args()
    args.model, args.d, args.ik, args.state = str(Path(args.model).resolve()), "0", None, None
    samples: dict[tuple[str, str], dict[bool, list[float]]] = {}
    for _ in range(args.rounds):
        for busy in (False, True):
            with busy_core(args.core if busy else None):
                for test, by_engine in run_rounds(commands(args), 1).items():
                    for engine, values in by_engine.items():
                        samples.setdefault((engine, test), {}).setdefault(busy, []).extend(values)
    for (engine, test), values in samples.items():
        idle, beside = statistics.median(values[False]), statistics.median(values[True])
        line = {"engine": engine, "test": test, "model": Path(args.model).name, "n_threads": args.t}
        line |= {"idle": round(idle, 2), "busy": round(beside, 2), "kept": round(beside / idle, 3)}
        line |= {
            "runs": len(values[True]),
            "spread": [[round(f(values[b]), 2) for f in (min, max)] for b in (False, True)],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
