"""Options that `quantize`, `convert` and `franken` share, most of them about tensors' types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from localmoe.converters.recipe import Options

AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read weights from pickled files (.bin, .pt, .pth); nothing they hold is run."),
]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, without the mix's exceptions.")]
TensorType = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type", metavar="RE=TYPE", help="The type of tensors whose names match. Repeatable; first match wins."
    ),
]
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


def type_options(
    pure: bool,
    tensor_type: Sequence[str] | None,
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    leave_output_tensor: bool,
) -> Options:
    """What the options about types say. UsageError: a type or an expression that is none."""
    from localmoe.converters.recipe import parse_options

    return parse_options(
        pure=pure,
        overrides=[split_override(text) for text in tensor_type or ()],
        output_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output=leave_output_tensor,
    )


def split_override(text: str) -> tuple[str, str]:
    """`RE=TYPE` in two; the last `=` counts. UsageError without one."""
    from localmoe.errors import UsageError

    expression, equals, type_name = text.rpartition("=")
    if not equals or not expression:
        raise UsageError("--tensor-type", got=repr(text), expected="RE=TYPE")
    return expression, type_name
