"""What a frame of the heatmap takes, every line of it drawn from values that all changed: a JSON line a size.

python benchmarks/heatmap.py [-r 50]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time

import numpy as np
from textual.app import App, ComposeResult

from localmoe.tui.widgets.heatmap import Heatmap

# layers, experts, columns and lines: whole, in half blocks, pooled
SIZES = ((48, 128, 140, 60), (48, 128, 80, 24), (96, 256, 280, 110), (96, 256, 200, 60), (96, 256, 80, 24))


class Alone(App[None]):
    """A heatmap with the screen to itself."""

    def compose(self) -> ComposeResult:
        """The heatmap."""
        yield Heatmap()


async def measure(n_layer: int, n_expert: int, width: int, height: int, runs: int) -> dict[str, object]:
    """Median, least and greatest time of a frame, after ten that do not count."""
    rng, times = np.random.default_rng(0), []
    async with Alone().run_test(size=(width, height)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        for _ in range(runs + 10):
            ratio, chosen = rng.gamma(1.0, 1.0, (n_layer, n_expert)), rng.random((n_layer, n_expert)) < 8 / n_expert
            began = time.perf_counter()
            heatmap.show(ratio, chosen, 4.0)
            for y in range(height):
                heatmap.render_line(y)
            times.append((time.perf_counter() - began) * 1e3)
        cells = heatmap.cells
    assert cells is not None
    kept = times[10:]
    spread = [round(value, 2) for value in (statistics.median(kept), min(kept), max(kept))]
    shape = {"n_layer": n_layer, "n_expert": n_expert, "size": [width, height], "cells": [cells.rows, cells.columns]}
    return {**shape, "frame_ms": spread, "runs": runs}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", type=int, default=50, help="frames")
    args = parser.parse_args()
    os.environ.update(COLORTERM="truecolor", TERM="xterm-256color")
    os.environ.pop("NO_COLOR", None)
    for size in SIZES:
        print(json.dumps(asyncio.run(measure(*size, args.r))), flush=True)


if __name__ == "__main__":
    main()
