"""What recording the routing trace costs a decoded token: one JSON line.

    python benchmarks/trace.py MODEL.gguf [-n 256] [-r 9] [-t 2]

The same greedy generation with the session's ring and with one that keeps nothing, in turn, either of them first every
other time.
`append_us` is the time of the ring's own code a token, taken by itself, and `share` its part of a token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import localmoe
from localmoe.experts.trace import RoutingTrace


class NoTrace(RoutingTrace):
    """A trace that keeps nothing."""

    def append(self, *_: Any) -> None:
        """Forget the tokens."""


class TimedTrace(RoutingTrace):
    """A trace that knows how long it took."""

    seconds = 0.0

    def append(self, *given: Any) -> None:
        """Add tokens, and the time that it takes."""
        began = time.perf_counter()
        super().append(*given)
        self.seconds += time.perf_counter() - began


def spread(values: list[float], digits: int = 1) -> list[float]:
    """Median, least and greatest."""
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=256, help="decoded tokens a run")
    parser.add_argument("-r", type=int, default=9, help="runs of each")
    parser.add_argument("-t", type=int, default=2, help="threads")
    args = parser.parse_args()
    with localmoe.load(args.model, n_ctx=args.n + 64, n_threads=args.t) as model:
        shape = model.config.n_layer, model.config.n_expert
        kinds = {"with": RoutingTrace(*shape), "without": NoTrace(*shape), "timed": TimedTrace(*shape)}
        session, ids = model.session(), model.tokenize("One day, in a small village")
        rates: dict[str, list[float]] = {name: [] for name in kinds}

        def run(name: str) -> None:
            session.reset()
            session.trace = kinds[name]
            for _ in model.generate(ids, max_tokens=args.n, temperature=0.0, ignore_eos=True):
                pass
            rates[name].append(model.timings.rate)

        run("with")  # what is only done once
        rates["with"].clear()
        for number in range(args.r):
            for name in ("with", "without") if number % 2 else ("without", "with"):
                run(name)
        run("timed")
        timed = kinds["timed"]
        assert isinstance(timed, TimedTrace)
        append_s, token_s = timed.seconds / args.n, 1 / statistics.median(rates["with"])
    pairs = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
    row = {"model": Path(args.model).name, "n_gen": args.n, "runs": args.r, "n_threads": args.t}
    row |= {"with_ts": spread(rates["with"]), "without_ts": spread(rates["without"]), "ratio": spread(pairs, 4)}
    print(json.dumps(row | {"append_us": round(append_s * 1e6, 2), "share": round(append_s / token_s, 5)}))


if __name__ == "__main__":
    main()
