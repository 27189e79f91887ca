"""Rows of the tables in RESULTS.md, so that a benchmark prints what goes in there."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Sequence
from pathlib import Path


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it."""
    here = Path(__file__).parent
    name = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=here, text=True).strip()
    changed = subprocess.check_output(["git", "status", "--porcelain", "-uno"], cwd=here, text=True).strip()
    return name + "+" * bool(changed)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def heading(names: Sequence[str]) -> str:
    """A table's first two lines."""
    every = ["date", "commit", "machine", *names]
    return _line(every) + "\n" + "|---" * len(every) + "|"


def row(machine: str, cells: Sequence[object]) -> str:
    return _line([datetime.date.today().isoformat(), commit(), machine, *cells])
