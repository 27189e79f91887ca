"""The command line. Work is imported when a command runs: `localmoe --help` stays instant."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (sys.argv's by default) and return the exit code."""
    from localmoe.cli.app import main as run

    return run(argv)
