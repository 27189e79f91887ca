"""`localmoe tui`: the terminal app."""

from __future__ import annotations

import os
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
    GoOn,
    KeptChat,
    LeaveOut,
    OptionalModelPath,
    Overflow,
    Predict,
    Threads,
    load_arguments,
    sampling_arguments,
    with_sampling,
)
from localmoe.cli.default_model import beginnings, demo_to_build, given_or_demo_model, packaged_models, tiny_model_path
from localmoe.cli.sessions import kept_chat
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import UsageError


@with_sampling
def tui(
    model: OptionalModelPath = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Open the packaged tiny-moe: a trained router at work, at once, offline.")
    ] = False,
    go_on: GoOn = False,
    session: KeptChat = None,
    unsaved: Annotated[bool, typer.Option("--no-save", help="Keep no chats in this run.")] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="TRACE", help="A recording to show differences from (F2).", readable=False),
    ] = None,
    system: Annotated[str, typer.Option("-sys", "--system-prompt", help="The system prompt.", show_default=False)] = "",
    n_predict: Predict = -1,
    overflow: Overflow = "stop",
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
    if unsaved and (go_on or session is not None):
        raise UsageError("a chat that was kept goes on with the file of chats", got="--no-save", expected="without it")
    resume, model = (None, model) if not go_on and session is None else kept_chat(session, model, tiny)
    from localmoe.tui.parameters import BY_NAME, check

    parameters = {"max_tokens": n_predict, "overflow": check(BY_NAME["overflow"], overflow)}
    path = tiny_model_path() if tiny else model or pick_or_demo_model(unsaved)
    from localmoe.sessions.schema import default_path
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
    options = AppOptions(
        load=load, sampling=sampling_arguments(sampling), parameters=parameters, system=system, saved=saved,
        sessions=None if unsaved else default_path(), resume=resume, models=packaged_models(), demo=demo_to_build(),
        beginnings=beginnings(),
    )  # fmt: skip
    code = run_app(path, options)
    raise typer.Exit(code)


def pick_or_demo_model(unsaved: bool) -> Path | None:
    """None where there are files to pick from besides the demo's and the package's; else the demo model."""
    import sys

    from localmoe.errors import LocalMoeError
    from localmoe.sessions.schema import default_path
    from localmoe.tui.model_files import find

    recent: list[str] = []
    if not unsaved and os.path.exists(default_path()):
        from localmoe.sessions.store import Store

        try:
            with Store(default_path()) as store:
                recent = store.recent_models()
        except LocalMoeError:  # the app says it
            recent = []
    known = {path for _, path in packaged_models()}
    if sys.stdin.isatty() and any(item.path not in known for item in find(recent)):
        return None
    return given_or_demo_model(None)
