"""`localmoe quantize`: a GGUF in other types."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localmoe.cli.quantize_arguments import place
from localmoe.cli.type_options import (
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
    from localmoe.converters.pipeline import WriteReport

SplitMaxSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size", metavar="N(M|G)", help="Several files of at most so many MB or GB of tensors each."
    ),
]
SplitMaxTensors = Annotated[
    int | None, typer.Option("--split-max-tensors", min=1, help="Several files of at most so many tensors each.")
]


def quantize(
    source: Annotated[
        Path, typer.Argument(metavar="IN.gguf", help="The model to quantize (any part of a split one).", readable=False)
    ],
    out: Annotated[
        str | None,
        typer.Argument(metavar="OUT.gguf", help="The file to write; without it ggml-model-TYPE.gguf beside IN.gguf."),
    ] = None,
    file_type: Annotated[
        str | None,
        typer.Argument(metavar="TYPE", help="Q4_K_M, Q6_K, Q8_0, F16, ...; COPY keeps all types as they are."),
    ] = None,
    n_threads: Annotated[str | None, typer.Argument(metavar="THREADS", help="As --threads.")] = None,
    pure: Pure = False,
    tensor_type: TensorType = None,
    tensor_type_file: TensorTypeFile = None,
    output_tensor_type: OutputTensorType = None,
    token_embedding_type: TokenEmbeddingType = None,
    leave_output_tensor: LeaveOutputTensor = False,
    imatrix: ImatrixFile = None,
    include_weights: IncludeWeights = None,
    exclude_weights: ExcludeWeights = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize tensors that are quantized already; they lose quality.")
    ] = False,
    split_max_size: SplitMaxSize = None,
    split_max_tensors: SplitMaxTensors = None,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write as many parts as the input has, with the same tensors each.")
    ] = False,
    prune_layers: Annotated[
        str | None, typer.Option("--prune-layers", metavar="L0,L1,...", help="Leave layers out. Use with care.")
    ] = None,
    override_kv: Annotated[
        list[str] | None,
        typer.Option(
            "--override-kv", metavar="KEY=TYPE:VALUE", help="Set a key of the metadata; TYPE: int, float, bool, str."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show sizes and types.")] = False,
    max_buffer_size: Annotated[  # noqa: ARG001  less is used in any case
        int | None, typer.Option(min=1, hidden=True, help="llama-quantize's; pieces are of 16 MB in any case.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads that encode.")] = None,
) -> None:  # fmt: skip
    """Quantize a GGUF, byte for byte as llama-quantize does; COPY merges the parts of a split one."""
    from localmoe.cli.cut_off import tell_when_cut_off
    from localmoe.converters.edits import parse_layers, parse_overrides, prune
    from localmoe.converters.gguf_source import gguf_source
    from localmoe.converters.pipeline import write_model
    from localmoe.converters.split import parse_split
    from localmoe.gguf_file import open_gguf, visible
    from localmoe.progress import TerminalProgress

    target, file_type, n_last = place(source, out, file_type, n_threads)
    options = type_options(
        pure, tensor_type, tensor_type_file, output_tensor_type, token_embedding_type, leave_output_tensor
    )
    split = parse_split(split_max_size, split_max_tensors, keep=keep_split)
    matrix = importances(imatrix, include_weights, exclude_weights)
    keys = parse_overrides(override_kv or ())
    layers = parse_layers(prune_layers) if prune_layers is not None else None
    tell_when_cut_off(source)
    with open_gguf(source) as gguf:
        model = gguf_source(gguf, keep_split=keep_split, user_keys=keys)
        report = write_model(
            model if layers is None else prune(model, layers), target, file_type, options=options, imatrix=matrix,
            split=split, allow_requantize=allow_requantize, dry_run=dry_run, progress=TerminalProgress(),
            n_threads=threads or n_last,
        )  # fmt: skip
    if dry_run:
        print(table(report))
    else:
        print(f"{visible(str(report.path))}: {report.file_type}, {summary(report)}", file=sys.stderr)


def table(report: WriteReport) -> str:
    """A line a tensor (name, dimensions fastest first, types, MiB) and a total."""
    from localmoe.gguf_file import visible

    lines = []
    for t in report.tensors:
        dims = " x ".join(str(axis) for axis in reversed(t.shape))
        types = t.type.name if t.type == t.source_type else f"{t.source_type.name} -> {t.type.name}"
        lines.append(f"{visible(t.name):<36} {dims:>22}  {types:<14} {t.n_bytes / 2**20:>10.2f} MiB")
    lines.append(f"total: {summary(report)}")
    return "\n".join(lines)


def summary(report: WriteReport) -> str:
    """Size of the file and bits a weight."""
    parts = f" in {len(report.parts)} parts" if len(report.parts) > 1 else ""
    return f"{report.n_bytes / 2**20:.2f} MiB{parts}, {report.bits_per_weight:.2f} bits per weight"
