"""Rows 12 and 13 for every command that reads a checkpoint folder, and for every file of one that names or is another.

`convert` reads one, `franken` one as the base and one an expert; what takes a GGUF refuses a folder unopened. What a
link out of the folder points to is a pipe, which would hang when it is opened.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.command import contents, localmoe, together
from tests.checkpoints import Tiny, checkpoint_weights, write_checkpoint
from tests.pickles import write_torch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses pipes that have names")

INDEX, PICKLE_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
DENSE = Tiny("llama", n_layer=1, shards=3, tokenizer="spm")
SHARDS = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
Parts = tuple[object, ...]
Case = Callable[[Path, Path], Parts]  # (a good folder to be spoiled, the pipe) -> what the refusal names


def pointing(name: str, file: str = INDEX) -> Case:
    """The index of the weights names a file by another way out of the folder."""

    def spoil(folder: Path, pipe: Path) -> Parts:
        away = name.format(pipe=pipe)
        index = json.loads((folder / file).read_text())
        index["weight_map"]["model.norm.weight"] = away
        (folder / file).write_text(json.dumps(index))
        return repr(away), "outside the checkpoint folder"

    return spoil


def linked(name: str) -> Case:
    """A file of the folder is a link out of it."""

    def spoil(folder: Path, pipe: Path) -> Parts:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(os.path.relpath(pipe, folder))
        return name, "is a link out of the checkpoint folder"

    return spoil


def through_a_folder(folder: Path, pipe: Path) -> Parts:
    """A folder inside is the link."""
    (folder / "in").symlink_to(pipe.parent)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = f"in/{pipe.name}"
    (folder / INDEX).write_text(json.dumps(index))
    return f"in/{pipe.name}", "is a link out of the checkpoint folder"


def without(*names: str) -> Case:
    """Shards are missing."""

    def spoil(folder: Path, _: Path) -> Parts:
        for name in names:
            (folder / name).unlink()
        return ", ".join(names), "shards are missing"

    return spoil


def without_an_index(folder: Path, _: Path) -> Parts:
    """The numbers in the names tell what is missing."""
    for name in (INDEX, *SHARDS[1:]):
        (folder / name).unlink()
    return ", ".join(SHARDS[1:]), "shards are missing"


def tensors_elsewhere(folder: Path, _: Path) -> Parts:
    """The index promises what no shard has."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {"no.1": SHARDS[0], "no.2": SHARDS[2]}
    (folder / INDEX).write_text(json.dumps(index))
    return "no.1, no.2", "not in the shards"


CASES: dict[str, Case] = {
    "dots": pointing("../pipe"),
    "dots inside": pointing("a/../../pipe"),
    "absolute": pointing("{pipe}"),
    "through a folder": through_a_folder,
    **{f"{name} is a link": linked(name) for name in (INDEX, SHARDS[1], "config.json", "tokenizer.model")},
    "tokenizer.json is a link": linked("tokenizer.json"),
    "one shard is missing": without(SHARDS[1]),
    "two shards are missing": without(*SHARDS[1:]),
    "no index": without_an_index,
    "tensors elsewhere": tensors_elsewhere,
}


def pickled(folder: Path) -> Path:
    """The same weights in pickled files with an index."""
    index = json.loads((folder / INDEX).read_text())
    for path in (folder / INDEX, *folder.glob("*.safetensors")):
        path.unlink()
    names = {shard: shard.replace("model-", "pytorch_model-").replace("safetensors", "bin") for shard in SHARDS}
    index["weight_map"] = {name: names[shard] for name, shard in index["weight_map"].items()}
    weights = checkpoint_weights(DENSE)
    for shard in names.values():
        write_torch(folder / shard, {n: weights[n] for n, where in index["weight_map"].items() if where == shard})
    (folder / PICKLE_INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def readers(place: Path, folder: Path, good: Path) -> Iterator[tuple[object, ...]]:
    """The commands that read `folder`, with an output in `place`."""
    out = ("-o", place / "out.gguf", "--type", "F16")
    yield "convert", folder, *out
    for name, base, expert in (("base", folder, good), ("expert", good, folder)):
        recipe = place / f"{folder.name}-{name}.yml"
        sources = "".join(f"  - source_model: {path}\n" for path in (base, expert))
        recipe.write_text(f"base_model: {base}\ngate_mode: random\nexperts:\n{sources}")
        yield "franken", recipe, *out


def test_rows_12_and_13_every_reader(tmp_path: Path, pipe: Path) -> None:
    good = write_checkpoint(tmp_path / "good", DENSE)
    asked: list[tuple[Path, Parts]] = []
    commands: list[tuple[object, ...]] = []
    for i, spoil in enumerate(CASES.values()):
        folder = write_checkpoint(tmp_path / f"m{i}", DENSE)
        parts = spoil(folder, pipe)
        for command in readers(tmp_path, folder, good):
            commands.append(command)
            asked.append((folder, parts))
    (tmp_path / "out.gguf").write_bytes(b"older output")
    before = contents(tmp_path)
    for (folder, parts), answer in zip(asked, together(*commands), strict=True):
        answer.failed(3, f"error: {folder}", *parts).quickly()
        assert answer.out == ""
    assert contents(tmp_path) == before
    for command in readers(tmp_path, good, good):  # and nothing is wrong with the folder itself
        localmoe(*command).succeeded()


def test_rows_12_and_13_pickled_weights(tmp_path: Path, pipe: Path) -> None:
    """--allow-pickle opens no more than what is in the folder."""
    first, second, third = (f"pytorch_model-{i:05d}-of-00003.bin" for i in (1, 2, 3))
    spoils = [pointing(name, PICKLE_INDEX) for name in ("../pipe", "{pipe}")]
    spoils += [linked(name) for name in (PICKLE_INDEX, second)] + [without(first, third)]
    asked, before = [], {}
    for i, spoil in enumerate(spoils):
        folder = pickled(write_checkpoint(tmp_path / f"m{i}", DENSE))
        asked.append((folder, spoil(folder, pipe)))
    out = ("-o", tmp_path / "out.gguf", "--type", "F16", "--allow-pickle")
    before = contents(tmp_path)
    for (folder, parts), answer in zip(asked, together(*(("convert", f, *out) for f, _ in asked)), strict=True):
        answer.failed(3, f"error: {folder}", *parts).quickly()
    assert contents(tmp_path) == before
    good = pickled(write_checkpoint(tmp_path / "good", DENSE))
    for command in readers(tmp_path, good, good):
        localmoe(*command).failed(3, f"error: {good}", "holds only pickled weights", "--allow-pickle")
        localmoe(*command, "--allow-pickle").succeeded()


def test_a_folder_is_no_gguf(tmp_path: Path) -> None:
    """What reads a GGUF opens nothing in a folder, and says what would make one of it."""
    folder = write_checkpoint(tmp_path / "m", DENSE)
    text = tmp_path / "text"
    text.write_text("a")
    model = ("-m", folder)
    commands: list[tuple[object, ...]] = [
        ("inspect", folder), ("quantize", folder, tmp_path / "out.gguf", "Q8_0"), ("run", *model, "-p", "a"),
        ("chat", *model), ("tokenize", *model, "a"), ("bench", *model), ("imatrix", *model, "-f", text),
        ("perplexity", *model, "-f", text), ("experts", "check", *model),
        ("experts", "record", *model, "-f", text, "-o", tmp_path / "out.npz"),
    ]  # fmt: skip
    for answer in together(*commands):
        answer.failed(4, f"error: {folder}: is a folder", "localmoe convert").quickly()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "text"]
