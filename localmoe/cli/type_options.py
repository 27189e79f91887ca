"""Options that `quantize`, `convert` and `franken` share: tensors' types, and the weights of columns."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from localmoe.converters.imatrix import Imatrix
    from localmoe.converters.recipe import Options


def _given_types(ctx: typer.Context, value: list[str] | None) -> list[str]:
    """The value of --tensor-type: a list that --tensor-type-file adds to, so that the command line's order counts."""
    types: list[str] = ctx.meta.setdefault("tensor types", [])
    types += value or []
    return types


def _types_in_files(ctx: typer.Context, value: list[str] | None) -> list[str]:
    """Add what files hold, RE=TYPE separated by spaces or newlines, to that list; the files."""
    from localmoe.cli.text_input import read_utf8

    for path in value or ():
        words = re.findall(r"[^ \t\n\v\f\r]+", read_utf8(path))
        for word in words:
            split_override(word, path)
        _given_types(ctx, words)
    return value or []


AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read weights from pickled files (.bin, .pt, .pth); nothing they hold is run."),
]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, without the mix's exceptions.")]
TensorType = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type", metavar="RE=TYPE", callback=_given_types,
        help="The type of tensors whose names match. Repeatable; first match wins.",
    ),
]  # fmt: skip
TensorTypeFile = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type-file", metavar="FILE", callback=_types_in_files,
        help="A text of such RE=TYPE, separated by spaces or newlines.",
    ),
]  # fmt: skip
OutputTensorType = Annotated[
    str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="The type of output.weight.")
]
TokenEmbeddingType = Annotated[
    str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="The type of token_embd.weight.")
]
LeaveOutputTensor = Annotated[
    bool, typer.Option("--leave-output-tensor", help="Keep output.weight in the type it has.")
]
ImatrixFile = Annotated[
    Path | None,
    typer.Option(
        "--imatrix", metavar="FILE", readable=False,
        help="Weigh columns by an importance matrix (GGUF, or the older .dat); `localmoe imatrix` makes one.",
    ),
]  # fmt: skip
IncludeWeights = Annotated[
    list[str] | None,
    typer.Option("--include-weights", metavar="NAME", help="Weigh only tensors with this in their names. Repeatable."),
]
ExcludeWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-weights", metavar="NAME", help="Do not weigh tensors with this in their names. Repeatable."
    ),
]


def importances(file: Path | None, include: Sequence[str] | None, exclude: Sequence[str] | None) -> Imatrix | None:
    """The importance matrix of --imatrix, or the part of it that the other two name.

    UsageError: both, without a matrix, or nothing is left.
    """
    from localmoe.converters.imatrix import read_imatrix
    from localmoe.errors import UsageError
    from localmoe.text.visible import visible

    names = [*(include or ()), *(exclude or ())]
    option = "--include-weights" if include else "--exclude-weights"
    if include and exclude:
        raise UsageError("not beside --exclude-weights", item=option)
    if file is None:
        if names:
            raise UsageError("of which importance matrix?", item=option, expected="--imatrix FILE")
        return None
    matrix = read_imatrix(file)
    for name in names:
        if not any(name in entry for entry in matrix.entries):
            print(f"note: {option}: the importance matrix has nothing named {visible(name)}", file=sys.stderr)
    return matrix.only(include or (), exclude or ()) if names else matrix


def type_options(
    pure: bool,
    tensor_type: Sequence[str] | None,
    tensor_type_file: Sequence[str] | None,
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    leave_output_tensor: bool,
) -> Options:
    """What the options about types say; `tensor_type` has those of the files. UsageError: no type, no expression."""
    from localmoe.converters.recipe import parse_options

    return parse_options(
        pure=pure,
        overrides=[split_override(text) for text in tensor_type or ()],
        output_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output=leave_output_tensor,
        files=[Path(file) for file in tensor_type_file or ()],
    )


def split_override(text: str, file: str | None = None) -> tuple[str, str]:
    """`RE=TYPE` in two; the last `=` counts. UsageError without one."""
    from localmoe.errors import UsageError

    expression, equals, type_name = text.rpartition("=")
    if not equals or not expression:
        raise UsageError(
            "--tensor-type-file" if file else "--tensor-type", file=file, got=repr(text), expected="RE=TYPE"
        )
    return expression, type_name
