"""`localmoe experts check`: whether a model's routers do anything, in plain words."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localmoe.cli.common import Context, ExpertsUsed, ModelPath, Threads, load_arguments, open_model
from localmoe.cli.default_model import tiny_model_path
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
from localmoe.gguf_file import visible

if TYPE_CHECKING:
    from localmoe.engine.health import Check


def check(
    model: ModelPath,
    prompt: Text = None,
    file: TextFile = None,
    tokens: MaxTokens = 2048,
    beside: Annotated[
        Path | None,
        typer.Option("--beside", metavar="MODEL", help="A model to compare with. [default: the packaged tiny-moe]"),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Compare with no other model.")] = False,
    json_output: AsJson = False,
    threads: Threads = None,
    ctx_size: Context = None,
    experts_used: ExpertsUsed = None,
) -> None:
    """Say in plain words what a model's routers do.

    Rows nearly alike, experts nothing reaches, layers that always choose the same, and what one expert less or more, or
    shuffled routers, cost on a text (a few sentences of several kinds without -f); then the same of a trained MoE.
    """
    if alone and beside is not None:
        raise UsageError("--alone and --beside cannot be together")
    text = "\n\n".join(_probes()) if prompt is None and file is None else given_text(prompt, file)

    def checked(path: Path, experts: int | None, what: str) -> Check:
        with closing(open_model(path, load_arguments(ctx_size, threads, experts, "f16", "f16"))) as opened:
            from localmoe.engine.health import check_routers

            return check_routers(opened, text_ids(opened, text, tokens, file), on_run=counting(what))

    others: list[tuple[str, Check]] = []
    if beside is not None:  # first: whether it is there is known before the long run
        others.append((_name(beside), checked(beside, None, f"checking {_name(beside)}")))
    found = checked(model, experts_used, "checking")
    if not alone and beside is None and not tiny_model_path().samefile(model):
        others.append(("tiny-moe, trained", checked(tiny_model_path(), None, "checking tiny-moe")))
    if json_output:
        print_json({**found.as_json(), "beside": {name: other.as_json() for name, other in others}})
        return
    show(found.lines())
    if others:
        from localmoe.engine.health import side_by_side

        show(["", "on the same text:", *side_by_side([(_name(model), found), *others])])


def _name(path: Path) -> str:
    return visible(path.stem, 40)


def _probes() -> tuple[str, ...]:
    from localmoe.converters.franken_report import PROBES

    return PROBES
