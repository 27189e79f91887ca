"""What a decoded token costs besides its forward pass, and what memory the process takes: one JSON line.

    python benchmarks/overhead.py MODEL.gguf [-n 128] [-p 0] [-c 4096] [-t 2] [--temp 0.8]

A token's wall time is taken outside the engine, sampling, text and routing trace included. `barriers` and `steps` are
those of the compiled call by its own clock, on the thread that calls it and samples too: others may be left out of a
token, and wait for the next. `outside` is all that is neither, as a share.
`-p` reads a prompt of so many pseudo-random tokens first. Memory in MB, from /proc: Linux alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import localmoe
from localmoe.model.plan import WAIT


def memory() -> dict[str, float]:
    """Resident memory by kind, MB of 10^6 bytes."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss")]
    return {words[0][:-1]: round(int(words[1]) * 1024 / 1e6, 1) for words in lines}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=128, help="decoded tokens")
    parser.add_argument("-p", type=int, default=0, help="tokens of the prompt")
    parser.add_argument("-c", type=int, default=4096, help="context")
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("--temp", type=float, default=0.8)
    args = parser.parse_args()
    with localmoe.load(args.model, n_ctx=args.c, n_threads=args.t) as model:
        rng = random.Random(0)
        ids = [rng.randrange(model.config.n_vocab) for _ in range(max(args.p, 16))]
        steps = model.generate(ids, max_tokens=args.n + 8, temperature=args.temp, seed=1, ignore_eos=True)
        for _ in range(8):
            next(steps)
        profile = model.profile()
        profile.start()
        began = time.perf_counter()
        n = sum(1 for _ in steps)
        wall = time.perf_counter() - began
        profile.stop()
        spent = profile.step_s[0]
        cache = model.memory_map["KV cache"]
    waited = float(spent[WAIT])
    worked = float(spent.sum()) - waited
    row = {"model": Path(args.model).name, "n_gen": n, "n_threads": args.t, "token_us": round(wall / n * 1e6, 1)}
    row |= {"steps_us": round(worked / n * 1e6, 1), "barriers_us": round(waited / n * 1e6, 1)}
    row |= {"outside": round(1 - (worked + waited) / wall, 4), "outside_with_barriers": round(1 - worked / wall, 4)}
    file_mb = Path(args.model).stat().st_size / 1e6
    row |= {"file_mb": round(file_mb, 1), "kv_mb": round(cache / 1e6, 1)} | memory()
    print(json.dumps(row))


if __name__ == "__main__":
    main()
