"""`localmoe experts check`: whether a model's routers do anything, in plain words."""

from __future__ import annotations

from contextlib import closing

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


def check(
    model: ModelPath,
    prompt: Text = None,
    file: TextFile = None,
    tokens: MaxTokens = 2048,
    json_output: AsJson = False,
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
) -> None:
    """Say in plain words what a model's routers do.

    Rows nearly alike, experts nothing reaches, layers that always choose the same, and what one expert less or more, or
    shuffled routers, cost on a text (a few sentences of several kinds without -f).
    """
    text = "\n\n".join(_probes()) if prompt is None and file is None else given_text(prompt, file)
    with closing(open_model(model, load_arguments(ctx_size, threads, experts_used, "f16", "f16"))) as opened:
        from localmoe.engine.health import check_routers

        found = check_routers(opened, text_ids(opened, text, tokens, file), on_run=counting("checking"))
    if json_output:
        print_json(found.as_json())
    else:
        show(found.lines())


def _probes() -> tuple[str, ...]:
    from localmoe.converters.franken_report import PROBES

    return PROBES
