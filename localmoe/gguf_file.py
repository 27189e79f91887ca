"""Validated, memory-mapped reading of GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

A file is, little-endian throughout:

    magic "GGUF" | u32 version | u64 tensors | u64 keys | keys | tensor infos | padding | tensor data

Everything in it is untrusted: no allocation follows a count that the file's own size does not back, and after
`open_gguf` every tensor lies inside its file, aligned, one after the other, as ggml's own reader requires.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from localmoe.errors import BadInputError, FileError
from localmoe.gguf_cursor import Cursor, read_value, visible, what_else
from localmoe.output_file import finish_interrupted

if TYPE_CHECKING:
    from localmoe.ggml import GGMLQuantizationType, GGUFValueType

__all__ = ["GGUFFile", "TensorInfo", "map_file", "open_gguf", "visible"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_NAME = 64  # GGML_MAX_NAME: a name of 64 bytes is already too long, it ends with a NUL in C
MAX_DIMS = 4
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_SPLIT_NAME = re.compile(r"^(?P<prefix>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a tensor is and where it lies.

    `shape` is in NumPy's order (slowest axis first), `offset` counts bytes from the start of file number `part`.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int
    offset: int
    part: int

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape in GGUF's order, fastest axis first."""
        return self.shape[::-1]

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as ggml writes it: without the leading axes of one element, but for the last axis."""
    first = next((i for i, axis in enumerate(shape) if axis != 1), len(shape) - 1)
    return shape[max(first, 0) :]


@dataclass(frozen=True, slots=True)
class _Part:
    """One file of a model: its header as read, and its memory map."""

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Any]
    metadata_types: dict[str, tuple[GGUFValueType, GGUFValueType | None]]
    tensors: list[TensorInfo]
    map: mmap.mmap

    def split(self, key: str, default: int) -> int:
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadInputError("is not a whole number", file=_name(self.path), item=key, got=_shown(value))
        return value


class GGUFFile:
    """An open model: metadata as Python values, tensors as read-only views of the memory map.

    `metadata` holds Python scalars, NumPy arrays (numbers) and lists of str; the `split.*` keys of a split file are
    left out, since its parts are joined here. `tensors` keeps the files' order. `n_bytes` counts all parts.
    """

    def __init__(self, path: Path, parts: list[_Part]) -> None:
        first = parts[0]
        self.path = path
        self.parts = tuple(part.path for part in parts)
        self.version = first.version
        self.alignment = first.alignment
        self.metadata = {k: v for k, v in first.metadata.items() if k not in _SPLIT_KEYS}
        self.metadata_types = {k: t for k, t in first.metadata_types.items() if k not in _SPLIT_KEYS}
        self.tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
        self.n_bytes = sum(len(part.map) for part in parts)
        self._maps = [part.map for part in parts]

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, 1-D, read-only, in place."""
        tensor = self.tensors[name]
        return np.frombuffer(self._maps[tensor.part], np.uint8, tensor.n_bytes, tensor.offset)

    def close(self) -> None:
        """Unmap the file; views that are still held keep their part mapped until they go."""
        maps, self._maps = self._maps, []
        for part in maps:
            _unmap(part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file, or all parts of a split one given any of them.

    Raises FileError when the system refuses the file, BadInputError (naming file and key, tensor or offset) when its
    content is not a valid GGUF v2 or v3. Parts that a killed writer left complete, but without their names, get them.
    """
    asked = Path(path)
    match = _SPLIT_NAME.match(asked.name)
    if match is not None and not (first := _part_path(asked, match, 0)).exists() and first.parent.is_dir():
        finish_interrupted([_part_path(asked, match, n) for n in range(int(match["count"]))])
    opened = _open_part(asked, 0)
    parts = [opened]
    try:
        if opened.split("split.count", 1) > 1:
            parts = _open_split(opened)
        return GGUFFile(asked, parts)
    except BaseException:
        for part in parts:
            _unmap(part.map)
        raise


def _unmap(part: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):  # a view is still held: it unmaps when the last one goes
        part.close()


def _name(path: Path) -> str:
    return visible(str(path))


def _shown(value: object) -> str:
    return visible(repr(value), 60)


# --- split files -----------------------------------------------------------------------------------------------------


def _open_split(opened: _Part) -> list[_Part]:
    """All parts of the model that `opened` belongs to, in order; errors name the part that is wrong."""
    count = opened.split("split.count", 1)
    number = opened.split("split.no", -1)
    match = _SPLIT_NAME.match(opened.path.name)
    wanted = f"a name that ends in -{number + 1:05d}-of-{count:05d}.gguf"
    if match is None or int(match["count"]) != count or not 0 <= number < count:
        raise BadInputError(
            "the part's name does not fit its content",
            file=_name(opened.path),
            item="split.no",
            got=number,
            expected=wanted,
        )
    paths = [_part_path(opened.path, match, n) for n in range(count)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        listed = visible(", ".join(missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise BadInputError(
            f"parts are missing: {listed}", file=_name(opened.path), got=count - len(missing), expected=count
        )
    parts: list[_Part] = []
    try:
        for n, part_path in enumerate(paths):
            parts.append(_open_part(part_path, n))
            _check_part(parts[-1], n, parts[0])
        _check_whole(parts)
    except BaseException:
        for part in parts:
            _unmap(part.map)
        raise
    _unmap(opened.map)
    return parts


def _part_path(path: Path, match: re.Match[str], number: int) -> Path:
    """The name of part `number` of the set that `path`, which `match` is of, belongs to."""
    return path.with_name(f"{match['prefix']}-{number + 1:05d}-of-{match['count']}.gguf")


def _check_part(part: _Part, number: int, first: _Part) -> None:
    """Refuse a part that says it is another part, or whose keys say that it comes from another model."""
    stated = part.split("split.no", -1)
    if stated != number:
        raise BadInputError("parts are swapped", file=_name(part.path), item="split.no", got=stated, expected=number)
    for key in part.metadata.keys() & first.metadata.keys() - {"split.no"}:
        mine, theirs = part.metadata[key], first.metadata[key]
        if not np.array_equal(mine, theirs):
            raise BadInputError(
                "part of another model",
                file=_name(part.path),
                item=visible(key),
                got=_shown(mine),
                expected=_shown(theirs),
            )


def _check_whole(parts: list[_Part]) -> None:
    seen: dict[str, Path] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in seen:
                reason = f"part of another model: the tensor is already in {visible(seen[tensor.name].name)}"
                raise BadInputError(reason, file=_name(part.path), item=visible(tensor.name))
            seen[tensor.name] = part.path
    expected = parts[0].split("split.tensors.count", len(seen))
    if len(seen) != expected:
        raise BadInputError(
            "the parts do not hold one whole model", file=_name(parts[0].path), item="split.tensors.count",
            got=f"{len(seen)} tensors", expected=expected,
        )  # fmt: skip


# --- one file --------------------------------------------------------------------------------------------------------


def map_file(path: Path, expected: str = "a GGUF file") -> mmap.mmap:
    """Map a regular, non-empty file for reading; FileError or BadInputError say that it is none, and not `expected`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(f"cannot be opened: {reason}", file=_name(path)) from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            hint = " (localmoe convert makes one of a checkpoint)" if "GGUF" in expected else ""
            raise FileError("is a folder", file=_name(path), expected=expected + hint)
        if not stat.S_ISREG(status.st_mode):
            raise FileError("is not a regular file", file=_name(path), expected=expected)
        if status.st_size == 0:
            raise BadInputError("the file is empty", file=_name(path), expected=expected)
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FileError(f"cannot be mapped: {error.strerror}", file=_name(path)) from None
    finally:
        os.close(descriptor)


def _open_part(path: Path, number: int) -> _Part:
    data = map_file(path)
    try:
        return _read_part(Cursor(data, path), number)
    except BaseException:
        _unmap(data)
        raise


def _read_part(cursor: Cursor, number: int) -> _Part:
    version, n_tensors, n_keys = _read_header(cursor)
    metadata: dict[str, Any] = {}
    types: dict[str, tuple[GGUFValueType, GGUFValueType | None]] = {}
    for _ in range(n_keys):
        key = cursor.string("a key")
        if not key or key in metadata:
            raise cursor.error("duplicate key" if key else "empty key", key or None)
        types[key], metadata[key] = read_value(cursor, key)
    alignment = _alignment(cursor, metadata, types)
    infos = [_read_info(cursor) for _ in range(n_tensors)]
    tensors = list(_placed(cursor, infos, alignment, number))
    return _Part(cursor.path, version, alignment, metadata, types, tensors, cursor.data)


def _read_header(cursor: Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys: each plausible for the size of the file."""
    magic = cursor.data[:4]
    if magic != MAGIC:
        raise BadInputError(
            "not a GGUF file", file=_name(cursor.path), got=what_else(cursor.data), expected=repr(MAGIC)
        )
    cursor.pos = 4
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        big = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise BadInputError(f"big-endian GGUF (version {big})", file=_name(cursor.path), expected="a little-endian one")
    if version not in VERSIONS:
        raise BadInputError("GGUF version not supported", file=_name(cursor.path), got=version, expected="2 or 3")
    n_tensors = cursor.u64("the number of tensors")
    n_keys = cursor.u64("the number of keys")
    left = cursor.size - cursor.pos
    # the smallest tensor info has 32 bytes, the smallest key with its value 14
    for what, count, most in (
        ("tensors", n_tensors, min(left // 32, MAX_TENSORS)),
        ("keys", n_keys, min(left // 14, MAX_KEYS)),
    ):
        if count > most:
            raise BadInputError(
                f"number of {what} impossible for a file of {cursor.size} bytes",
                file=_name(cursor.path), item="header", got=count, expected=f"<= {most}",
            )  # fmt: skip
    return version, n_tensors, n_keys


def _alignment(cursor: Cursor, metadata: dict[str, Any], types: dict[str, tuple[GGUFValueType, Any]]) -> int:
    from localmoe.ggml import GGUFValueType

    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    if types[key][0] != GGUFValueType.UINT32:
        raise cursor.error("is of the wrong type", key, types[key][0].name, "UINT32")
    value = int(metadata[key])
    if value < 8 or value & (value - 1):
        raise cursor.error("is not a valid alignment", key, value, "a power of two >= 8")
    return value


def _read_info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, dimensions in GGUF's order, type code and offset in the data section of one tensor."""
    name = cursor.string("a tensor's name", limit=MAX_NAME - 1)
    n_dims = cursor.u32("the number of dimensions", name)
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error("number of dimensions", name, n_dims, f"1 to {MAX_DIMS}")
    dims = tuple(cursor.u64("a dimension", name) for _ in range(n_dims))
    if min(dims) < 1 or math.prod(dims) >= 1 << 63:
        raise cursor.error("impossible dimensions", name, list(dims), "1 to 2^63 - 1 elements")
    kind = cursor.u32("the type", name)
    return name, dims, kind, cursor.u64("the offset", name)


def _placed(
    cursor: Cursor, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int, part: int
) -> Iterator[TensorInfo]:
    """Check types, sizes and places: each tensor starts where the one before ends, padded to the alignment."""
    start = _padded(cursor.pos, alignment)
    expected = 0
    seen: set[str] = set()
    for name, dims, kind, offset in infos:
        if name in seen:
            raise cursor.error("duplicate tensor", name)
        seen.add(name)
        block, block_bytes, tensor_type = _type_sizes(cursor, name, kind)
        if dims[0] % block:
            raise cursor.error(
                f"a row of {tensor_type.name} is not whole blocks", name, dims[0], f"a multiple of {block}"
            )
        n_bytes = math.prod(dims) // block * block_bytes
        if offset != expected:
            raise cursor.error("the tensor's data is not where the one before ends", name, f"offset {offset}", expected)
        end = start + offset + n_bytes
        if end > cursor.size:
            reason = "the tensor reaches past the end of the file"
            raise cursor.error(reason, name, f"{cursor.size} bytes", f">= {end} (did a download break off?)")
        expected = _padded(offset + n_bytes, alignment)
        yield TensorInfo(name, dims[::-1], tensor_type, n_bytes, start + offset, part)


def _type_sizes(cursor: Cursor, name: str, kind: int) -> tuple[int, int, GGMLQuantizationType]:
    """Elements and bytes of a block of a tensor type."""
    from localmoe.ggml import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        tensor_type = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[tensor_type]
    except (ValueError, KeyError):
        raise cursor.error("unknown tensor type", name, kind) from None
    return block, block_bytes, tensor_type


def _padded(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
