"""Importance matrices added up, and the older form of their files, as llama-imatrix has both.

Source: llama.cpp's tools/imatrix/imatrix.cpp (load_imatrix, save_imatrix_legacy).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from localmoe.errors import BadInputError
from localmoe.gguf_file import visible
from localmoe.output_file import Notify, check_target, replacing, unheard

from .imatrix import Entry, Imatrix


def combine(matrices: Sequence[Imatrix], chunk_size: int) -> Imatrix:
    """The sums and counts of all, in order; what the older form counts is calls, of `chunk_size` tokens each.

    BadInputError: two that measure a tensor differ in its width or its experts.
    """
    entries: dict[str, Entry] = {}
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            added = _raw(entry, chunk_size) if matrix.legacy else entry
            entries[name] = _add(entries[name], added, name, matrix) if name in entries else added
    most = max(int(entry.counts.max(initial=0)) for entry in entries.values())
    datasets = tuple(text for matrix in matrices for text in matrix.datasets)
    return Imatrix(entries, datasets, most // chunk_size, chunk_size)


def _raw(entry: Entry, chunk_size: int) -> Entry:
    return Entry(entry.sums * np.float32(chunk_size), entry.counts * chunk_size)


def _add(a: Entry, b: Entry, name: str, matrix: Imatrix) -> Entry:
    """The sum of two; the older form, which counts once for all experts, counts for each."""
    if a.sums.size != b.sums.size or (len(a.counts) != len(b.counts) and 1 not in (len(a.counts), len(b.counts))):
        raise BadInputError(
            "an importance matrix of another model", file=matrix.label, item=visible(name),
            got=" x ".join(map(str, b.sums.shape)), expected=" x ".join(map(str, a.sums.shape)),
        )  # fmt: skip
    counts = a.counts + b.counts
    return Entry((a.sums.ravel() + b.sums.ravel()).reshape(len(counts), -1), counts)


def write_legacy(matrix: Imatrix, out: Path, notify: Notify = unheard) -> None:
    """Write the older form, all or nothing: averages times calls, without the tensors that have no data.

    FileError: the system cannot.
    """
    kept = {name: entry for name, entry in matrix.entries.items() if entry.counts.any()}
    data = bytearray(struct.pack("<i", len(kept)))
    for name in sorted(kept, key=str.encode):
        entry, encoded = kept[name], name.encode("utf-8", "surrogateescape")
        calls = -(-int(entry.counts.max()) // matrix.chunk_size)
        values = replace(matrix, legacy=False).weights(name)
        assert values is not None
        data += struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", calls, values.size)
        data += (values * np.float32(calls)).astype("<f4").tobytes()
    text = (matrix.datasets or ("",))[-1].encode("utf-8", "surrogateescape")
    data += struct.pack("<ii", matrix.chunk_count, len(text)) + text
    with replacing(check_target(out, [], file=str(out)), notify) as file:
        file.write(bytes(data))
