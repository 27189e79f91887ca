"""Importance matrices: both forms read as libgguf reads them, written as llama-imatrix does, refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import libgguf
import numpy as np
import pytest

from localmoe.converters.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from localmoe.converters.imatrix_combine import combine, write_legacy
from localmoe.errors import BadInputError, FileError
from localmoe.gguf_file import open_gguf


def matrix() -> Imatrix:
    rng = np.random.default_rng(0)
    entries = {
        "blk.1.ffn_up_exps.weight": Entry(rng.random((4, 6), np.float32) * 9, np.array([7, 0, 1, 300])),
        "blk.0.attn_q.weight": Entry(rng.random((1, 8), np.float32), np.array([512])),
    }
    return Imatrix(entries, ("wiki.txt", "more.txt"), 5, 512)


def legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        out += np.array(values, "<f4").tobytes()
    return out + tail


def test_the_gguf_form_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path, wanted = tmp_path / "m.gguf", matrix()
    write_imatrix(wanted, path)
    got = read_imatrix(path)
    assert (got.datasets, got.chunk_count, got.chunk_size, got.legacy) == (("wiki.txt", "more.txt"), 5, 512, False)
    for name, entry in wanted.entries.items():
        np.testing.assert_array_equal(got.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(got.entries[name].counts, entry.counts)
    assert got.entries["blk.1.ffn_up_exps.weight"].unseen == [1]


def test_the_gguf_form_is_laid_out_as_llama_imatrix_does(tmp_path: Path) -> None:
    """By name; sums {columns, matrices}, counts {1, matrices}, a last axis of 1 left out, F32 (save_imatrix)."""
    write_imatrix(matrix(), tmp_path / "m.gguf")
    with open_gguf(tmp_path / "m.gguf") as gguf:
        assert gguf.metadata["general.type"] == "imatrix"
        assert [(t.name, t.dims, t.type.name) for t in gguf.tensors.values()] == [
            ("blk.0.attn_q.weight.in_sum2", (8,), "F32"), ("blk.0.attn_q.weight.counts", (1,), "F32"),
            ("blk.1.ffn_up_exps.weight.in_sum2", (6, 4), "F32"), ("blk.1.ffn_up_exps.weight.counts", (1, 4), "F32"),
        ]  # fmt: skip


def test_weights_are_libggufs(tmp_path: Path) -> None:
    """Averages, float32; an expert without data gets 1."""
    write_imatrix(matrix(), tmp_path / "m.gguf")
    (tmp_path / "m.dat").write_bytes(legacy({"a": (3, [1.0, 2.0, 0.5]), "b": (0, [4.0])}))
    for path in tmp_path.iterdir():
        wanted, got = libgguf.load_imatrix(path), read_imatrix(path)
        assert set(wanted) == set(got.entries)
        for name, values in wanted.items():
            weights = got.weights(name)
            assert weights is not None
            np.testing.assert_array_equal(weights.reshape(-1), values)
    assert (read_imatrix(tmp_path / "m.gguf").weights("blk.1.ffn_up_exps.weight")[1] == 1).all()  # type: ignore[index]
    assert got.weights("c") is None


def test_the_end_of_the_legacy_form_is_optional(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    for tail, chunks, datasets in ((b"", 0, ()), (struct.pack("<ii", 9, 3) + b"abc", 9, ("abc",))):
        path.write_bytes(legacy({"a": (1, [1.0])}, tail))
        got = read_imatrix(path)
        assert (got.chunk_count, got.datasets, got.legacy) == (chunks, datasets, True)


def test_what_llama_quantize_notes() -> None:
    """quantize.cpp: names cut to 127 bytes, counts as UINT32, no count of chunks where there is none."""
    keys = Imatrix(matrix().entries, ("d" * 200,), 5, 512, label="m.gguf").quantize_keys()
    assert {key: (entry.value, entry.type.name) for key, entry in keys.items()} == {
        "quantize.imatrix.file": ("m.gguf", "STRING"), "quantize.imatrix.dataset": ("d" * 127, "STRING"),
        "quantize.imatrix.entries_count": (2, "UINT32"), "quantize.imatrix.chunks_count": (5, "UINT32"),
    }  # fmt: skip
    assert list(Imatrix({}, label="x").quantize_keys()) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty, expected an importance matrix"),
        (b"abc", "the file ends in the number of entries"),
        (struct.pack("<i", -1), "not an importance matrix"),
        (b"nonsense, and more of it", "not an importance matrix"),
        (legacy({"a": (1, [1.0, 2.0])})[:-3], r"the file ends in the values of a, got 5, expected 8"),
        (legacy({"a": (1, [1.0, float("nan")])}), "a: value at index 1, got nan"),
        (legacy({"a": (1, [-1.0])}), "a: value at index 0, got -1.0"),
        (legacy({"a": (1, [])}, bytes(8)), "a: number of values, got 0"),
    ],
)
def test_legacy_files_that_are_none_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.dat").write_bytes(data)
    with pytest.raises(BadInputError, match=message):
        read_imatrix(tmp_path / "m.dat")


def test_gguf_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    cases = [
        (Imatrix({}, (), 1, 1), "no data"),
        (Imatrix({"a": Entry(np.full((1, 4), np.inf, np.float32), np.array([1]))}), r"a\.in_sum2: value at index 0"),
        (Imatrix({"a": Entry(np.ones((1, 4), np.float32), np.array([2**62]))}), r"a\.counts: value at index 0"),
        (Imatrix({"a": Entry(np.ones((1, 4), np.float32), np.array([1, 2, 3]))}), "counts do not divide the sums"),
    ]
    for bad, message in cases:
        write_imatrix(bad, path)
        with pytest.raises(BadInputError, match=message):
            read_imatrix(path)
    with pytest.raises(FileError, match="cannot be opened"):
        read_imatrix(tmp_path / "none")


def wide(seed: int, n: int = 2) -> dict[str, Entry]:
    random = np.random.RandomState(seed)
    return {
        "blk.0.ffn_up_exps.weight": Entry(random.random_sample((n, 4)).astype(np.float32), random.randint(1, 99, n)),
        "blk.0.attn_q.weight": Entry(random.random_sample((1, 3)).astype(np.float32), np.array([99])),
        f"blk.{seed}.attn_k.weight": Entry(random.random_sample((1, 3)).astype(np.float32), np.array([0])),
    }


def test_matrices_add_up_and_keep_what_only_one_has() -> None:
    a, b = Imatrix(wide(1), ("a.txt",), 3, 32), Imatrix(wide(2), ("b.txt",), 3, 32)
    both = combine([a, b], 32)
    assert (both.datasets, both.chunk_count, both.chunk_size) == (("a.txt", "b.txt"), 198 // 32, 32)
    assert sorted(both.entries) == sorted(a.entries | b.entries)
    for name, entry in both.entries.items():
        parts = [m.entries[name] for m in (a, b) if name in m.entries]
        np.testing.assert_array_equal(entry.counts, sum(part.counts for part in parts))
        np.testing.assert_array_equal(entry.sums, sum(part.sums for part in parts))
    with pytest.raises(BadInputError, match=r"another model, got 3 x 4, expected 2 x 4"):
        combine([a, Imatrix(wide(1, 3), label="c")], 32)


def test_the_older_form_counts_calls_of_a_chunk_each_for_all_experts(tmp_path: Path) -> None:
    """As llama-imatrix: `ceil(most / chunk)` calls, nothing of a tensor without data, the last text's name."""
    a = Imatrix(wide(1), ("a.txt", "b.txt"), 4, 32)
    write_legacy(a, tmp_path / "a.dat")
    back = read_imatrix(tmp_path / "a.dat")
    assert (back.legacy, back.datasets, back.chunk_count) == (True, ("b.txt",), 4)
    assert sorted(back.entries) == ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]
    for name, entry in back.entries.items():
        counts = a.entries[name].counts
        assert entry.counts.tolist() == [-(-int(counts.max()) // 32)]
        np.testing.assert_allclose(back.weights(name).ravel(), a.weights(name).ravel(), rtol=1e-6)  # type: ignore[union-attr]
    both = combine([a, back], 32)
    up = both.entries["blk.0.ffn_up_exps.weight"]
    calls = back.entries["blk.0.ffn_up_exps.weight"].counts[0]
    np.testing.assert_array_equal(up.counts, a.entries["blk.0.ffn_up_exps.weight"].counts + 32 * calls)
    assert up.sums.shape == (2, 4)
