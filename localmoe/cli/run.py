"""`localmoe run`: complete a prompt; the text goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from secrets import randbits
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localmoe.cli.common import (
    CacheTypeK,
    CacheTypeV,
    Context,
    ExpertsUsed,
    ExpertThreshold,
    ForceExperts,
    LeaveOut,
    ModelPath,
    Threads,
    count_experts,
    expert_legend,
    experts_table,
    load_arguments,
    open_model,
    read_text,
    sampling_arguments,
    say,
    show_text,
    skipped_share,
    with_sampling,
)
from localmoe.cli.interrupts import prompt_ends_on_signals
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import UsageError

if TYPE_CHECKING:
    from localmoe.engine.api import Model, Step, Timings


@dataclass(frozen=True)
class Request:
    """What `run` was asked for, beside the model."""

    prompt: str
    ids: list[int]
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...]


@with_sampling
def run(
    model: ModelPath,
    dash: Annotated[str | None, typer.Argument(metavar="[-]", help="- reads the prompt from standard input.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="The prompt.")] = None,
    file: Annotated[
        str | None, typer.Option("-f", "--file", help="A file with the prompt; - is standard input.")
    ] = None,
    n_predict: Annotated[
        int, typer.Option("-n", "--predict", "--n-predict", min=-1, help="Tokens to generate; -1: until it ends.")
    ] = -1,
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
    leave_out: LeaveOut = None,
    force_experts: ForceExperts = None,
    expert_threshold: ExpertThreshold = None,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    stop: Annotated[
        list[str] | None, typer.Option("-r", "--reverse-prompt", metavar="TEXT", help="Stop at this text.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Never choose an end-of-text token.")] = False,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Put no begin-of-text token before the prompt.")] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Let the prompt spell special tokens; else it stays text.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    expert_summary: Annotated[
        bool, typer.Option("--expert-summary", help="Say which experts the generated tokens used.")
    ] = False,
    *,
    sampling: SamplingParams,
) -> None:
    """Complete a prompt: the text goes to stdout, timings to stderr."""
    text = _prompt_text(prompt, file, dash)
    options = load_arguments(
        ctx_size, threads, experts_used, cache_type_k, cache_type_v,
        leave_out=leave_out, force_experts=force_experts, expert_threshold=expert_threshold,
    )  # fmt: skip
    with closing(open_model(model, options)) as opened:
        if ignore_eos:
            banned = dict.fromkeys(opened.tokenizer.eog, float("-inf"))
            sampling = replace(sampling, logit_bias={**sampling.logit_bias, **banned})
        if sampling.seed is None or sampling.seed < 0:
            sampling = replace(sampling, seed=randbits(32))
        ids = opened.tokenize(text, add_bos=False if no_bos else None, parse_special=parse_special)
        request = Request(text, ids, n_predict, sampling, tuple(stop or ()))
        check_context(opened.n_ctx, len(ids), n_predict)
        steps = _generate(opened, request, quiet=as_json)
        summary = _experts(opened, steps)
        if as_json:
            report = _report(request, steps, opened.timings, summary)
            print(json.dumps(report, ensure_ascii=sys.stdout.isatty()))  # JSON escapes less than a terminal needs
        say(timings_line(opened.timings, steps[-1].stop_reason if steps else None))
        if skipped := skipped_share(steps):
            say(f"experts: {skipped:.1%} of the generated tokens' choices were skipped")
        if expert_summary:
            for line in experts_table(summary) + expert_legend(opened):
                say(line)


def _prompt_text(prompt: str | None, file: str | None, dash: str | None) -> str:
    """The prompt from the one place it was given in."""
    if dash not in (None, "-"):
        raise UsageError("unexpected argument", got=repr(dash), expected="-p TEXT, -f FILE or - for standard input")
    given = [name for name, value in (("-p", prompt), ("-f", file), ("-", dash)) if value is not None]
    if len(given) != 1:
        raise UsageError("one prompt is needed", got=" and ".join(given) or "none", expected="-p TEXT, -f FILE or -")
    return prompt if prompt is not None else read_text(file or "-")


def check_context(n_ctx: int, n_prompt: int, n_predict: int) -> None:
    """UsageError where the prompt leaves no room in the context; a note where it will end generation early."""
    if n_prompt == 0:
        raise UsageError("the prompt is empty")
    if n_prompt >= n_ctx:
        raise UsageError(
            "the prompt does not fit the context", got=f"{n_prompt} tokens", expected=f"below {n_ctx} (-c)"
        )
    if n_prompt + n_predict > n_ctx:
        room = n_ctx - n_prompt
        say(
            f"note: prompt {n_prompt} + {n_predict} tokens exceed the context of {n_ctx}: it ends after {room} (see -c)"
        )


def _generate(model: Model, request: Request, *, quiet: bool) -> list[Step]:
    """All steps of a generation; the text goes to stdout as it appears unless `quiet`."""
    steps = []
    options = sampling_arguments(request.sampling)
    try:
        with prompt_ends_on_signals(model):
            for step in model.generate(request.ids, max_tokens=request.max_tokens, stop=request.stop, **options):
                steps.append(step)
                if not quiet:
                    show_text(step.text)
    finally:
        if not quiet:
            show_text("\n")
    return steps


def _experts(model: Model, steps: list[Step]) -> Any:
    """Uses of each expert by the generated tokens, (L, E); (L, 0) for a dense model."""
    return count_experts(steps, model.config.n_layer, model.config.n_expert)


def _report(request: Request, steps: list[Step], timings: Timings, experts: Any) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "prompt_tokens": request.ids,
        "text": "".join(step.text for step in steps),
        "tokens": [int(step.token) for step in steps if step.token >= 0],
        "stop_reason": steps[-1].stop_reason if steps else None,
        "seed": request.sampling.seed,
        "timings": {**asdict(timings), "prompt_ts": timings.prompt_rate, "gen_ts": timings.rate},
        "experts": [{"layer": layer, "counts": row.tolist()} for layer, row in enumerate(experts) if row.size],
    }


_ENDED = {
    "eos": "by the model (eos)",
    "length": "at the length asked for (-n)",
    "stop": "at a stop string",
    "context": "with the context full",
    "cancelled": "stopped",
}


def timings_line(timings: Timings, stop_reason: str | None) -> str:
    """One line about speed and why it ended."""
    cached = f" ({timings.n_cached} of them cached)" if timings.n_cached else ""
    speed = f", {timings.rate:.1f} tokens/s" if timings.rate else ""
    ended = _ENDED[stop_reason] if stop_reason else "at once"
    return (
        f"prompt: {_tokens(timings.n_prompt)}{cached}, {timings.prompt_rate:.1f} tokens/s; "
        f"generated: {_tokens(timings.n_gen)}{speed}; ended: {ended}"
    )


def _tokens(n: int) -> str:
    return f"{n} token{'' if n == 1 else 's'}"
