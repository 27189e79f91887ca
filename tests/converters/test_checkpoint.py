"""Reading checkpoint folders: what the safetensors format forbids, and what may not be opened."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.converters.checkpoint import find_file, open_checkpoint, parse_json, read_json, read_safetensors
from localmoe.errors import BadInputError
from tests.checkpoints import (
    Tiny,
    checkpoint_weights,
    encode,
    write_checkpoint,
    write_raw_safetensors,
    write_safetensors,
)
from tests.slowness import slowness

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
INDEX = "model.safetensors.index.json"


def header(**entries: Any) -> str:
    """A header as JSON."""
    return json.dumps(entries)


def test_values_are_those_that_were_written(tmp_path: Path) -> None:
    """Every tensor of a sharded checkpoint, in the order of shards, then names; also as the library reads them."""
    from safetensors.numpy import load_file

    folder = write_checkpoint(tmp_path, Tiny(shards=3))
    tensors = open_checkpoint(folder)
    for name, values in checkpoint_weights(Tiny()).items():
        np.testing.assert_array_equal(tensors[name].data(), values)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(tensors) == [name for shard in shards for name in sorted(load_file(folder / shard))]


def test_a_tensor_may_be_unaligned_and_empty_data_may_be_absent(tmp_path: Path) -> None:
    """A header of odd length, as the format allows, and a tensor without elements."""
    values = np.arange(2, dtype=np.float32)
    text = header(a=ONE, b={"dtype": "F16", "shape": [0, 3], "data_offsets": [8, 8]})
    write_raw_safetensors(tmp_path / "x", text + " " * (1 + len(text) % 2), values.tobytes())
    tensors = read_safetensors(tmp_path / "x", tmp_path / "x")
    np.testing.assert_array_equal(tensors["a"].data(), values)
    assert tensors["b"].data().shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (header(a=ONE), 7, "truncated, got 7 bytes of data, expected 8"),
        (header(a=ONE), 9, "bytes after the last tensor"),
        (header(a=ONE, b={**ONE, "data_offsets": [4, 12]}), 12, "b: data overlaps"),
        (header(a=ONE, b={**ONE, "data_offsets": [12, 20]}), 20, "b: data leaves a hole before it, got offset 12"),
        (header(a=ONE, b=ONE), 8, "overlaps"),
        (header(a={**ONE, "data_offsets": [8, 0]}), 8, r"fit F32 \[2\], got -8 bytes, expected 8"),
        (header(a={**ONE, "data_offsets": [2**64 - 8, 2**64]}), 8, "not two sizes"),
        (header(a={**ONE, "shape": [2**62, 4]}), 8, "expected 73786976294838206464"),
        (header(a={**ONE, "shape": [-2]}), 8, "not a list of sizes"),
        (header(a={**ONE, "shape": [True]}), 8, "not a list of sizes"),
        (header(a={**ONE, "shape": [2.0]}), 8, "not a list of sizes"),
        (header(a={**ONE, "shape": 2}), 8, "not a list of sizes"),
        (header(a={**ONE, "dtype": "F4"}), 8, "unknown dtype, got 'F4'"),
        (header(a={**ONE, "dtype": ["F32"]}), 8, "unknown dtype"),
        (header(a={**ONE, "dtype": "BF16"}), 8, r"fit BF16 \[2\], got 8 bytes, expected 4"),
        (header(a={**ONE, "data_offsets": [0]}), 8, "not two sizes"),
        (header(a={"dtype": "F32", "shape": [2]}), 8, "needs exactly"),
        (header(a=[1]), 8, "needs exactly"),
        (f'{{"a": {json.dumps(ONE)}, "a": {json.dumps(ONE)}}}', 8, "'a': JSON key appears twice"),
        ('{"a": ', 8, "not valid JSON"),
        ("[]", 0, "not a JSON object"),
        ("[" * 100_000, 0, "not valid JSON"),
        ('{"a": 1' + "0" * 5000 + "}", 0, "not valid JSON"),
    ],
)  # fmt: skip
def test_headers_that_the_format_forbids(tmp_path: Path, text: str, data: int, message: str) -> None:
    """Each is bad input that names what is wrong."""
    path = tmp_path / "model.safetensors"
    write_raw_safetensors(path, text, bytes(data))
    with pytest.raises(BadInputError, match=message):
        read_safetensors(path, path)


@pytest.mark.parametrize(
    ("n_header", "message"), [(200_000_000, "too large"), (2**63, "too large"), (500, "ends within")]
)
def test_a_header_longer_than_allowed_is_refused_at_once(tmp_path: Path, n_header: int, message: str) -> None:
    """Before a byte of it is read: the file of 200 MB is a hole."""
    path = tmp_path / "model.safetensors"
    write_raw_safetensors(path, header(a=ONE), bytes(8), n_header)
    if n_header == 200_000_000:
        os.truncate(path, 200_000_100)
    began = time.thread_time()
    with pytest.raises(BadInputError, match=message):
        read_safetensors(path, path)
    assert time.thread_time() - began < 0.5 * slowness()


@pytest.mark.parametrize("size", [0, 7])
def test_files_shorter_than_the_length_field(tmp_path: Path, size: int) -> None:
    """Empty and short files are bad input."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(BadInputError, match="too short"):
        read_safetensors(path, path)


def test_a_header_that_is_no_utf8(tmp_path: Path) -> None:
    """The byte is named."""
    path = tmp_path / "model.safetensors"
    path.write_bytes((4).to_bytes(8, "little") + b'{"\xff"')
    with pytest.raises(BadInputError, match="byte 10: safetensors header is not UTF-8"):
        read_safetensors(path, path)


def with_index(tmp_path: Path, change: Any) -> Path:
    """A checkpoint of two shards whose index `change` edits."""
    folder = write_checkpoint(tmp_path / "m", Tiny(shards=2))
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "C:\\x", "a\0b", ""]
)
def test_a_weight_map_does_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    """Neither by .. nor by an absolute path; the file that is there is not opened (it would be refused otherwise)."""
    write_safetensors(tmp_path / "secret.safetensors", {"model.norm.weight": encode("F32", np.zeros(32, np.float32))})
    folder = with_index(tmp_path, lambda m: m.update({"model.norm.weight": name}))
    with pytest.raises(BadInputError, match="outside the checkpoint folder"):
        open_checkpoint(folder)


def test_a_weight_map_names_files_in_unicode(tmp_path: Path) -> None:
    """JSON can spell half a surrogate pair, which no file's name holds."""
    folder = with_index(tmp_path, lambda m: m.update({"model.norm.weight": "\ud800"}))
    with pytest.raises(BadInputError, match="half a surrogate pair"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Of a shard, of a text file and of a folder; a link within the folder is followed."""
    folder = write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match="link out of the checkpoint folder"):
        open_checkpoint(folder)
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to("../config.json")
    with pytest.raises(BadInputError, match="link out of the checkpoint folder"):
        read_json(folder, "config.json")
    (folder / "up").symlink_to(tmp_path)
    with pytest.raises(BadInputError, match="link out of the checkpoint folder"):
        find_file(folder, "up/elsewhere")
    (folder / "inner.json").symlink_to("tokenizer.json")
    assert find_file(folder, "inner.json") == (folder / "tokenizer.json").resolve()


def test_the_hugging_face_caches_own_links_are_followed(tmp_path: Path) -> None:
    """snapshots/REV/x -> ../../blobs/HASH, and nothing else that leaves the snapshot."""
    cache = tmp_path / "models--a--b"
    snapshot = write_checkpoint(cache / "snapshots" / "rev")
    (cache / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(cache / "blobs" / f"hash-{path.name}")
        path.symlink_to(f"../../blobs/hash-{path.name}")
    assert len(open_checkpoint(snapshot)) == len(checkpoint_weights(Tiny()))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../refs/main")
    with pytest.raises(BadInputError, match="link out of the checkpoint folder"):
        read_json(snapshot, "config.json")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would block for ever."""
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_json(tmp_path, "config.json")


def test_all_missing_shards_are_named(tmp_path: Path) -> None:
    """With an index, and by their numbers without one."""
    folder = write_checkpoint(tmp_path, Tiny(shards=4))
    for i in (2, 4):
        (folder / f"model-0000{i}-of-00004.safetensors").unlink()
    named = "model-00002-of-00004.safetensors, model-00004-of-00004.safetensors: shards are missing"
    with pytest.raises(BadInputError, match=named):
        open_checkpoint(folder)
    (folder / INDEX).unlink()
    with pytest.raises(BadInputError, match=named):
        open_checkpoint(folder)


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    """A tensor that its shard lacks, and one that the index lacks, are named."""
    folder = with_index(tmp_path, lambda m: m.update({"model.no1": m["model.norm.weight"], "no2": m["lm_head.weight"]}))
    with pytest.raises(BadInputError, match=r"model.no1, no2: tensors are not in the shards"):
        open_checkpoint(folder)
    folder = with_index(tmp_path, lambda m: m.pop("model.norm.weight"))
    with pytest.raises(BadInputError, match=r"model.norm.weight: shards hold tensors that the index does not name"):
        open_checkpoint(folder)


@pytest.mark.parametrize("first", [True, False])
def test_a_tensor_in_two_shards_is_named(tmp_path: Path, first: bool) -> None:
    """Also where an index says which of them counts, be it the first or the second."""
    folder = with_index(tmp_path, lambda m: None)
    shards = sorted(folder.glob("model-*.safetensors"))
    taken = shards[0 if first else 1]
    name, tensor = next(iter(read_safetensors(taken, taken).items()))
    other = shards[1 if first else 0]
    held = {n: encode("F32", np.array(t.data())) for n, t in read_safetensors(other, other).items()}
    write_safetensors(other, held | {name: encode("F32", np.array(tensor.data()))})
    with pytest.raises(BadInputError, match=rf"{name}: tensor appears in two shards, got {taken.name} and another"):
        open_checkpoint(folder)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}'])
def test_an_index_without_a_weight_map(tmp_path: Path, index: str) -> None:
    """Is bad input."""
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(BadInputError, match="weight_map"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    """Is named with both files."""
    tensor = {"a": encode("F32", np.zeros(2, np.float32))}
    write_safetensors(tmp_path / "model-a.safetensors", tensor)
    write_safetensors(tmp_path / "model-b.safetensors", tensor)
    with pytest.raises(BadInputError, match=r"model-b.safetensors: a: tensor appears in two shards, got model-a"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ['{"a": 1, "b": {"c": 1, "c": 2}}', '{"a": 1, "a": 1}'])
def test_duplicate_json_keys_are_refused_at_any_depth(text: str) -> None:
    """The key is named."""
    with pytest.raises(BadInputError, match="JSON key appears twice"):
        parse_json(text, Path("x.json"))
