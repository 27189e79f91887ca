"""A GGUF file, single or split, as a model to be written: tensors are read from its memory map."""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.errors import BadInputError
from localmoe.gguf_file import GGUFFile, TensorInfo, visible
from localmoe.model.architectures import ARCHITECTURES
from localmoe.model.config import ModelConfig
from localmoe.model.legacy_experts import expert_name, stacked_name
from localmoe.model.weights import decodable_types, tensor_problems
from localmoe.quants.formats import stored_format

from .edits import override
from .source import MetaValue, Piece, SourceModel, SourceTensor, row_runs

_PIECE_BYTES = 16 << 20  # small enough that two threads end together, large enough to hide Python
_HELD_PIECES = 20  # more than any number of threads works on at once
_Held = deque[tuple[mmap.mmap, int, int]]
_VIEWS = {Type.F32: np.float32, Type.F16: np.float16, Type.BF16: np.uint16}


def gguf_source(
    gguf: GGUFFile, *, keep_split: bool = False, to_run: bool = False, user_keys: Mapping[str, MetaValue] | None = None
) -> SourceModel:
    """Describe an open file, which must stay open until the model is written; `keep_split` keeps tensors in its order.

    `user_keys` are set in the open file's metadata first (see `edits.override`).

    BadInputError: a key or tensor that its architecture needs is missing or wrong, as far as localmoe knows the
    architecture. With `to_run` also what localmoe could not compute with, as biases; without it such a model is
    rewritten for the programs that can.
    """
    override(gguf, user_keys or {})
    label = visible(str(gguf.path))
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise BadInputError("the key is missing", file=label, item="general.architecture")
    if arch in ARCHITECTURES:
        config = ModelConfig.from_metadata(gguf, to_run=to_run)
        for problem in tensor_problems(gguf, config, decodable_types() if to_run else None):
            raise problem
    held: _Held = deque()
    metadata = {key: MetaValue(value, *gguf.metadata_types[key]) for key, value in gguf.metadata.items()}
    return SourceModel(
        metadata=metadata,
        tensors=list(_tensors(gguf, label, held)),
        n_expert=_whole(gguf, f"{arch}.expert_count", label, 0),
        n_layer=_whole(gguf, f"{arch}.block_count", label, None),
        label=label,
        origin="gguf",
        files=gguf.parts,
        keep_order=keep_split,
        user_keys=user_keys or {},
    )


def _whole(gguf: GGUFFile, key: str, label: str, default: int | None) -> int:
    value = gguf.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        got = "nothing" if value is None else visible(repr(value), 60)
        raise BadInputError("not a count", file=label, item=visible(key), got=got, expected="a whole number")
    return value


def _tensors(gguf: GGUFFile, label: str, held: _Held) -> Iterator[SourceTensor]:
    """All tensors in the file's order; experts that it keeps apart come as one stack where the first of them is."""
    single: dict[str, list[SourceTensor]] = {}
    order: list[SourceTensor | str] = []
    for info in gguf.tensors.values():
        tensor, stack = _tensor(gguf, info, held), stacked_name(info.name)
        if stack is None:
            order.append(tensor)
        elif stack in single:
            single[stack].append(tensor)
        else:
            single[stack] = [tensor]
            order.append(stack)
    for entry in order:
        yield _stack(entry, single[entry], label) if isinstance(entry, str) else entry


def _stack(name: str, experts: list[SourceTensor], label: str) -> SourceTensor:
    """Tensors of one expert each, by number, as one."""
    by_name = {tensor.name: tensor for tensor in experts}
    ordered = [by_name.get(expert_name(name, e)) for e in range(len(experts))]
    first = experts[0]
    for tensor in ordered:
        if tensor is None or (tensor.shape, tensor.type) != (first.shape, first.type):
            raise BadInputError("its experts are not all there and alike", file=label, item=visible(name))
    pieces = [piece for tensor in ordered if tensor is not None for piece in tensor.pieces]
    return SourceTensor(name, (len(experts), *first.shape), first.type, pieces, first.part)


def _tensor(gguf: GGUFFile, info: TensorInfo, held: _Held) -> SourceTensor:
    row_bytes = stored_format(info.type).row_bytes(info.shape[-1])
    matrices, rows = (info.shape[0], info.shape[1:-1]) if len(info.shape) > 2 else (1, info.shape[:-1])
    per_matrix = math.prod(rows)
    pieces: list[Piece] = []
    for matrix in range(matrices):
        first = matrix * per_matrix
        pieces += [
            partial(_read, gguf, info, held, row_bytes, first + start, first + stop)
            for start, stop in row_runs(per_matrix, row_bytes, _PIECE_BYTES)
        ]
    return SourceTensor(info.name, info.shape, info.type, pieces, info.part)


def _read(gguf: GGUFFile, info: TensorInfo, held: _Held, row_bytes: int, start: int, stop: int) -> np.ndarray:
    """Rows start .. stop - 1, in place, their pages in memory. Those of pieces read long before are given back."""
    raw = gguf.raw(info.name)
    pages = getattr(raw.base, "obj", None)  # the map that NumPy's memoryview is of
    if isinstance(pages, mmap.mmap):
        held.append((pages, info.offset + start * row_bytes, info.offset + stop * row_bytes))
    while len(held) > _HELD_PIECES:
        _give_back(*held.popleft())
    taken = raw[start * row_bytes : stop * row_bytes]
    taken[:: mmap.PAGESIZE].max(initial=0)  # here, and not where they are encoded, is the disk waited for
    rows = taken.reshape(stop - start, row_bytes)
    return rows.view(_VIEWS[info.type]) if info.type in _VIEWS else rows


def _give_back(pages: mmap.mmap, start: int, stop: int) -> None:
    """Let go of the whole pages within a range of a read-only map: they come back from the file if they are read."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED, first, last - first)
