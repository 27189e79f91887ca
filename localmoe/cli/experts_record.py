"""`localmoe experts record`: how a text, or a generation, is routed, to a file."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.common import (
    Context,
    ExpertsUsed,
    ExpertThreshold,
    ForceExperts,
    LeaveOut,
    ModelPath,
    Threads,
    load_arguments,
    open_model,
    sampling_arguments,
    say,
    show_text,
    text_files,
    with_sampling,
)
from localmoe.cli.experts_common import MaxTokens, Text, TextFile, given_text, text_ids
from localmoe.cli.output_path import output_path
from localmoe.engine.sampling import SamplingParams


@with_sampling
def record(
    model: ModelPath,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="PATH", parser=output_path, help="The recording: .npz, or .csv, .jsonl."
        ),
    ],
    prompt: Text = None,
    file: TextFile = None,
    n_predict: Annotated[int, typer.Option("-n", "--predict", min=0, help="Tokens to generate after the text.")] = 0,
    tokens: MaxTokens = None,
    no_router: Annotated[
        bool, typer.Option("--no-router", help="Leave out the probabilities of experts not chosen.")
    ] = False,
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
    leave_out: LeaveOut = None,
    force_experts: ForceExperts = None,
    expert_threshold: ExpertThreshold = None,
    *,
    sampling: SamplingParams,
) -> None:
    """Record how a text is routed, and with -n what is generated after it (which goes to standard output).

    A text longer than the context is read in pieces of its size, each by itself.
    """
    from localmoe.experts.export import check_format, export_recording
    from localmoe.output_file import check_target

    check_format(output)
    text = given_text(prompt, file)
    load = load_arguments(
        ctx_size, threads, experts_used, "f16", "f16",
        leave_out=leave_out, force_experts=force_experts, expert_threshold=expert_threshold,
    )  # fmt: skip
    with closing(open_model(model, load)) as opened:
        from localmoe.engine.recorder import record_generation, record_text

        check_target(output, [*opened.gguf.parts, *text_files(file)], file=str(output))
        ids = text_ids(opened, text, tokens, file, least=1)
        if n_predict:
            recording = record_generation(
                opened,
                ids,
                router=not no_router,
                on_step=lambda step: show_text(step.text),
                max_tokens=n_predict,
                **sampling_arguments(sampling),
            )
            show_text("\n")
        else:
            recording = record_text(opened, ids, router=not no_router)
    export_recording(recording, output)
    say(f"{recording.n_token} tokens, {recording.n_layer} layers of {recording.n_expert} experts: {output}")
