"""Importance matrices: how much each input column of a matrix matters, as llama.cpp's imatrix tool measures it.

The GGUF form holds, for a matrix NAME, `NAME.in_sum2` (sums of squared activations, a row an expert) and `NAME.counts`
(how many activations went into each row). The legacy .dat is a list of (name, calls, values) whose values are averages
times calls. Sources: llama.cpp's common/imatrix-loader.cpp, tools/imatrix/imatrix.cpp, tools/quantize/quantize.cpp.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import GGUFFile, map_file, open_gguf, trimmed, visible
from localmoe.output_file import Notify, check_target, replacing, unheard

from .output import TensorHeader, header_bytes, padded
from .source import MetaValue

DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_LEGACY_NAME = 4096
_MAX_COUNT = 1 << 53
_MAX_KEY_TEXT = 127  # bytes that llama-quantize keeps of a name in `quantize.imatrix.*`


@dataclass(frozen=True)
class Entry:
    """One tensor's: `sums` float32 (matrices, columns) of squared activations, `counts` int64 (matrices,)."""

    sums: np.ndarray
    counts: np.ndarray

    @property
    def unseen(self) -> list[int]:
        """The matrices (experts) that no activation reached."""
        return [int(i) for i in np.flatnonzero(self.counts <= 0)]


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix as a file holds it; `chunk_size` is in tokens, and 0 in the legacy form."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    legacy: bool = False
    label: str = ""

    def only(self, include: Sequence[str], exclude: Sequence[str]) -> Imatrix:
        """The entries whose names have one of `include` (any, without it) and none of `exclude` in them.

        UsageError: nothing is left.
        """
        kept = {
            name: entry
            for name, entry in self.entries.items()
            if (not include or any(part in name for part in include)) and not any(part in name for part in exclude)
        }
        if not kept:
            option = "--include-weights" if include else "--exclude-weights"
            raise UsageError("nothing is left of the importance matrix", file=visible(self.label), item=option)
        return replace(self, entries=kept)

    def weights(self, name: str) -> np.ndarray | None:
        """Mean squared activations, float32 (matrices, columns), or None without an entry.

        A matrix that nothing reached has weight 1 in every column, as llama-quantize has it.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        seen = entry.counts > 0
        counts = np.where(seen, entry.counts, 1).astype(np.float32)
        means = entry.sums / counts[:, None]
        return means if self.legacy else np.where(seen[:, None], means, np.float32(1))

    def quantize_keys(self) -> dict[str, MetaValue]:
        """What llama-quantize notes in the files it makes with this matrix."""
        keys = {"file": MetaValue(_cut(self.label), GGUFValueType.STRING)}
        if self.datasets:
            keys["dataset"] = MetaValue(_cut(self.datasets[0]), GGUFValueType.STRING)
        keys["entries_count"] = MetaValue(len(self.entries), GGUFValueType.UINT32)
        if self.chunk_count > 0:
            keys["chunks_count"] = MetaValue(self.chunk_count, GGUFValueType.UINT32)
        return {f"quantize.imatrix.{key}": value for key, value in keys.items()}


def _cut(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:_MAX_KEY_TEXT].decode("utf-8", "surrogateescape")


def read_imatrix(path: Path) -> Imatrix:
    """Read either form. FileError: the system refuses; BadInputError: not an importance matrix, short, not finite."""
    with map_file(path, "an importance matrix") as data:
        if data[:4] != b"GGUF":
            return _read_legacy(data, path)
    with open_gguf(path) as gguf:
        return _read_gguf(gguf, str(path))


def _error(
    path: object, item: str | None, reason: str, *, got: object = None, expected: object = None
) -> BadInputError:
    return BadInputError(
        reason, file=visible(str(path)), item=visible(item) if item else None, got=got, expected=expected
    )


def _read_gguf(gguf: GGUFFile, label: str) -> Imatrix:
    for key in (DATASETS, CHUNK_COUNT, CHUNK_SIZE):
        if key not in gguf.metadata:
            raise _error(label, key, "the key is missing", expected="an importance matrix")
    numbers = [gguf.metadata[key] for key in (CHUNK_COUNT, CHUNK_SIZE)]
    if not all(isinstance(number, int) for number in numbers):
        raise _error(label, CHUNK_COUNT, "not a count", got=visible(repr(numbers), 60))
    datasets = gguf.metadata[DATASETS]
    texts = tuple(datasets) if isinstance(datasets, list) else ()
    names = sorted({name.removesuffix(end) for name in gguf.tensors for end in (_SUMS, _COUNTS) if name.endswith(end)})
    if not names:
        raise _error(label, None, "no data", expected=f"tensors named *{_SUMS}")
    entries = {name: _gguf_entry(gguf, name, label) for name in names}
    return Imatrix(entries, texts, numbers[0], numbers[1], label=label)


def _gguf_entry(gguf: GGUFFile, name: str, label: str) -> Entry:
    arrays = []
    for end in (_SUMS, _COUNTS):
        info = gguf.tensors.get(name + end)
        if info is None:
            raise _error(label, name + end, "the tensor is missing")
        if info.type != GGMLQuantizationType.F32:
            raise _error(label, name + end, "type", got=info.type.name, expected="F32")
        arrays.append(gguf.raw(info.name).view(np.float32).copy())
    sums, counts = arrays
    _check_values(sums, name + _SUMS, label)
    _check_values(counts, name + _COUNTS, label, most=_MAX_COUNT)
    if sums.size % counts.size:
        raise _error(label, name + _COUNTS, "counts do not divide the sums", got=counts.size, expected=sums.size)
    return Entry(sums.reshape(counts.size, -1), np.rint(counts).astype(np.int64))


def _check_values(values: np.ndarray, name: str, label: str, most: float = math.inf) -> None:
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0) & (values <= most)))
    if bad.size:
        wanted = "finite, at least 0" if most == math.inf else f"0 to {most:.0f}"
        raise _error(label, name, f"value at index {bad[0]}", got=values[bad[0]], expected=wanted)


def _read_legacy(data: mmap.mmap, path: Path) -> Imatrix:
    reader = _Bytes(data, path)
    n_entries = reader.whole("the number of entries")
    if not 0 < n_entries <= len(data) // 16:
        raise _error(path, None, "not an importance matrix", got=f"{n_entries} entries in {len(data)} bytes")
    entries = dict(_legacy_entry(reader) for _ in range(n_entries))
    chunk_count, datasets = 0, []
    if reader.left():
        chunk_count = reader.whole("the number of chunks")
    if reader.left():
        text = reader.take(reader.whole("the length of the data set's name"), "the data set's name")
        datasets = [text.decode("utf-8", "surrogateescape")] if text else []
    return Imatrix(entries, tuple(datasets), chunk_count, legacy=True, label=str(path))


def _legacy_entry(reader: _Bytes) -> tuple[str, Entry]:
    length = reader.whole("the length of a name")
    if not 0 < length <= _MAX_LEGACY_NAME:
        raise _error(reader.path, None, "not an importance matrix", got=f"a name of {length} bytes")
    name = reader.take(length, "a name").decode("utf-8", "surrogateescape")
    calls, n = reader.whole("the number of calls"), reader.whole("the number of values")
    if n < 1:
        raise _error(reader.path, name, "number of values", got=n, expected="at least 1")
    values = np.frombuffer(reader.take(4 * n, f"the values of {name}"), "<f4").astype(np.float32)
    _check_values(values, name, str(reader.path))
    return name, Entry(values.reshape(1, -1), np.array([calls], np.int64))


class _Bytes:
    """A file's bytes from front to back; what is missing is named."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.path = path
        self._data = data
        self._at = 0

    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, n: int, what: str) -> bytes:
        if not 0 <= n <= self.left():
            raise _error(self.path, f"offset {self._at}", f"the file ends in {what}", got=self.left(), expected=n)
        self._at += n
        return self._data[self._at - n : self._at]

    def whole(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])


def write_imatrix(matrix: Imatrix, out: Path, notify: Notify = unheard) -> None:
    """Write the GGUF form as llama-imatrix does, tensors by name, all or nothing; `notify` as in `replacing`.

    FileError: the system cannot.
    """
    metadata = {
        "general.type": MetaValue("imatrix", GGUFValueType.STRING),
        DATASETS: MetaValue(list(matrix.datasets), GGUFValueType.ARRAY, GGUFValueType.STRING),
        CHUNK_COUNT: MetaValue(matrix.chunk_count, GGUFValueType.UINT32),
        CHUNK_SIZE: MetaValue(matrix.chunk_size, GGUFValueType.UINT32),
    }
    tensors = list(_tensors(matrix))
    headers = [TensorHeader(name, trimmed(x.shape), GGMLQuantizationType.F32, x.nbytes) for name, x in tensors]
    with replacing(check_target(out, [], file=str(out)), notify) as file:
        file.write(header_bytes(metadata, headers))
        for _, x in tensors:
            file.write(x.tobytes() + bytes(padded(x.nbytes) - x.nbytes))


def _tensors(matrix: Imatrix) -> Iterator[tuple[str, np.ndarray]]:
    for name in sorted(matrix.entries, key=str.encode):
        entry = matrix.entries[name]
        yield name + _SUMS, np.ascontiguousarray(entry.sums, np.float32)
        yield name + _COUNTS, entry.counts.astype(np.float32)[:, None]
