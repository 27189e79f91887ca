"""`localmoe experts diff`: two recordings side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.experts_common import show
from localmoe.gguf_file import visible


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A recording (NPZ).", readable=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the same model.", readable=False)],
) -> None:
    """Compare two recordings: how much of each layer's load lies elsewhere, and on which experts."""
    from localmoe.experts.difference import difference, lines
    from localmoe.experts.trace_file import load_recording

    a, b = load_recording(first), load_recording(second)
    names = tuple(f"{visible(str(path))} ({visible(r.settings, 200)})" for path, r in ((first, a), (second, b)))
    show(lines(difference(a, b), (names[0], names[1])))
