"""A model that is about to be written: metadata and tensors whose rows are read only when they are needed.

Checkpoints, merge recipes and GGUF files are each turned into a `SourceModel`; `pipeline.write_model` writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

PIECE_BYTES = 64 << 20

# Reads a run of consecutive rows (leading axes flattened) as a 2-D array (rows, columns) in the stored type:
# float32, float16, uint16 holding bfloat16, or uint8 (rows, row bytes) for quantized types. A 1-D tensor is one row.
Piece = Callable[[], np.ndarray]


class MetaValue(NamedTuple):
    """A metadata value as GGUF stores it: Python scalar, str, list or 1-D array; its type; an array's element type."""

    value: Any
    type: GGUFValueType
    element: GGUFValueType | None = None


@dataclass(frozen=True)
class SourceTensor:
    """One tensor under its GGUF name: shape in NumPy order (slowest axis first) and the pieces that cover it in order.

    An expert stack has at least one piece an expert; no piece holds more than about `PIECE_BYTES`. `part` is the number
    of the source's file that holds it, where that is split. `measured_as` is its name in an importance matrix, where
    that is another.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    pieces: Sequence[Piece]
    part: int = 0
    measured_as: str = ""

    @property
    def n_columns(self) -> int:
        """Elements in a row: the fastest axis."""
        return self.shape[-1]

    @property
    def imatrix_name(self) -> str:
        """Its name in an importance matrix."""
        return self.measured_as or self.name

    @property
    def n_rows(self) -> int:
        """Rows in the tensor, its leading axes flattened: 1 for a vector."""
        rows = 1
        for axis in self.shape[:-1]:
            rows *= axis
        return rows


@dataclass(frozen=True)
class SourceModel:
    """Everything that goes into the file, in the order in which llama.cpp's converter would write it.

    `metadata` need not hold `general.file_type` and `general.quantization_version`: the writer sets them. `label` is
    the path that errors name. `origin` says which of llama.cpp's programs the result must equal: from a "checkpoint"
    the converter (tensors that are never quantized become F32, and F32, F16, BF16 and Q8_0 keep this order), from a
    "gguf" llama-quantize (those tensors keep their type, and the order is by layer, then by name). `files` are the
    files that pieces read, none of which may be written over. `keep_order` keeps tensors in this order in any case.
    `user_keys` are keys that a user set, which come behind the file type, and `last_keys` come last.
    """

    metadata: dict[str, MetaValue]
    tensors: list[SourceTensor]
    n_expert: int
    n_layer: int
    label: str
    origin: Literal["checkpoint", "gguf"] = "checkpoint"
    files: tuple[Path, ...] = ()
    keep_order: bool = False
    user_keys: Mapping[str, MetaValue] = field(default_factory=dict)
    last_keys: Mapping[str, MetaValue] = field(default_factory=dict)


def row_runs(n_rows: int, row_bytes: int, limit: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """Cut `n_rows` rows of `row_bytes` into runs (start, stop) of at most `limit` bytes, at least one row each."""
    step = max(1, limit // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield start, min(n_rows, start + step)
