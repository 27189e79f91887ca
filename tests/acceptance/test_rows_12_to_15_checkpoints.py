"""Rows 12 to 15 through the command line: checkpoint folders that point elsewhere, lie about sizes, or carry code.

tests/converters/test_checkpoint.py has every way a header can lie; here `convert` answers 3 in one line that names the
file, within 2 s and 200 MB, writes nothing and runs nothing.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.acceptance.command import contents, localmoe, together
from tests.checkpoints import Tiny, encode, write_checkpoint, write_raw_safetensors, write_safetensors
from tests.pickles import payloads, write_torch

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def all_refused(place: Path, cases: dict[Path, tuple[object, ...]]) -> None:
    """`convert` answers 3 to each folder, with its parts, and leaves everything in `place` as it was."""
    out = place / "out.gguf"
    out.write_bytes(b"older output")
    before = contents(place)
    answers = together(*(("convert", folder, "-o", out, "--type", "F16") for folder in cases))
    for (folder, parts), answer in zip(cases.items(), answers, strict=True):
        answer.failed(3, f"error: {folder}", *parts).quickly()
        assert answer.out == ""
    assert contents(place) == before


def refused(folder: Path, *parts: object) -> None:
    """`all_refused` for one folder."""
    all_refused(folder.parent, {folder: parts})


def sharded(folder: Path, change: Callable[[dict[str, str]], Any]) -> Path:
    """A checkpoint of two shards whose weight_map `change` edits."""
    write_checkpoint(folder, Tiny(shards=2))
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_row_12_nothing_outside_the_folder_is_opened(tmp_path: Path) -> None:
    """By `..`, an absolute path or a link; what they point to is a pipe, which would hang when it is opened."""
    secret = tmp_path / "secret"
    os.mkfifo(secret)
    cases: dict[Path, tuple[object, ...]] = {}
    for i, name in enumerate(["../secret", str(secret), "a/../../secret"]):
        folder = sharded(tmp_path / f"m{i}", lambda m, name=name: m.update({"model.norm.weight": name}))
        cases[folder] = (repr(name), "outside the checkpoint folder")
    linked = write_checkpoint(tmp_path / "linked")
    (linked / WEIGHTS).unlink()
    (linked / WEIGHTS).symlink_to(secret)
    cases[linked] = (WEIGHTS, "link out of the checkpoint folder")
    all_refused(tmp_path, cases)


def test_row_13_all_that_is_missing_is_named(tmp_path: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    folder = sharded(tmp_path / "m", lambda m: m.update({"no.1": shard, "no.2": shard}))
    refused(folder, "no.1, no.2", "not in the shards")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    refused(folder, "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors", "missing")


HEADERS: dict[str, tuple[str, int, int | None, str]] = {
    "truncated": (json.dumps({"a": ENTRY}), 7, None, "truncated"),
    "overlapping": (json.dumps({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}), 12, None, "overlaps"),
    "holed": (json.dumps({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}), 20, None, "hole"),
    "wrapping": (json.dumps({"a": {**ENTRY, "data_offsets": [2**64 - 8, 2**64]}}), 8, None, "data_offsets"),
    "wrapping shape": (json.dumps({"a": {**ENTRY, "shape": [2**62, 4]}}), 8, None, "data_offsets"),
    "header past the end": (json.dumps({"a": ENTRY}), 8, 500, "ends within its header"),
    "header of 2^63": (json.dumps({"a": ENTRY}), 8, 2**63, "header is too large"),
}


def test_row_14_safetensors_that_lie(tmp_path: Path) -> None:
    cases: dict[Path, tuple[object, ...]] = {}
    for case, (header, n_data, n_header, part) in HEADERS.items():
        folder = write_checkpoint(tmp_path / case)
        write_raw_safetensors(folder / WEIGHTS, header, bytes(n_data), n_header)
        cases[folder] = (WEIGHTS, part)
    all_refused(tmp_path, cases)


def test_row_14_a_header_of_200_mb(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    write_raw_safetensors(folder / WEIGHTS, "{}", b"", 200_000_000)
    os.truncate(folder / WEIGHTS, 200_000_100)
    answer = localmoe("convert", folder, "-o", tmp_path / "out.gguf")
    answer.failed(3, folder / WEIGHTS, "header is too large").quickly()
    assert not (tmp_path / "out.gguf").exists()


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_row_15_pickles_are_refused_not_run(tmp_path: Path) -> None:
    cases: dict[Path, tuple[object, ...]] = {}
    for name in ("pytorch_model.bin", "consolidated.00.pth"):
        folder = write_checkpoint(tmp_path / name)
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
        cases[folder] = (name, "pickled weights")
    all_refused(tmp_path, cases)
    assert not (tmp_path / "ran").exists()


def test_row_15_a_payload_is_refused_where_pickles_are_allowed(tmp_path: Path) -> None:
    """In files as torch.save makes them: another call, another class, an object's state, in the tensors' midst."""
    for i, (payload, named) in enumerate(payloads(tmp_path / "ran")):
        folder = write_checkpoint(tmp_path / f"m{i}")
        (folder / WEIGHTS).unlink()
        write_torch(folder / "pytorch_model.bin", {"model.norm.weight": np.ones(4, np.float32)}, extra=payload)
        answer = localmoe("convert", folder, "-o", tmp_path / "out.gguf", "--type", "F16", "--allow-pickle")
        answer.failed(3, folder / "pytorch_model.bin", "could run code", named)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out.gguf").exists()


def test_row_15_a_pickle_called_safetensors_and_code_in_the_folder(tmp_path: Path) -> None:
    """Nor is a model's own Python imported."""
    folder = write_checkpoint(
        tmp_path / "m",
        texts={"modeling_x.py": f"import os; os.mkdir({str(tmp_path / 'ran')!r})"},
        config={"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
    )
    good = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(folder, WEIGHTS)
    (folder / WEIGHTS).write_bytes(good)
    localmoe("convert", folder, "-o", tmp_path / "out.gguf", "--type", "F16").succeeded()
    assert not (tmp_path / "ran").exists()


def test_a_tensor_that_is_no_part_of_the_model_is_named(tmp_path: Path) -> None:
    """Silently dropping weights would give another model."""
    folder = write_checkpoint(tmp_path / "m")
    write_safetensors(folder / "model-extra.safetensors", {"model.strange.weight": encode("F32", np.zeros((2, 2)))})
    refused(folder, "model.strange.weight")
