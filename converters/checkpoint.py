"""Hugging Face checkpoint folders: JSON files and memory-mapped safetensors, every byte of them distrusted.

The safetensors format is one little-endian u64 (the header's length), a JSON header that gives each tensor's `dtype`,
`shape` and `data_offsets` (relative to the end of the header), and the data, which the tensors must cover without
holes or overlaps: https://huggingface.co/docs/safetensors#format.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from localmoe.errors import BadInputError, FileError

MAX_HEADER_BYTES = 5_000_000  # some 37,000 tensors in one file; what the library allows, 100 MB, takes 30 s to parse
# The largest tokenizer.json in use is about 35 MB, the largest index below 5 MB. What is refused is refused soon.
_SPM_NAMES = tuple("tokenizer.model" + version for version in ("", ".v1", ".v2", ".v3"))
MAX_TEXT_BYTES = dict.fromkeys(("tokenizer.json", "tekken.json", *_SPM_NAMES), 38_000_000)
MAX_OTHER_TEXT_BYTES = 10_000_000
# Values and tables of a JSON text, by its commas and brackets: `{},` takes 3 bytes there and 72 in memory. 300,000 are
# an index of 290,000 tensors or a header of 37,000; the largest tokenizer.json in use has some 2,100,000.
MAX_ITEMS = dict.fromkeys(("tokenizer.json", "tekken.json"), 2_500_000)
MAX_OTHER_ITEMS = 300_000

SHARD_NAME = re.compile(r".*-(\d{5})-of-(\d{5})\.[a-z]+")
_MISTRALS_NAME = re.compile(r"consolidated\.(\d{2})\.[a-z]+")

# The dtypes that are read, and how; BF16 is kept as its 16 bits, F64 becomes F32.
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}
# Bytes an element of every dtype that a file may hold.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint: `array` is a read-only view of `mapped`, uint16 for BF16; may be unaligned."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    array: np.ndarray[Any, np.dtype[Any]] | None
    mapped: mmap.mmap

    def data(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The values in `shape`; BadInputError where the dtype is one this project does not read."""
        if self.array is None:
            raise BadInputError(
                "FP8 weights are not read" if self.dtype.startswith("F8_") else "dtype is not read",
                file=self.file,
                item=self.name,
                got=self.dtype,
                expected=", ".join(DTYPES),
            )
        return self.array

    def release(self, view: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Give back the pages between the first and the last byte of `view`, a part of `array`.

        They stay readable, from disk. A conversion that reads every tensor once would otherwise end with the whole
        checkpoint resident.
        """
        start = np.frombuffer(self.mapped, np.uint8).ctypes.data
        begin, end = (at - start for at in np.lib.array_utils.byte_bounds(view))
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` of a checkpoint folder, or None when it does not exist.

    A name that leaves the folder, by `..`, an absolute path or a link, raises BadInputError and is never opened. The
    one link that may leave is the Hugging Face cache's own: `snapshots/<revision>/x` -> `../../blobs/<hash>`.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise BadInputError("names a file with half a surrogate pair", file=folder, item=ascii(name)) from None
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts or ":" in name:
        raise BadInputError("names a file outside the checkpoint folder", file=folder, item=repr(name))
    root = folder.resolve()
    try:
        real = (root / pure).resolve()
        mode = os.stat(root / pure).st_mode
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise FileError(f"cannot be opened: {error}", file=folder / name) from error
    in_cache = root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs"
    if not real.is_relative_to(root) and not in_cache:
        raise BadInputError("is a link out of the checkpoint folder", file=folder / name, got=real)
    if not stat.S_ISREG(mode):
        raise BadInputError("is not a regular file", file=folder / name)
    return real


def read_text(folder: Path, name: str) -> str | None:
    """A UTF-8 text file of the folder with "\\n" at the ends of lines, or None when it does not exist."""
    path = find_file(folder, name)
    if path is None:
        return None
    try:
        text = read_bounded(path, folder / name).decode("utf-8")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise BadInputError("is not UTF-8", file=folder / name, item=f"byte {error.start}") from error
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=folder / name) from error


def read_bounded(path: Path, shown: Path) -> bytes:
    """The file's bytes; BadInputError where there are more than a file of its name needs."""
    size, most = path.stat().st_size, MAX_TEXT_BYTES.get(shown.name, MAX_OTHER_TEXT_BYTES)
    if size > most:
        raise BadInputError("file is too large", file=shown, got=f"{size} bytes", expected=f"at most {most}")
    return path.read_bytes()


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object of the folder, or None when the file does not exist; duplicate keys are refused."""
    text = read_text(folder, name)
    return None if text is None else parse_json(text, folder / name)


def parse_json(text: str, file: Path) -> dict[str, Any]:
    """The JSON object in `text`; BadInputError for anything else, and for keys that appear twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BadInputError("JSON key appears twice", file=file, item=repr(double))
        return table

    items, most = sum(map(text.count, ",[{")), MAX_ITEMS.get(file.name, MAX_OTHER_ITEMS)
    if items > most:
        raise BadInputError("JSON holds too many values", file=file, got=items, expected=f"at most {most}")
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"is not valid JSON: {error}", file=file) from error
    if not isinstance(value, dict):
        raise BadInputError("is not a JSON object", file=file, got=type(value).__name__)
    return value


def read_safetensors(path: Path, shown: Path) -> dict[str, CheckpointTensor]:
    """Map one safetensors file: name -> tensor, sorted by name as the safetensors library lists them.

    `shown` is the path that errors name. Raises BadInputError for anything the format does not allow.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            n_header = int.from_bytes(file.read(8), "little")
            if size < 8:
                raise BadInputError("safetensors file is too short", file=shown, got=f"{size} bytes", expected=8)
            if n_header > MAX_HEADER_BYTES:
                raise BadInputError(
                    "safetensors header is too large", file=shown, got=n_header, expected=f"at most {MAX_HEADER_BYTES}"
                )
            if n_header > size - 8:
                raise BadInputError(
                    "safetensors file ends within its header", file=shown, got=size, expected=n_header + 8
                )
            raw = file.read(n_header)
            # An empty data section cannot be mapped past the header, so the map always starts at 0.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=shown) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError("safetensors header is not UTF-8", file=shown, item=f"byte {8 + error.start}") from error
    header = parse_json(text, shown)
    header.pop("__metadata__", None)
    ranges = {name: _entry_range(name, entry, shown) for name, entry in header.items()}
    _check_coverage(ranges, size - 8 - n_header, shown)
    return {
        name: _map_tensor(name, header[name], ranges[name][0] + 8 + n_header, mapped, shown) for name in sorted(header)
    }


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry_range(name: str, entry: object, file: Path) -> tuple[int, int]:
    """The (begin, end) of a header entry whose dtype, shape and byte count agree."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadInputError("header entry needs exactly dtype, shape and data_offsets", file=file, item=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise BadInputError("unknown dtype", file=file, item=name, got=repr(dtype))
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        raise BadInputError("shape is not a list of sizes", file=file, item=name, got=shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise BadInputError("data_offsets are not two sizes", file=file, item=name, got=offsets)
    begin, end = offsets
    needed = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != needed:
        raise BadInputError(
            f"data_offsets do not fit {dtype} {shape}",
            file=file,
            item=name,
            got=f"{end - begin} bytes",
            expected=needed,
        )
    return begin, end


def _check_coverage(ranges: Mapping[str, tuple[int, int]], n_data: int, file: Path) -> None:
    """Raise unless the ranges cover 0 .. n_data exactly once."""
    at = 0
    for name, (begin, end) in sorted(ranges.items(), key=lambda item: item[1]):
        if begin != at:
            problem = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise BadInputError(f"data {problem}", file=file, item=name, got=f"offset {begin}", expected=at)
        at = end
    if at > n_data:
        last = max(ranges, key=lambda name: ranges[name])
        raise BadInputError(
            "safetensors file is truncated", file=file, item=last, got=f"{n_data} bytes of data", expected=at
        )
    if at < n_data:
        raise BadInputError("bytes after the last tensor", file=file, got=f"{n_data} bytes of data", expected=at)


def _map_tensor(name: str, entry: dict[str, Any], offset: int, mapped: mmap.mmap, file: Path) -> CheckpointTensor:
    dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
    kind = DTYPES.get(dtype)
    array = None
    if kind is not None:
        array = np.frombuffer(mapped, dtype=kind, count=math.prod(shape), offset=offset).reshape(shape)
    return CheckpointTensor(name, dtype, shape, file, array, mapped)


@dataclass(frozen=True)
class Files:
    """One kind of weights a folder may hold: its index, how its files' names begin and end, and what reads one."""

    index: str
    prefix: str
    suffix: str
    read: Callable[[Path, Path], dict[str, CheckpointTensor]]

    def has(self, name: str) -> bool:
        """Whether a file of this name is one."""
        return name.startswith(self.prefix) and name.endswith(self.suffix)


SAFETENSORS = Files("model.safetensors.index.json", "model", ".safetensors", read_safetensors)


def open_checkpoint(folder: Path, kind: Files = SAFETENSORS) -> dict[str, CheckpointTensor]:
    """Every tensor of a checkpoint folder, shard by shard in the order of their names, by name within a shard.

    Shards are those of the index, else every file of the kind.
    """
    index = read_json(folder, kind.index)
    if index is not None:
        return _open_indexed(folder, index, kind)
    try:
        names = sorted(filter(kind.has, os.listdir(folder)))
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=folder) from error
    if not names:
        raise BadInputError(f"no {kind.prefix}*{kind.suffix} in the folder", file=folder)
    check_numbering(folder, names)
    tensors: dict[str, CheckpointTensor] = {}
    for _, tensor in _shards(folder, names, kind):
        first = tensors.setdefault(tensor.name, tensor)
        if first is not tensor:
            raise BadInputError("tensor appears in two shards", file=tensor.file, item=tensor.name, got=first.file.name)
    return tensors


def _open_indexed(folder: Path, index: dict[str, Any], kind: Files) -> dict[str, CheckpointTensor]:
    file = folder / kind.index
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadInputError("weight_map is not a table of tensor names to file names", file=file)
    tensors: dict[str, CheckpointTensor] = {}
    extra: list[str] = []
    for shard, tensor in _shards(folder, sorted(set(weight_map.values())), kind):
        if weight_map.get(tensor.name) == shard:
            tensors[tensor.name] = tensor
        else:
            extra.append(tensor.name)
    missing = [name for name in weight_map if name not in tensors]
    double = next((name for name in extra if name in tensors), None)
    if double is not None:
        got = f"{weight_map[double]} and another"
        raise BadInputError("tensor appears in two shards", file=file, item=double, got=got)
    if missing:
        raise BadInputError("tensors are not in the shards that the index names", file=file, item=listing(missing))
    if extra:
        raise BadInputError("shards hold tensors that the index does not name", file=file, item=listing(extra))
    return tensors


def _shards(folder: Path, names: list[str], kind: Files) -> Iterator[tuple[str, CheckpointTensor]]:
    """(shard, tensor) for all tensors of each shard in turn, after checking that every shard exists."""
    paths = {name: find_file(folder, name) for name in names}
    absent = [name for name, path in paths.items() if path is None]
    if absent:
        raise BadInputError("shards are missing", file=folder, item=listing(absent))
    for name, path in paths.items():
        assert path is not None
        for tensor in kind.read(path, folder / name).values():
            yield name, tensor


def check_numbering(folder: Path, names: list[str]) -> None:
    """Raise when files named `model-00001-of-00003` lack some of their numbers, or `consolidated.02.pth` one before."""
    for name in names:
        if found := SHARD_NAME.fullmatch(name):
            numbers = range(1, int(found[2]) + 1)
        elif found := _MISTRALS_NAME.fullmatch(name):
            numbers = range(int(found[1]))
        else:
            continue
        digits = len(found[1])
        wanted = (f"{name[: found.start(1)]}{i:0{digits}d}{name[found.end(1) :]}" for i in numbers)
        absent = [shard for shard in wanted if shard not in names]
        if absent:
            raise BadInputError("shards are missing", file=folder, item=listing(absent))


def listing(names: Iterable[str], limit: int = 20) -> str:
    """`a, b and 7 more`."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
