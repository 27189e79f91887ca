"""The bytes of a GGUF before its tensors' data, and room for all of it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian, alignment 32.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from localmoe.errors import FileError

from .source import MetaValue

ALIGNMENT = 32
_SCALARS: Mapping[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<B", GGUFValueType.INT8: "<b", GGUFValueType.UINT16: "<H", GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i", GGUFValueType.FLOAT32: "<f", GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q", GGUFValueType.FLOAT64: "<d", GGUFValueType.BOOL: "<?",
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as the header lists it; `shape` in NumPy order, `n_bytes` without padding."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int


def padded(n: int) -> int:
    """n rounded up to the alignment."""
    return -(-n // ALIGNMENT) * ALIGNMENT


def header_bytes(metadata: Mapping[str, MetaValue], tensors: Sequence[TensorHeader]) -> bytes:
    """Everything before the first tensor's data, padding included."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, entry in metadata.items():
        out += _string(key) + struct.pack("<I", entry.type)
        out += _array(entry) if entry.type == GGUFValueType.ARRAY else _value(entry.value, entry.type)
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        out += _string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", tensor.type, offset)
        offset += padded(tensor.n_bytes)
    return bytes(out.ljust(padded(len(out)), b"\0"))


def _string(text: str) -> bytes:
    # a reader may have kept bytes that are not UTF-8 as surrogates
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any, type_: GGUFValueType) -> bytes:
    return _string(value) if type_ == GGUFValueType.STRING else struct.pack(_SCALARS[type_], value)


def _array(entry: MetaValue) -> bytes:
    assert entry.element is not None
    head = struct.pack("<IQ", entry.element, len(entry.value))
    if entry.element in _SCALARS:
        kind = _SCALARS[entry.element]
        return head + np.asarray(entry.value).astype(np.dtype(kind), copy=False).tobytes()
    return head + b"".join(_value(item, entry.element) for item in entry.value)


def check_space(target: Path, n_bytes: int) -> None:
    """FileError if the file system cannot hold `n_bytes` more."""
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise FileError(
            "not enough space on the disk", file=target, got=f"{free} bytes free", expected=f"{n_bytes} bytes"
        )
