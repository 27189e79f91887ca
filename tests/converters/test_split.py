"""Models in several files: where parts end, what they hold, and that they appear together or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localmoe import output_file as output
from localmoe.cli import main
from localmoe.converters.output import TensorHeader, header_bytes, padded
from localmoe.converters.source import MetaValue
from localmoe.converters.split import Split, cut, parse_split, part_metadata, part_paths
from localmoe.errors import FileError, UsageError
from localmoe.gguf_file import open_gguf
from tests.checkpoints import Tiny, write_checkpoint
from tests.tiny import write_tiny

SHAPE = {"n_layer": 2, "n_embd": 64, "n_ff": 96}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "in.gguf", **SHAPE)


def held(path: Path) -> dict[str, tuple[object, ...]]:
    with open_gguf(path) as file:
        return {name: (t.shape, t.type, bytes(file.raw(name))) for name, t in file.tensors.items()}


def parts_of(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}-*-of-*.gguf"))


@pytest.mark.parametrize(
    ("sizes", "split", "expected"),
    [
        ([10, 10, 10, 10, 10], parse_split(None, 2), [2, 2, 1]),
        ([10, 10], parse_split(None, 9), [2]),
        ([400_000, 500_000, 200_000, 2_000_000, 32], parse_split("1M", None), [2, 1, 1, 1]),
        ([2_000_000, 32], parse_split("1m", None), [1, 1]),
        ([1, 1], None, [2]),
    ],
)
def test_where_parts_end(sizes: list[int], split: object, expected: list[int]) -> None:
    """By gguf-split's rule: a tensor that would exceed the limit, padded to 32 bytes, begins a part."""
    assert [len(part) for part in cut(sizes, [0] * len(sizes), split)] == expected  # type: ignore[arg-type]


def test_parts_that_are_kept_may_be_empty() -> None:
    assert [len(part) for part in cut([9] * 5, [1, 1, 2, 4, 4], Split(keep=True))] == [0, 2, 1, 0, 2]


def behind_its_keys(parts: list[Path], out: Path) -> Path:
    """The same model with a first part of keys alone, as gguf-split --no-tensor-first-split writes it."""
    with open_gguf(parts[0]) as file:
        keys = {key: MetaValue(value, *file.metadata_types[key]) for key, value in file.metadata.items()}
        split = Split(max_tensors=9)
        paths = part_paths(out, len(parts) + 1, split)
        for i, path in enumerate(paths):
            held = [tensor for tensor in file.tensors.values() if tensor.part == i - 1]
            heads = [TensorHeader(t.name, t.shape, t.type, t.n_bytes) for t in held]
            data = b"".join(bytes(file.raw(t.name)).ljust(padded(t.n_bytes), b"\0") for t in held)
            path.write_bytes(header_bytes(part_metadata(keys, i, len(paths), len(file.tensors), split), heads) + data)
    return paths[0]


def test_a_first_part_without_tensors_is_kept(tmp_path: Path) -> None:
    write_tiny(tmp_path / "in.gguf", split_max_tensors=9, **SHAPE)
    first = behind_its_keys(parts_of(tmp_path, "in"), tmp_path / "keys.gguf")
    assert main(["run", "-m", str(first), "-p", "hello", "-n", "1"]) == 0
    assert main(["quantize", str(first), str(tmp_path / "out.gguf"), "Q8_0", "--keep-split"]) == 0
    with open_gguf(first) as before, open_gguf(parts_of(tmp_path, "out")[0]) as after:
        assert [(t.name, t.part) for t in before.tensors.values()] == [(t.name, t.part) for t in after.tensors.values()]
        assert {t.part for t in after.tensors.values()} == {1, 2, 3}


@pytest.mark.parametrize("text", ["1", "0M", "1K", "-1M", "1.5G", "", "M", "9999999999G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--split-max-size: not a size"):
        parse_split(text, None)


def test_split_by_tensors_and_merged(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, split, merged = tmp_path / "w.gguf", tmp_path / "s.gguf", tmp_path / "m.gguf"
    assert main(["quantize", str(source), str(whole), "Q8_0"]) == 0
    assert main(["quantize", str(source), str(split), "Q8_0", "--split-max-tensors", "8"]) == 0
    assert " in 3 parts, " in capsys.readouterr().err
    parts = parts_of(tmp_path, "s")
    assert [part.name for part in parts] == [f"s-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert not split.exists()
    assert held(parts[1]) == held(whole)
    assert main(["quantize", str(parts[0]), str(merged), "COPY"]) == 0
    assert merged.read_bytes() == whole.read_bytes()


def test_keys_and_sizes_of_parts(source: Path, tmp_path: Path) -> None:
    """All keys in the first part, three in each, in gguf-split's types and order."""
    from gguf import GGUFReader

    assert main(["quantize", str(source), str(tmp_path / "s.gguf"), "F32", "--split-max-size", "1M"]) == 0
    parts = parts_of(tmp_path, "s")
    n = len(parts)
    assert n >= 2
    own = {"split.no": "UINT16", "split.tensors.count": "INT32", "split.count": "UINT16"}
    for i, part in enumerate(parts):
        reader = GGUFReader(part)
        keys = [key for key in reader.fields if not key.startswith("GGUF.")]
        assert keys[-3:] == list(own)
        assert (len(keys) > 3) == (i == 0)
        assert [reader.fields[key].types[0].name for key in own] == list(own.values())
        assert [int(reader.fields[key].parts[-1][0]) for key in own] == [i, len(held(source)), n]
        assert part.stat().st_size < 1_000_000 + 40_000 or len(reader.tensors) == 1
    assert held(parts[0]).keys() == held(source).keys()


def test_keep_split(tmp_path: Path) -> None:
    first = write_tiny(tmp_path / "in.gguf", split_max_tensors=9, **SHAPE)
    assert main(["quantize", str(first), str(tmp_path / "out.gguf"), "Q8_0", "--keep-split"]) == 0
    names = []
    for folder_parts in (parts_of(tmp_path, "in"), parts_of(tmp_path, "out")):
        with open_gguf(folder_parts[0]) as file:
            names.append([(t.name, t.part) for t in file.tensors.values()])
    assert names[0] == names[1]
    single = write_tiny(tmp_path / "one.gguf", **SHAPE)
    assert main(["quantize", str(single), str(tmp_path / "two.gguf"), "Q8_0", "--keep-split"]) == 0
    assert (tmp_path / "two.gguf").is_file()
    assert main(["quantize", str(first), str(tmp_path / "in.gguf"), "Q8_0", "--keep-split"]) == 2
    assert (
        main(["quantize", str(first), str(tmp_path / "x.gguf"), "F16", "--keep-split", "--split-max-size", "1M"]) == 2
    )


def test_convert_prints_the_first_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "c", Tiny())
    arguments = ["convert", str(folder), "-o", str(tmp_path / "c.gguf"), "--type", "F16", "--split-max-tensors", "10"]
    assert main([*arguments, "--dry-run"]) == 0
    assert " parts, " in capsys.readouterr().out
    assert parts_of(tmp_path, "c") == []
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{parts_of(tmp_path, 'c')[0]}\n"


def test_a_part_that_cannot_be_written_leaves_the_old_set(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writing fails in the last part: no file is new, none is hidden, and the error names that part."""
    arguments = ["quantize", str(source), str(tmp_path / "s.gguf"), "Q8_0", "--split-max-tensors", "8"]
    assert main(arguments) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = output.OutputFile.write

    def write(self: output.OutputFile, data: bytes) -> None:
        if "00003-of" in str(self.target):
            raise FileError("cannot be written: No space left on device", file=self.target)
        real(self, data)

    monkeypatch.setattr(output.OutputFile, "write", write)
    assert main([*arguments[:3], "F16", *arguments[4:]]) == 4
    assert "s-00003-of-00003.gguf: cannot be written: No space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(sys.platform != "linux", reason="unnamed files are Linux's")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL: the older set or the new one, whole, whichever part is opened, and in the end nothing hidden."""
    large = write_tiny(tmp_path / "in.gguf", n_layer=2, n_embd=512, n_ff=512, n_head=8)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "localmoe", "quantize", large, out / "s.gguf", "Q8_0", "--split-max-size", "4M"]
    subprocess.run(command, check=True, capture_output=True)
    whole = held(parts_of(out, "s")[0])
    for i in range(5):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.25 + 0.15 * i)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert held(parts_of(out, "s")[0]) == whole
    subprocess.run(command, check=True, capture_output=True)
    assert sorted(out.iterdir()) == parts_of(out, "s")
