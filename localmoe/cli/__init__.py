"""The command line. Work is imported when a command runs: `localmoe --help` stays instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (sys.argv's by default) and return the exit code."""
    try:
        from localmoe.cli.app import main as run
    except KeyboardInterrupt:  # app handles those that come later
        print("error: interrupted", file=sys.stderr)
        return 130
    return run(argv)
