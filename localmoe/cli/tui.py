"""`localmoe tui`: the terminal app."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from localmoe.cli.common import (
    CacheTypeK,
    CacheTypeV,
    Context,
    ExpertsUsed,
    OptionalModelPath,
    Threads,
    given_or_demo_model,
    load_arguments,
    sampling_arguments,
    with_sampling,
)
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import UsageError


@with_sampling
def tui(
    model: OptionalModelPath = None,
    system: Annotated[str, typer.Option("-sys", "--system-prompt", help="The system prompt.", show_default=False)] = "",
    threads: Threads = None,
    ctx_size: Context = 0,
    experts_used: ExpertsUsed = None,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    *,
    sampling: SamplingParams,
) -> None:
    """Chat in the terminal app, with the experts' activity beside it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the terminal app needs a terminal", expected="`localmoe chat` or `localmoe run` without one")
    path = given_or_demo_model(model)
    from localmoe.tui.app import run_app
    from localmoe.tui.options import AppOptions

    load = load_arguments(ctx_size, threads, experts_used, cache_type_k, cache_type_v)
    run_app(path, AppOptions(load=load, sampling=sampling_arguments(sampling), system=system))
