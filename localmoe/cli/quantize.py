"""`localmoe quantize`: a GGUF in other types."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from localmoe.converters.pipeline import WriteReport

ImatrixFile = Annotated[
    Path | None,
    typer.Option(
        "--imatrix", metavar="FILE", readable=False,
        help="Weigh columns by an importance matrix (GGUF, or the older .dat); `localmoe imatrix` makes one.",
    ),
]  # fmt: skip
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
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.", readable=False)],
    file_type: Annotated[
        str, typer.Argument(metavar="TYPE", help="Q4_K_M, Q6_K, Q8_0, F16, ...; COPY keeps all types as they are.")
    ],
    pure: Annotated[
        bool, typer.Option("--pure", help="One type for all matrices, without the mix's exceptions.")
    ] = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="RE=TYPE",
            help="The type of tensors whose names match. Repeatable; first match wins.",
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="The type of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="The type of token_embd.weight.")
    ] = None,
    imatrix: ImatrixFile = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize tensors that are quantized already; they lose quality.")
    ] = False,
    split_max_size: SplitMaxSize = None,
    split_max_tensors: SplitMaxTensors = None,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write as many parts as the input has, with the same tensors each.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show sizes and types.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads that encode.")] = None,
) -> None:
    """Quantize a GGUF, byte for byte as llama-quantize does; COPY merges the parts of a split one."""
    from localmoe.converters.gguf_source import gguf_source
    from localmoe.converters.imatrix import read_imatrix
    from localmoe.converters.pipeline import write_model
    from localmoe.converters.recipe import parse_options
    from localmoe.converters.split import parse_split
    from localmoe.gguf_file import open_gguf, visible
    from localmoe.progress import TerminalProgress

    options = parse_options(
        pure=pure,
        overrides=[split_override(text) for text in tensor_type or ()],
        output_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
    )
    split = parse_split(split_max_size, split_max_tensors, keep=keep_split)
    matrix = read_imatrix(imatrix) if imatrix is not None else None
    with open_gguf(source) as gguf:
        report = write_model(
            gguf_source(gguf, keep_split=keep_split), out, file_type, options=options, imatrix=matrix, split=split,
            allow_requantize=allow_requantize, dry_run=dry_run, progress=TerminalProgress(), n_threads=threads,
        )  # fmt: skip
    if dry_run:
        print(table(report))
    else:
        print(f"{visible(str(report.path))}: {report.file_type}, {summary(report)}", file=sys.stderr)


def split_override(text: str) -> tuple[str, str]:
    """`RE=TYPE` in two; the last `=` counts. UsageError without one."""
    from localmoe.errors import UsageError

    expression, equals, type_name = text.rpartition("=")
    if not equals or not expression:
        raise UsageError("--tensor-type", got=repr(text), expected="RE=TYPE")
    return expression, type_name


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
