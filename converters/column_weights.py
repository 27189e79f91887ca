"""An importance matrix for one model: the weights of each tensor's columns, checked against what is to be written.

Source: llama.cpp's src/llama-quant.cpp (tensor_requires_imatrix, and llama_model_quantize_impl where it looks up data).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import visible
from localmoe.quants.encode import NEED_IMPORTANCES

from .imatrix import Imatrix
from .mixes import NEED_IMATRIX
from .recipe import COPY, Choice, category, find_recipe, may_quantize

Weights = Mapping[str, np.ndarray]
_UNMEASURED = ("token_embd", "output")  # llama-imatrix has no data for them, and no type needs any


def column_weights(matrix: Imatrix | None, choices: Sequence[Choice], file_type: str, label: str) -> Weights:
    """Weights by tensor, float32 (matrices, columns), for tensors that change their type and that `matrix` holds.

    BadInputError: a width or a number of experts is another than the model's, nothing in it is of this model, or a
    tensor is missing that its type needs.
    """
    if matrix is None:
        return {}
    needed = _needed_by(file_type)
    if not any(choice.tensor.imatrix_name in matrix.entries for choice in choices):
        raise BadInputError(
            "an importance matrix of another model: it has none of this model's tensors",
            file=matrix.label, got=visible(next(iter(matrix.entries))), expected=f"tensors of {visible(label)}",
        )  # fmt: skip
    found = {}
    for choice in _changing(choices):
        weights = _weights(matrix, choice)
        if weights is not None:
            found[choice.tensor.name] = weights
        elif _needs(choice, needed):
            raise BadInputError(
                f"the importance matrix has no such tensor, which {choice.type.name} in {file_type} needs",
                file=matrix.label, item=visible(choice.tensor.name),
            )  # fmt: skip
    return found


def notices(matrix: Imatrix | None, choices: Sequence[Choice], weights: Weights) -> Iterator[str]:
    """What to announce: tensors that are encoded without weights, and experts that no activation reached."""
    if matrix is None:
        return
    tensors = [one.tensor for one in _changing(choices) if category(one.tensor.name) not in _UNMEASURED]
    names = [tensor.name for tensor in tensors]
    missing = [name for name in names if name not in weights]
    if missing:
        yield f"no importances for {len(missing)} of {len(names)} tensors, the first of them {missing[0]}"
    for tensor in tensors:
        measured = tensor.name in weights and not matrix.legacy
        unseen = matrix.entries[tensor.imatrix_name].unseen if measured else []
        if unseen:
            experts = ", ".join(map(str, unseen))
            yield f"{tensor.name}: no importances for experts {experts}: all their columns weigh the same"


def matrices(shape: Sequence[int]) -> int:
    """How many matrices a tensor is: the experts of a stack, else 1."""
    return math.prod(shape[:-2])


def _changing(choices: Sequence[Choice]) -> Iterator[Choice]:
    return (choice for choice in choices if choice.type != choice.tensor.type and may_quantize(choice.tensor))


def _needs(choice: Choice, needed: Type | None) -> bool:
    """Whether the tensor may not be written without importances: by llama-quantize's rules, or at all."""
    if choice.type in NEED_IMPORTANCES:
        return True
    low = choice.type == needed or choice.type in NEED_IMATRIX
    return low and category(choice.tensor.name) not in _UNMEASURED


def lacks_matrix(choices: Sequence[Choice], file_type: str, label: str) -> UsageError | None:
    """What there is to say of writing `file_type` without an importance matrix, None where none is needed."""
    needed = _needed_by(file_type)
    for choice in _changing(choices):
        if _needs(choice, needed):
            return UsageError(
                f"{choice.type.name} in {file_type} needs an importance matrix: --imatrix FILE", file=label,
                item=visible(choice.tensor.name),
            )  # fmt: skip
    return None


def _needed_by(file_type: str) -> Type | None:
    return None if file_type == COPY else find_recipe(file_type).needs_imatrix


def _weights(matrix: Imatrix, choice: Choice) -> np.ndarray | None:
    tensor = choice.tensor
    weights = matrix.weights(tensor.imatrix_name)
    if weights is None:
        return None
    shape = (matrices(tensor.shape), tensor.n_columns)
    if weights.size == math.prod(shape):
        return np.ascontiguousarray(weights, np.float32).reshape(shape)
    if category(tensor.name) == "token_embd":
        return None
    raise BadInputError(
        "an importance matrix of another model", file=matrix.label, item=visible(tensor.name),
        got=f"{weights.size} values", expected=f"{shape[0]} x {shape[1]}",
    )  # fmt: skip
