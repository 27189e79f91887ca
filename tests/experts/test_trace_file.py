"""Recordings as files: they come back as they were, and nothing else that says it is one is believed."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.errors import BadInputError, FileError, UsageError
from localmoe.experts.export import export_recording
from localmoe.experts.trace_file import Outline, load_recording, outline, save_recording
from tests.experts.recordings import recording

MADE = recording(
    [[[0, 1], [2, -1]], [[3, 0], [1, 2]]],
    pieces=("a\x1b[31m", "é\n"),
    phase=np.array([0, 1], np.int8),
    router=np.full((2, 2, 4), 0.25, np.float16),
    labels=("one", "two", "", "four"),
)


def test_a_recording_comes_back_as_it_was(tmp_path: Path) -> None:
    save_recording(MADE, tmp_path / "t.npz")
    back = load_recording(tmp_path / "t.npz")
    for name in ("tokens", "phase", "starts", "n_used", "experts", "weights", "router", "expert_bytes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(MADE, name))
    for name in ("pieces", "labels", "model", "settings", "n_expert"):
        assert getattr(back, name) == getattr(MADE, name)
    save_recording(recording([[[0, 1]]]), tmp_path / "t.npz")
    assert load_recording(tmp_path / "t.npz").router is None


def test_an_outline_is_what_the_headers_say(tmp_path: Path) -> None:
    save_recording(MADE, tmp_path / "t.npz")
    assert outline(tmp_path / "t.npz") == Outline(2, 2, 4, "m.gguf")
    (tmp_path / "x.npz").write_bytes(b"PK garbage")
    with pytest.raises(BadInputError, match="no trace of localmoe"):
        outline(tmp_path / "x.npz")


def test_numpy_reads_the_file_without_pickle(tmp_path: Path) -> None:
    save_recording(MADE, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["experts"], MADE.experts)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), **options)
    return out.getvalue()


def meta(**changed: Any) -> bytes:
    fields = {"format": 2, "model": "m", "settings": "", "labels": [], "n_expert": 4, **changed}
    return packed(np.frombuffer(json.dumps(fields).encode(), np.uint8))


BAD: dict[str, tuple[str, bytes | None, str]] = {
    "an expert out of range": ("experts", packed(np.full((2, 2, 2), 4, np.int32)), "experts: a value is out of range"),
    "an expert of -2": ("experts", packed(np.full((2, 2, 2), -2, np.int32)), "experts: a value is out of range"),
    "a weight of NaN": ("weights", packed(np.full((2, 2, 2), np.nan, np.float32)), "weights: a value"),
    "another shape": ("weights", packed(np.zeros((2, 2, 1), np.float32)), "weights: wrong shape"),
    "another type": ("weights", packed(np.zeros((2, 2, 2), np.float64)), "weights: wrong type"),
    "a phase of 2": ("phase", packed(np.full(2, 2, np.int8)), "phase: a value"),
    "ends out of order": ("text_ends", packed(np.array([9, 8], np.int64)), "text_ends: ends of texts"),
    "ends before the text's": ("text_ends", packed(np.array([1, 2], np.int64)), "text_ends: ends of texts"),
    "a missing member": ("tokens", None, "tokens: no trace of localmoe"),
    "no JSON": ("meta", packed(np.zeros(4, np.uint8)), "meta: damaged"),
    "a later format": ("meta", meta(format=3), "meta: unknown format"),
    "too few labels": ("meta", meta(labels=["a"]), "meta: labels"),
    "no experts": ("meta", meta(n_expert=0), "meta: impossible"),
    "objects": ("tokens", packed(np.array([{}, {}], object), allow_pickle=True), "tokens"),
    "a stranger": ("stranger", packed(np.zeros(2)), "stranger.npy: unexpected member"),
    "an array longer than its data": (
        "experts",
        packed(np.zeros((2, 2, 2), np.int32)).replace(b"(2, 2, 2)", b"(9, 2, 2)"),
        "experts: the array is",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_recording_is_refused_and_named(tmp_path: Path, name: str) -> None:
    save_recording(MADE, tmp_path / "t.npz")
    member, data, said = BAD[name]
    parts = members(tmp_path / "t.npz")
    parts.pop(f"{member}.npy", None)
    if data is not None:
        parts[f"{member}.npy"] = data
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    with pytest.raises(BadInputError, match=said):
        load_recording(tmp_path / "bad.npz")


def test_another_format_is_named_before_its_arrays_are_looked_at(tmp_path: Path) -> None:
    save_recording(MADE, tmp_path / "t.npz")
    parts = members(tmp_path / "t.npz")
    parts.update({"meta.npy": meta(format=1), "n_used.npy": packed(np.zeros(2, np.int32))})
    with zipfile.ZipFile(tmp_path / "old.npz", "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    with pytest.raises(BadInputError, match="meta: unknown format, got 1, expected 2"):
        load_recording(tmp_path / "old.npz")


@pytest.mark.parametrize("keep", [0, 10, 100, -30])
def test_cut_files_are_refused(tmp_path: Path, keep: int) -> None:
    save_recording(MADE, tmp_path / "t.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "t.npz").read_bytes()[:keep])
    with pytest.raises(BadInputError, match="no trace"):
        load_recording(tmp_path / "cut.npz")


def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    """One byte flipped in many places, one after another: never anything but an error of ours, or a recording."""
    save_recording(MADE, tmp_path / "t.npz")
    whole = (tmp_path / "t.npz").read_bytes()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            load_recording(tmp_path / "bad.npz")
        except BadInputError:
            continue


def test_a_missing_file_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        load_recording(tmp_path / "none.npz")


def test_csv_and_json_lines(tmp_path: Path) -> None:
    export_recording(MADE, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "token,layer,slot,expert,weight",
        "0,0,0,0,0.5", "0,0,1,1,0.5", "0,1,0,2,1.0",
        "1,0,0,3,0.5", "1,0,1,0,0.5", "1,1,0,1,0.5", "1,1,1,2,0.5",
    ]  # fmt: skip
    export_recording(MADE, tmp_path / "t.jsonl")
    first, second = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    assert first["layers"] == [{"experts": [0, 1], "weights": [0.5, 0.5]}, {"experts": [2], "weights": [1.0]}]
    assert (second["text"], second["phase"], second["starts"]) == ("é\n", "decode", False)
    with pytest.raises(UsageError, match="unknown format"):
        export_recording(MADE, tmp_path / "t.txt")
