"""`localmoe imatrix`: which columns of a model's matrices matter for a text, for quantizing with it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localmoe.cli.common import (
    ExpertsUsed,
    Threads,
    load_arguments,
    open_model,
    read_text,
    say,
    text_files,
)
from localmoe.cli.output_path import output_path
from localmoe.errors import UsageError
from localmoe.progress import ChunkProgress

if TYPE_CHECKING:
    from localmoe.converters.imatrix import Imatrix
    from localmoe.engine.api import Model
    from localmoe.engine.importance import Collector
    from localmoe.engine.perplexity import Tokens


def imatrix(
    model: Annotated[
        Path | None, typer.Option("-m", "--model", help="The model: a GGUF file.", show_default=False, readable=False)
    ] = None,
    file: Annotated[str | None, typer.Option("-f", "--file", help="The text; - is standard input.")] = None,
    out: Annotated[
        Path, typer.Option("-o", "--output", "--output-file", metavar="OUT.gguf", help="The file.", parser=output_path)
    ] = Path("imatrix.gguf"),
    output_format: Annotated[
        str, typer.Option("--output-format", metavar="gguf|dat", help="The form of the file; dat is the older one.")
    ] = "gguf",
    output_frequency: Annotated[
        int, typer.Option("--output-frequency", "-ofreq", min=0, help="Write what there is every N chunks; 0: once.")
    ] = 0,
    in_file: Annotated[
        list[str] | None,
        typer.Option(
            "--in-file", metavar="FILE,...", help="Add importance matrices up, to this text's or, without one, alone."
        ),
    ] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=0, help="Tokens of a chunk; 0: the model's.")] = 512,
    chunk: Annotated[int, typer.Option("--chunk", "--from-chunk", min=0, help="Leave out so many chunks first.")] = 0,
    chunks: Annotated[int, typer.Option("--chunks", min=-1, help="Chunks at most; -1: all.")] = -1,
    no_ppl: Annotated[  # noqa: ARG001
        bool, typer.Option("--no-ppl", help="As it is: `localmoe perplexity` measures perplexity.")
    ] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Let the text spell special tokens; else it stays text.")
    ] = False,
    experts_used: ExpertsUsed = None,
    threads: Threads = None,
) -> None:
    """Compute an importance matrix from a text, as llama-imatrix does; `quantize --imatrix` reads it."""
    from localmoe.converters.imatrix import read_imatrix

    if output_format not in ("gguf", "dat"):
        raise UsageError("no such form", item="--output-format", got=repr(output_format), expected="gguf or dat")
    paths = [Path(path) for text in in_file or () for path in next(csv.reader([text]))]
    if file is None and not paths:
        raise UsageError("a text is needed", expected="-m MODEL -f FILE, or importance matrices to add up: --in-file")
    older = [read_imatrix(path) for path in paths]
    writing = Writing(out, output_format, output_frequency, paths)
    if file is None:
        _write_combined(older, ctx_size, writing)
        return
    if model is None:
        raise UsageError("which model?", expected="-m MODEL.gguf")
    text = read_text(file)
    with closing(open_model(model, load_arguments(ctx_size, threads, experts_used, "f16", "f16"))) as opened:
        writing.check([*opened.gguf.parts, *text_files(file)])
        ids = opened.tokenize(text, parse_special=parse_special)
        cut = cut_after(ids, opened.n_ctx, chunk, None if chunks < 0 else chunks)
        _collect(opened, cut, "standard input" if file == "-" else file, older, writing)


@dataclass(frozen=True)
class Writing:
    """Where to and how: `every` so many chunks, 0 for once; `inputs` are not written over."""

    out: Path
    form: str
    every: int
    inputs: list[Path]

    def check(self, inputs: list[Path]) -> None:
        from localmoe.output_file import check_target

        check_target(self.out, [*self.inputs, *inputs], file=str(self.out))

    def write(self, matrix: Imatrix) -> None:
        from localmoe.converters.imatrix import write_imatrix
        from localmoe.converters.imatrix_combine import write_legacy

        (write_legacy if self.form == "dat" else write_imatrix)(matrix, self.out, say)


def cut_after(ids: Sequence[int], n_ctx: int, first: int, most: int | None) -> Tokens:
    """Chunks as of perplexity, without the `first` ones; UsageError where less than two are left."""
    from localmoe.engine.perplexity import cut_chunks

    if first and (first + 2) * n_ctx >= len(ids):
        got = f"{len(ids)} tokens, {len(ids) // n_ctx} chunks"
        raise UsageError("leaves too little of the text", item="--chunk", got=got, expected="two chunks behind it")
    return cut_chunks(ids[first * n_ctx :], n_ctx, most)


def _write_combined(matrices: Sequence[Imatrix], chunk_size: int, writing: Writing) -> None:
    from localmoe.converters.imatrix_combine import combine

    if not chunk_size:
        raise UsageError("the size of a chunk is needed", item="--ctx-size", got=0, expected="at least 1")
    writing.check([])
    combined = combine(matrices, chunk_size)
    writing.write(combined)
    print(f"{len(combined.entries)} matrices, {combined.chunk_count} chunks of {chunk_size} tokens", file=sys.stderr)
    print(writing.out)


def _collect(model: Model, chunks: Tokens, name: str, older: Sequence[Imatrix], writing: Writing) -> None:
    """Run the model over the chunks, and write what that and older matrices add up to."""
    from localmoe.converters.imatrix import Entry, Imatrix
    from localmoe.converters.imatrix_combine import combine
    from localmoe.engine.importance import Collector

    collector, (n_chunk, n_ctx) = Collector(model), chunks.shape

    def so_far(done: int) -> Imatrix:
        entries = {name: Entry(one.sums, one.counts) for name, one in collector.matrices().items()}
        measured = Imatrix(entries, (name,), done, n_ctx, label=name)
        return combine([*older, measured], n_ctx) if older else measured

    with ChunkProgress(n_chunk, "importance") as progress:
        for done in collector.run(chunks):
            progress.done(done, f"{done * n_ctx} tokens")
            if writing.every and done % writing.every == 0 and done < n_chunk:
                writing.write(so_far(done))
    _say_unseen(collector)
    matrix = so_far(n_chunk)
    writing.write(matrix)
    print(f"{len(matrix.entries)} matrices, {n_chunk} chunks of {n_ctx} tokens", file=sys.stderr)
    print(writing.out)


def _say_unseen(collector: Collector) -> None:
    """A line for every layer with experts that no token reached: quantizing then weighs their columns alike."""
    for layer, experts in collector.unseen():
        say(f"note: layer {layer}: no token of the text reached expert {', '.join(map(str, experts))}")
