"""`localmoe convert`: a checkpoint folder, or a GGUF, as a quantized GGUF."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from localmoe.converters.pipeline import WriteReport


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A Hugging Face checkpoint folder, or a GGUF file.",
            show_default=False,
            readable=False,  # opening it says so, as an error of the file and not of usage
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT.gguf", help="The file to write.", show_default=False, parser=output_path
        ),
    ],
    file_type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Q4_K_M, Q6_K, Q8_0, BF16, F16, F32, ...")
    ] = "Q4_K_M",
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
        bool, typer.Option("--allow-requantize", help="Quantize a GGUF that is quantized already; it loses quality.")
    ] = False,
    split_max_size: SplitMaxSize = None,
    split_max_tensors: SplitMaxTensors = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show sizes and types.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads that encode.")] = None,
) -> None:
    """Convert a checkpoint (or a GGUF) to a quantized GGUF in one pass; its path is printed when it is written."""
    from localmoe.converters.split import parse_split
    from localmoe.errors import UsageError
    from localmoe.progress import TerminalProgress

    options: dict[str, Any] = {
        "split": parse_split(split_max_size, split_max_tensors), "dry_run": dry_run, "progress": TerminalProgress(),
        "options": type_options(
        pure, tensor_type, tensor_type_file, output_tensor_type, token_embedding_type, leave_output_tensor
    ),
        "n_threads": threads, "imatrix": importances(imatrix, include_weights, exclude_weights),
    }  # fmt: skip
    if source.is_dir():
        report = _convert_folder(source, out, file_type, pre, allow_pickle, options)
    elif pre is not None:
        raise UsageError("is for checkpoint folders: a GGUF has its pre-tokenizer", item="--pre", got=pre)
    else:
        report = _convert_gguf(source, out, file_type, {**options, "allow_requantize": allow_requantize})
    _show(report, dry_run)


def _convert_folder(
    source: Path, out: Path, file_type: str, pre: str | None, allow_pickle: bool, options: dict[str, Any]
) -> WriteReport:
    from localmoe.cli.cut_off import tell_when_cut_off
    from localmoe.converters.huggingface import load_source

    model = load_source(source, pre=pre, allow_pickle=allow_pickle, warn=_warn)
    from localmoe.converters.pipeline import write_model  # later: it imports the compiler, 65 MB of memory

    tell_when_cut_off(source)
    return write_model(model, out, file_type, **options)


def _convert_gguf(source: Path, out: Path, file_type: str, options: dict[str, Any]) -> WriteReport:
    from localmoe.cli.cut_off import tell_when_cut_off
    from localmoe.converters.gguf_source import gguf_source
    from localmoe.converters.pipeline import write_model
    from localmoe.gguf_file import open_gguf

    tell_when_cut_off(source)
    with open_gguf(source) as gguf:
        return write_model(gguf_source(gguf), out, file_type, **options)


def _warn(line: str) -> None:
    from localmoe.gguf_file import visible

    print(f"note: {visible(line, 500)}", file=sys.stderr)


def _show(report: WriteReport, dry_run: bool) -> None:
    from localmoe.text.visible import visible

    if dry_run:
        print(table(report))
        return
    print(f"{report.file_type}, {summary(report)}", file=sys.stderr)
    print(visible(str(report.path)) if sys.stdout.isatty() else report.path)
