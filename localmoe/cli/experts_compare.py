"""`localmoe experts compare`: one text, two ways to route it."""

from __future__ import annotations

import shlex
from contextlib import closing
from typing import Annotated, Any

import typer

from localmoe.cli.common import Context, ModelPath, Threads, load_arguments, open_model
from localmoe.cli.experts_common import (
    AsJson,
    MaxTokens,
    Text,
    TextFile,
    counting,
    given_text,
    print_json,
    show,
    text_ids,
)
from localmoe.errors import UsageError

WORDS = "used=K, leave-out=LAYER:EXPERTS, force=LAYER:EXPERTS, threshold=W"


def compare(
    model: ModelPath,
    b: Annotated[str, typer.Option("-b", "--b", metavar="SETTING", help=f"The second setting: {WORDS}.")],
    a: Annotated[str, typer.Option("-a", "--a", metavar="SETTING", help="The first. [default: the model's own]")] = "",
    prompt: Text = None,
    file: TextFile = None,
    tokens: MaxTokens = 2048,
    json_output: AsJson = False,
    threads: Threads = None,
    ctx_size: Context = None,
) -> None:
    """Run one text with two settings of routing: how far the answers differ, and where the load went.

    A setting is words like "used=1 leave-out=3:1,5 threshold=0.2".
    """
    first, second = setting_of(a), setting_of(b)
    text = given_text(prompt, file)
    with closing(open_model(model, load_arguments(ctx_size, threads, None, "f16", "f16"))) as opened:
        from localmoe.engine import experiments
        from localmoe.experts.difference import difference, lines

        for options in (first, second):
            opened.session().route(**options)  # what cannot be is said before anything runs
        ids = text_ids(opened, text, tokens, file)
        cost_a, cost_b, run_a, run_b = experiments.compare(opened, ids, first, second, on_run=counting("comparing"))
    found = difference(run_a, run_b)
    if json_output:
        print_json({
            "a": cost_a.as_json(), "b": cost_b.as_json(), "moved": found.moved.tolist(),
            "shares_a": found.shares[0].tolist(), "shares_b": found.shares[1].tolist(),
        })  # fmt: skip
        return
    show([
        f"KL(A || B) {cost_b.mean_kl:.4f} +- {cost_b.kl_error:.4f} nats on {cost_b.n} tokens; the same likeliest next "
        f"token for {cost_b.same_top:.1%}",
        f"perplexity {cost_a.perplexity:.3f} (A), {cost_b.perplexity:.3f} (B)",
        f"choices skipped {cost_a.skipped:.1%} (A), {cost_b.skipped:.1%} (B)",
        "",
        *lines(found, (run_a.settings, run_b.settings)),
    ])  # fmt: skip


def setting_of(text: str) -> dict[str, Any]:
    """Options of `Model.generate` from words; UsageError for anything else."""
    options: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError:
        raise UsageError("not a setting", got=repr(text), expected=WORDS) from None
    for word in words:
        name, _, value = word.partition("=")
        try:
            if name == "used":
                options["n_expert_used"] = int(value)
            elif name == "threshold":
                options["expert_threshold"] = float(value)
            elif name in ("leave-out", "force") and value:
                options.setdefault({"leave-out": "leave_out", "force": "force_experts"}[name], []).append(value)
            else:
                raise ValueError
        except ValueError:
            raise UsageError("not a setting", got=repr(word), expected=WORDS) from None
    return options
