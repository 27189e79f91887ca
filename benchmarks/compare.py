"""localmoe beside its peers on one GGUF, in turn, as one JSON line a test.

    python benchmarks/compare.py MODEL.gguf [-p 512] [-n 128] [-d 0] [-t 2] [--rounds 3] [-r 2]
        [--llama .venv-llama/bin/python] [--ik PYTHON] [--state FOLDER]

Each round runs every engine once (`-r` counted runs a test, in a process of its own), so that a machine whose speed
drifts slows all of them; the medians of all runs are compared. A line holds tokens per second by engine, their least
and greatest (`spread`), and `ratio`, localmoe's divided by each peer's. Append the lines' figures to RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).with_name("peer.py")

Samples = dict[str, dict[str, list[float]]]


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """What to run for each engine."""
    flags = ["-p", args.p, "-n", args.n, "-d", args.d, "-t", str(args.t), "-r", str(args.r)]
    out = {"localmoe": [sys.executable, "-m", "localmoe", "bench", "-m", args.model, "-o", "json", *flags]}
    for engine, python in (("llama.cpp", args.llama), ("ik_llama.cpp", args.ik)):
        if python is not None:
            out[engine] = [python, str(PEER), args.model, "--engine", engine, *flags]
            if args.state:
                folder = Path(args.state).resolve() / Path(args.model).stem / engine
                folder.mkdir(parents=True, exist_ok=True)
                out[engine] += ["--state", str(folder)]
    return out


def run_rounds(wanted: dict[str, list[str]], rounds: int) -> Samples:
    """Tokens per second of every run: test -> engine -> samples."""
    samples: Samples = {}
    for number in range(1, rounds + 1):
        for engine, command in wanted.items():
            print(f"round {number}/{rounds}: {engine}", file=sys.stderr)
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"error: {engine} exited {done.returncode}\n{done.stderr[-2000:]}")
            for row in json.loads(done.stdout):
                samples.setdefault(row["test"], {}).setdefault(engine, []).extend(row["samples"])
    return samples


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(test: str, by_engine: dict[str, list[float]], args: argparse.Namespace) -> dict[str, Any]:
    """One line: medians, and localmoe's as a multiple of each peer's."""
    medians = {engine: statistics.median(values) for engine, values in by_engine.items()}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cpu": cpu_name(),
        "model": Path(args.model).name,
        "test": test,
        "n_threads": args.t,
        "tokens_per_s": {engine: round(value, 2) for engine, value in medians.items()},
        "spread": {engine: [round(min(values), 2), round(max(values), 2)] for engine, values in by_engine.items()},
        "runs": len(by_engine["localmoe"]),
        "ratio": {e: round(medians["localmoe"] / value, 3) for e, value in medians.items() if e != "localmoe"},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-p", default="512", help="prompt tokens, a list")
    parser.add_argument("-n", default="128", help="decoded tokens, a list")
    parser.add_argument("-d", default="0", help="tokens already in the context, a list")
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("-r", type=int, default=2, help="counted runs in a round")
    parser.add_argument("--rounds", type=int, default=3)
    llama = ROOT / ".venv-llama" / "bin" / "python"
    parser.add_argument("--llama", default=str(llama) if llama.exists() else None, help="Python with llama-cpp-python")
    parser.add_argument("--state", help="folder where peers keep what they filled: at great depths they need minutes")
    parser.add_argument("--ik", help="Python with ik-llama-cpp-python")
    args = parser.parse_args()
    args.model = str(Path(args.model).resolve())
    for test, by_engine in run_rounds(commands(args), args.rounds).items():
        print(json.dumps(report(test, by_engine, args)))


if __name__ == "__main__":
    main()
