"""`localmoe tui`: the terminal app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.common import (
    CacheTypeK,
    CacheTypeV,
    Context,
    ExpertsUsed,
    ExpertThreshold,
    ForceExperts,
    LeaveOut,
    OptionalModelPath,
    Threads,
    load_arguments,
    sampling_arguments,
    with_sampling,
)
from localmoe.cli.default_model import given_or_demo_model, tiny_model_path
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import UsageError


@with_sampling
def tui(
    model: OptionalModelPath = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Open the packaged tiny-moe: a trained router at work, at once, offline.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="TRACE", help="A recording to show differences from (F2).", readable=False),
    ] = None,
    system: Annotated[str, typer.Option("-sys", "--system-prompt", help="The system prompt.", show_default=False)] = "",
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
    leave_out: LeaveOut = None,
    force_experts: ForceExperts = None,
    expert_threshold: ExpertThreshold = None,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    *,
    sampling: SamplingParams,
) -> None:
    """Chat in the terminal app, with the experts' activity beside it."""
    if tiny and model is not None:
        raise UsageError("two models given", got=f"--tiny and -m {model}", expected="one")
    path = tiny_model_path() if tiny else given_or_demo_model(model)
    from localmoe.tui.app import run_app
    from localmoe.tui.options import AppOptions

    load = load_arguments(
        ctx_size, threads, experts_used, cache_type_k, cache_type_v,
        leave_out=leave_out, force_experts=force_experts, expert_threshold=expert_threshold,
    )  # fmt: skip
    saved = None
    if against is not None:
        from localmoe.experts.trace_file import load_recording

        saved = load_recording(against)
    options = AppOptions(load=load, sampling=sampling_arguments(sampling), system=system, saved=saved)
    code = run_app(path, options)
    raise typer.Exit(code)
