"""`localmoe experts export`: a recording for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.common import say
from localmoe.cli.experts_common import Trace
from localmoe.cli.output_path import output_path


def export(
    trace: Trace,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="PATH", parser=output_path, help="The file to write: .csv, .jsonl or .npz."
        ),
    ],
    kind: Annotated[
        str | None, typer.Option("--format", help="csv, jsonl or npz. [default: what the name says]")
    ] = None,
) -> None:
    """Turn a recording into CSV (`token,layer,slot,expert,weight`), JSON Lines (a token a line) or NPZ."""
    from localmoe.experts.export import check_format, export_recording, rows_of
    from localmoe.experts.trace_file import load_recording
    from localmoe.output_file import check_target

    kind = check_format(output, kind)
    check_target(output, [trace], file=str(output))
    recording = load_recording(trace)
    export_recording(recording, output, kind)
    n, what = rows_of(recording, kind)
    say(f"{n:,} {what}{'s' * (n != 1)}, {output.stat().st_size:,} bytes: {output}")
