"""Models in several files, as llama.cpp's gguf-split cuts them: where parts end, their names, their keys.

`OUT-00001-of-00003.gguf` holds all metadata; every part has `split.no`, `split.count` and `split.tensors.count`.
Source: llama.cpp's tools/gguf-split/gguf-split.cpp and src/llama-quant.cpp (keep_split).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from localmoe.errors import UsageError

from .output import padded
from .source import MetaValue

MAX_PARTS = 65535
_UNITS = {"M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Split:
    """How a file is cut: at `max_bytes` of tensors, at `max_tensors` of them, or as the source is (`keep`)."""

    max_bytes: int = 0
    max_tensors: int = 0
    keep: bool = False


def parse_split(max_size: str | None, max_tensors: int | None, *, keep: bool = False) -> Split | None:
    """What a command line asks for, None for one file; UsageError for a size that is none, or two ways at once."""
    if sum((max_size is not None, max_tensors is not None, keep)) > 1:
        raise UsageError("there is one way to split", expected="--split-max-size, --split-max-tensors or --keep-split")
    if max_size is not None:
        found = re.fullmatch(r"([1-9]\d{0,8})([MG])", max_size, re.IGNORECASE)
        if found is None:
            raise UsageError("not a size", item="--split-max-size", got=repr(max_size), expected="N(M|G), as 4G")
        return Split(max_bytes=int(found[1]) * _UNITS[found[2].upper()])
    if max_tensors is not None:
        return Split(max_tensors=max_tensors)
    return Split(keep=True) if keep else None


def cut(sizes: Sequence[int], parts: Sequence[int], split: Split | None) -> list[range]:
    """The tensors of each part, in order: `sizes` in bytes, `parts` the numbers of the source's files.

    A tensor larger than the limit is a part of its own. A source's file without tensors, as the first one may be, is
    kept as such a part.
    """
    if split is not None and split.keep:
        ends = np.searchsorted(parts, range(max(parts, default=0) + 1), side="right").tolist()
        return [range(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    starts = [0]
    size = 0
    for i, n_bytes in enumerate(sizes):
        size += padded(n_bytes)
        if i and split is not None and _ends(split, i, size):
            starts.append(i)
            size = padded(n_bytes)
    if len(starts) > MAX_PARTS:
        raise UsageError("too many parts", got=len(starts), expected=f"at most {MAX_PARTS}")
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def _ends(split: Split, i: int, size: int) -> bool:
    """Whether a part ends before tensor `i`, with which it would hold `size` bytes."""
    return i % split.max_tensors == 0 if split.max_tensors else size > split.max_bytes


def part_paths(out: Path, n: int, split: Split | None) -> list[Path]:
    """Names of `n` parts. One part has a number where a limit was given, as with gguf-split, and none otherwise."""
    if split is None or (split.keep and n == 1):
        return [out]
    stem = out.name.removesuffix(".gguf")
    return [out.with_name(f"{stem}-{i + 1:05d}-of-{n:05d}.gguf") for i in range(n)]


def part_metadata(
    metadata: Mapping[str, MetaValue], i: int, n: int, n_tensors: int, split: Split | None
) -> Mapping[str, MetaValue]:
    """The keys of part `i` of `n`, in llama.cpp's order: the model's are in the first."""
    if split is None or (split.keep and n == 1):
        return metadata
    own = {
        "split.no": MetaValue(i, GGUFValueType.UINT16),
        "split.count": MetaValue(n, GGUFValueType.UINT16),
        "split.tensors.count": MetaValue(n_tensors, GGUFValueType.INT32),
    }
    if not split.keep:  # gguf-split sets the count last, when it knows it
        own["split.count"] = own.pop("split.count")
    return own if i else {**metadata, **own}
