"""The command line. Work is imported when a command runs: `localmoe --help` stays instant."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

# Imports, metadata and vocabularies make hundreds of thousands of objects that stay: looking through them every 700, as
# by default, took 0.05 s of a start.
_COLLECT_EVERY = 100_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (sys.argv's by default) and return the exit code."""
    if argv is None:  # the process is ours
        gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
    try:
        from localmoe.cli.app import main as run
    except KeyboardInterrupt:  # app handles those that come later
        print("error: interrupted", file=sys.stderr)
        return 130
    return run(argv)
