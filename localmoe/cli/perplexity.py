"""`localmoe perplexity`: how well a model predicts a text, and how far its predictions are from another model's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localmoe.cli.common import (
    CacheTypeK,
    CacheTypeV,
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
from localmoe.errors import UsageError
from localmoe.progress import ChunkProgress

if TYPE_CHECKING:
    from localmoe.engine.api import Model
    from localmoe.engine.divergence import Base, Divergence
    from localmoe.engine.perplexity import Perplexity


def perplexity(
    model: ModelPath,
    file: Annotated[str | None, typer.Option("-f", "--file", help="The text; - is standard input.")] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=0, help="Tokens of a chunk; 0: the model's.")] = 512,
    chunks: Annotated[int, typer.Option("--chunks", min=-1, help="Chunks at most; -1: all.")] = -1,
    base: Annotated[
        Path | None,
        typer.Option(
            "--kl-divergence-base", "--save-all-logits", metavar="FILE", parser=output_path,
            help="Write this model's log-probabilities here, or with --kl-divergence compare with those in it.",
        ),
    ] = None,
    kl_divergence: Annotated[
        bool, typer.Option("--kl-divergence", help="Compare with the model that --kl-divergence-base was written by.")
    ] = False,
    experts_used: ExpertsUsed = None,
    threads: Threads = None,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:  # fmt: skip
    """Measure a model's perplexity on a text, chunk by chunk, as llama-perplexity does."""
    if kl_divergence and base is None:
        raise UsageError("compares with what?", item="--kl-divergence", expected="--kl-divergence-base FILE")
    if kl_divergence and (file is not None or chunks >= 0):
        raise UsageError("the base holds the text already", item="--kl-divergence", expected="neither -f nor --chunks")
    if not kl_divergence and file is None:
        raise UsageError("a text is needed", expected="-f FILE, or - for standard input")
    if kl_divergence:
        from localmoe.engine.divergence import open_base

        opened_base = open_base(base or Path())
        n_ctx = opened_base.chunks.shape[1]
        load = load_arguments(n_ctx, threads, experts_used, cache_type_k, cache_type_v)
        _compare(model, opened_base, load, as_json)
        return
    from localmoe.output_file import check_target

    text = read_text(file or "-")
    load = load_arguments(ctx_size, threads, experts_used, cache_type_k, cache_type_v)
    with closing(open_model(model, load)) as opened:
        inputs = [*opened.gguf.parts, *text_files(file)]
        target = None if base is None else check_target(base, inputs, file=str(base))
        _measure(opened, text, None if chunks < 0 else chunks, target, as_json)


def _measure(model: Model, text: str, most: int | None, target: Path | None, as_json: bool) -> None:
    """Perplexity of `text`; with `target` the log-probabilities are written there, all or nothing."""
    from localmoe.converters.output import check_space
    from localmoe.engine.divergence import base_bytes, write_base
    from localmoe.engine.perplexity import cut_chunks, perplexity
    from localmoe.output_file import replacing

    chunks = cut_chunks(model.tokenize(text), model.n_ctx, most)
    if target is None:
        result = _last_estimate(perplexity(model, chunks), len(chunks))
    else:
        check_space(target, base_bytes(chunks, model.config.n_vocab))
        with replacing(target, say) as out:
            result = _last_estimate(write_base(model, chunks, out.write), len(chunks))
    if as_json:
        print(json.dumps({"n_chunks": len(chunks), "n_ctx": chunks.shape[1], **asdict(result)}))
    else:
        print(f"Final estimate: PPL = {result.ppl:.4f} +/- {result.ppl_error:.5f}")


def _last_estimate(estimates: Iterator[tuple[int, Perplexity]], n_chunk: int) -> Perplexity:
    with ChunkProgress(n_chunk, "perplexity") as progress:
        for n, estimate in estimates:
            progress.done(n, f"{estimate.ppl:.4f}")
    return estimate


def _compare(path: Path, base: Base, load: dict[str, Any], as_json: bool) -> None:
    from localmoe.engine.divergence import compare

    with closing(open_model(path, load)) as model, ChunkProgress(len(base.chunks), "divergence") as progress:
        for n, result_so_far in compare(model, base):
            result = result_so_far()
            progress.done(n, f"{result.kld:.5f}")
    if as_json:
        print(json.dumps({"n_chunks": len(base.chunks), "n_ctx": base.chunks.shape[1], **asdict(result)}))
    else:
        print("\n".join(report(result)))


def report(d: Divergence) -> Iterator[str]:
    """Lines as llama-perplexity prints them."""
    yield "====== Perplexity statistics ======"
    yield f"Mean PPL(Q)                   : {d.ppl:10.6f} ± {d.ppl_error:10.6f}"
    yield f"Mean PPL(base)                : {d.ppl_base:10.6f} ± {d.ppl_base_error:10.6f}"
    yield f"Cor(ln(PPL(Q)), ln(PPL(base))): {d.ln_ppl_correlation:6.2f}%"
    yield f"Mean ln(PPL(Q)/PPL(base))     : {d.ln_ppl_ratio:10.6f} ± {d.ln_ppl_ratio_error:10.6f}"
    ratio = exp(d.ln_ppl_ratio)
    yield f"Mean PPL(Q)/PPL(base)         : {ratio:10.6f} ± {ratio * d.ln_ppl_ratio_error:10.6f}"
    yield f"Mean PPL(Q)-PPL(base)         : {d.ppl_difference:10.6f} ± {d.ppl_difference_error:10.6f}"
    yield "\n====== KL divergence statistics ======"
    yield f"Mean    KLD: {d.kld:10.6f} ± {d.kld_error:10.6f}"
    yield f"Maximum KLD: {d.kld_max:10.6f}"
    yield from (f"{_aligned(name)}KLD: {value:10.6f}" for name, value in d.kld_quantiles.items())
    yield f"Minimum KLD: {d.kld_min:10.6f}"
    yield "\n====== Token probability statistics ======"
    yield f"Mean    Δp: {d.p_diff:6.3f} ± {d.p_diff_error:5.3f} %"
    yield f"Maximum Δp: {d.p_diff_max:6.3f}%"
    yield from (f"{_aligned(name)}Δp: {value:6.3f}%" for name, value in d.p_diff_quantiles.items())
    yield f"Minimum Δp: {d.p_diff_min:6.3f}%"
    yield f"RMS Δp    : {d.p_diff_rms:6.3f} ± {d.p_diff_rms_error:5.3f} %"
    yield f"Same top p: {d.same_top:6.3f} ± {d.same_top_error:5.3f} %"


def _aligned(quantile: str) -> str:
    return f"{quantile:>5}".ljust(8)
