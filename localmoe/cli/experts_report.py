"""`localmoe experts report`: a recording as tables, JSON or a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.common import say, write_text
from localmoe.cli.experts_common import AsJson, Trace, print_json, show
from localmoe.cli.output_path import output_path


def report(
    trace: Trace,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="PATH", parser=output_path, help="Write a page that stands alone.")
    ] = None,
    json_output: AsJson = False,
) -> None:
    """Show a recording: what every layer's router did, prompts apart from replies."""
    from localmoe.experts import report as made
    from localmoe.experts.trace_file import load_recording
    from localmoe.output_file import check_target

    recording = load_recording(trace)
    if html is not None:
        check_target(html, [trace], file=str(html))
        write_text(html, made.html(recording))
        say(f"the page is {html}")
    elif json_output:
        print_json(made.as_json(recording))
    else:
        show(made.lines(recording))
