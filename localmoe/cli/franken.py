"""`localmoe franken`: a mergekit-moe recipe, straight to a quantized GGUF."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localmoe.cli.output_path import output_path
from localmoe.cli.quantize import SplitMaxSize, SplitMaxTensors, summary, table
from localmoe.cli.type_options import (
    AllowPickle,
    ExcludeWeights,
    ImatrixFile,
    IncludeWeights,
    LeaveOutputTensor,
    OutputTensorType,
    Pure,
    TensorType,
    TensorTypeFile,
    TokenEmbeddingType,
    importances,
    type_options,
)

if TYPE_CHECKING:
    from localmoe.converters.franken import Franken


def franken(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yml", help="A mergekit-moe recipe.", show_default=False, readable=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT.gguf", help="The file to write.", show_default=False, parser=output_path
        ),
    ],
    file_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Q4_K_M, Q6_K, Q8_0, BF16, F16, ... [default: Q4_K_M; where a source is quantized, its own types]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise and of random routers.")] = 0,
    pre: Annotated[
        str | None,
        typer.Option("--pre", metavar="NAME", help="The pre-tokenizer, by llama.cpp's name, if it is not recognised."),
    ] = None,
    pure: Pure = False,
    tensor_type: TensorType = None,
    tensor_type_file: TensorTypeFile = None,
    output_tensor_type: OutputTensorType = None,
    token_embedding_type: TokenEmbeddingType = None,
    leave_output_tensor: LeaveOutputTensor = False,
    imatrix: ImatrixFile = None,
    include_weights: IncludeWeights = None,
    exclude_weights: ExcludeWeights = None,
    allow_pickle: AllowPickle = False,
    allow_requantize: Annotated[
        bool,
        typer.Option("--allow-requantize", help="Quantize weights that are quantized already; they lose quality."),
    ] = False,
    split_max_size: SplitMaxSize = None,
    split_max_tensors: SplitMaxTensors = None,
    report: Annotated[
        str, typer.Option("--report", metavar="text|json|none", help="What the router looks like; json goes to stdout.")
    ] = "text",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, and only show sizes and types.")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads.")] = None,
) -> None:
    """Build a frankenMoE from a mergekit-moe recipe, straight to a quantized GGUF; its path is printed.

    Attention, norms and embeddings come from the base model, each expert's feed-forward matrices from its own. The
    router is made from the prompts: text like an expert's prompts goes to that expert. Models are checkpoint folders
    (safetensors) or GGUF files; paths start at the recipe's folder, and nothing is downloaded.

    \b
    base_model: ./Mistral-7B-v0.1          # or a .gguf
    gate_mode: hidden                      # hidden_avg, cheap_embed, random, uniform_random
    experts_per_token: 2
    experts:
      - source_model: ./storyteller-7b
        label: stories                     # shown in the app
        positive_prompts:
          - "Once upon a time"
          - "Tell me a story about"
      - source_model: ./coder-7b
        positive_prompts: ["def main():", "Fix this function"]
        negative_prompts: ["Tell me a story about"]
        noise_scale: 0.0                   # Gaussian noise on every weight
        residual_scale: 1.0                # factor on what the expert adds

    \b
    localmoe franken recipe.yml -o moe.gguf --type Q4_K_M
    localmoe tui -m moe.gguf
    """
    from localmoe.cli.cut_off import WHY, tell_when_cut_off
    from localmoe.converters.franken import build
    from localmoe.converters.franken_recipe import read_recipe
    from localmoe.converters.split import parse_split
    from localmoe.errors import UsageError
    from localmoe.progress import TerminalProgress

    if report not in ("text", "json", "none"):
        raise UsageError("unknown form of report", item="--report", got=repr(report), expected="text, json or none")
    options = type_options(
        pure, tensor_type, tensor_type_file, output_tensor_type, token_embedding_type, leave_output_tensor
    )
    matrix = importances(imatrix, include_weights, exclude_weights)
    split = parse_split(split_max_size, split_max_tensors)
    tell_when_cut_off(recipe, f"a model of the recipe {WHY}")
    built = build(
        read_recipe(recipe, _note), out, file_type, seed=seed, pre=pre, allow_pickle=allow_pickle, options=options,
        imatrix=matrix, split=split, allow_requantize=allow_requantize, dry_run=dry_run, progress=TerminalProgress(),
        n_threads=threads, notify=_note,
    )  # fmt: skip
    _show(built, report, threads)


def _note(line: str) -> None:
    from localmoe.gguf_file import visible

    print(f"note: {visible(line, 500)}", file=sys.stderr)


def _show(built: Franken, form: str, threads: int | None) -> None:
    """Say what was written, and what its router looks like."""
    from localmoe.converters.franken_report import as_json, describe, lines

    if built.router is None:
        print(table(built.written))
        return
    print(f"{built.written.file_type}, {summary(built.written)}", file=sys.stderr)
    if form == "none":
        print(built.written.path)
        return
    described = describe(built, n_threads=threads)
    if form == "json":
        print(json.dumps({"path": str(built.written.path), **as_json(described)}, ensure_ascii=False))
        return
    for line in lines(described):
        print(line, file=sys.stderr)
    print(built.written.path)
