"""`localmoe experts ablate`: which layers' routing matters."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from localmoe.cli.common import Context, ExpertsUsed, ModelPath, Threads, load_arguments, open_model
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


def ablate(
    model: ModelPath,
    prompt: Text = None,
    file: TextFile = None,
    tokens: MaxTokens = 1024,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what is drawn.")] = 0,
    json_output: AsJson = False,
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
) -> None:
    """Replace each layer's router in turn and measure the divergence of the answers on a text.

    uniform: all experts run, each with the same weight. random: rows drawn anew, as long as the router's own. shuffled:
    the router's own rows, each at another expert.
    """
    text = given_text(prompt, file)
    with closing(open_model(model, load_arguments(ctx_size, threads, experts_used, "f16", "f16"))) as opened:
        from localmoe.engine import experiments

        ids = text_ids(opened, text, tokens, file)
        own, found = experiments.ablate(opened, ids, seed=seed, on_run=counting("ablating"))
    if json_output:
        layers = {kind: [cost.as_json() for cost in row] for kind, row in found.items()}
        print_json({"own": own.as_json(), "layers": layers})
        return
    rows = [f"KL in nats to the answers as they are, on {own.n} tokens (perplexity as it is {own.perplexity:.2f})", ""]
    rows.append(f"{'layer':>5}" + "".join(f"  {kind:>9}" for kind in found))
    for layer in range(len(next(iter(found.values())))):
        rows.append(f"{layer:>5}" + "".join(f"  {row[layer].mean_kl:>9.4f}" for row in found.values()))
    rows.append("")
    rows += [f"{kind}: {text}" for kind, text in experiments.ABLATIONS.items()]
    show(rows)
