"""`localmoe imatrix`: which columns of a model's matrices matter for a text, for quantizing with it."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localmoe.cli.common import (
    ExpertsUsed,
    ModelPath,
    Threads,
    load_arguments,
    open_model,
    read_text,
    say,
    text_files,
)
from localmoe.cli.output_path import output_path
from localmoe.progress import ChunkProgress

if TYPE_CHECKING:
    from localmoe.engine.importance import Collector


def imatrix(
    model: ModelPath,
    file: Annotated[str, typer.Option("-f", "--file", help="The text; - is standard input.", show_default=False)],
    out: Annotated[
        Path, typer.Option("-o", "--output", "--output-file", metavar="OUT.gguf", help="The file.", parser=output_path)
    ] = Path("imatrix.gguf"),
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=0, help="Tokens of a chunk; 0: the model's.")] = 512,
    chunks: Annotated[int, typer.Option("--chunks", min=-1, help="Chunks at most; -1: all.")] = -1,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Let the text spell special tokens; else it stays text.")
    ] = False,
    experts_used: ExpertsUsed = None,
    threads: Threads = None,
) -> None:
    """Compute an importance matrix from a text, as llama-imatrix does; `quantize --imatrix` reads it."""
    from localmoe.converters.imatrix import Entry, Imatrix, write_imatrix
    from localmoe.engine.importance import Collector
    from localmoe.engine.perplexity import cut_chunks
    from localmoe.output_file import check_target

    text = read_text(file)
    with closing(open_model(model, load_arguments(ctx_size, threads, experts_used, "f16", "f16"))) as opened:
        check_target(out, [*opened.gguf.parts, *text_files(file)], file=str(out))
        n_ctx = opened.n_ctx
        cut = cut_chunks(opened.tokenize(text, parse_special=parse_special), n_ctx, None if chunks < 0 else chunks)
        collector = Collector(opened)
        with ChunkProgress(len(cut), "importance") as progress:
            for done in collector.run(cut):
                progress.done(done, f"{done * n_ctx} tokens")
        entries = {name: Entry(one.sums, one.counts) for name, one in collector.matrices().items()}
        _say_unseen(collector)
    name = "standard input" if file == "-" else file
    write_imatrix(Imatrix(entries, (name,), len(cut), n_ctx), out, say)
    print(f"{len(entries)} matrices, {len(cut)} chunks of {n_ctx} tokens", file=sys.stderr)
    print(out)


def _say_unseen(collector: Collector) -> None:
    """A line for every layer with experts that no token reached: quantizing then weighs their columns alike."""
    for layer, experts in collector.unseen():
        say(f"note: layer {layer}: no token of the text reached expert {', '.join(map(str, experts))}")
