"""Row 21 for every command that writes, and outputs that no file can take the place of."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localmoe.cli import main
from tests.acceptance.command import contents
from tests.acceptance.writers import NAMES, Writers
from tests.small_disk import mounted
from tests.tiny import write_tiny

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses links and pipes")


@pytest.fixture
def writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writers:
    (tmp_path / "in").mkdir()
    made = Writers(tmp_path / "in")
    monkeypatch.setenv("LOCALMOE_DATA", str(made.data))
    return made


def refused(
    writers: Writers, name: str, out: Path | str, code: int, capsys: pytest.CaptureFixture[str], *parts: str
) -> None:
    """Run a command in this process: the code, one line with `parts`, and no input that changed."""
    before = contents(writers.folder)
    capsys.readouterr()
    got = main(list(writers.commands[name](out)))
    error = capsys.readouterr().err.splitlines()[-1]
    assert got == code, error
    assert error.startswith("error: ")
    for part in parts:
        assert part in error
    assert contents(writers.folder) == before


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that shows another one's files, `../real`."""
    folder = tmp_path_factory.mktemp("bound")
    (folder / "real").mkdir()
    (folder / "shown").mkdir()
    with mounted(folder / "shown", "--bind", str(folder / "real")) as there:
        if not there:
            pytest.skip("a folder cannot be bound to another name here")
        yield folder


@pytest.mark.parametrize("name", NAMES)
def test_no_command_takes_the_place_of_what_it_reads(
    writers: Writers, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the file's own name where the ending allows it, through a symbolic and a hard link, `..` and folders."""
    monkeypatch.chdir(tmp_path)
    suffix = writers.suffixes.get(name, "")
    (tmp_path / "around").symlink_to(writers.folder, target_is_directory=True)
    for i, path in enumerate(writers.inputs[name]):
        relative = path.relative_to(writers.folder)
        soft, hard = tmp_path / f"soft{i}{suffix}", tmp_path / f"hard{i}{suffix}"
        soft.symlink_to(Path("in") / relative)
        os.link(path, hard)
        outs = [soft, hard, soft.relative_to(tmp_path)]
        if not suffix or path.name.endswith(suffix):
            outs += [path, writers.folder / "data" / ".." / relative, Path("around") / relative]
        for out in outs:
            refused(writers, name, out, 2, capsys, "input and output are the same file")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", ["/", "/.", "/./", ""])
def test_the_name_of_a_folder_makes_no_file(
    writers: Writers, tmp_path: Path, name: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`new/` is no file called new, where there is no such folder; and one that is there stays as it is."""
    suffix = writers.suffixes.get(name, "")
    there = tmp_path / f"there{suffix}"
    there.mkdir()
    for out in (f"{tmp_path}/new{suffix}{ending}", f"{there}{ending}") if ending else (str(there),):
        refused(writers, name, out, 4, capsys, out)
    assert [path.name for path in tmp_path.iterdir() if path.name != "in"] == [there.name]
    assert not any(there.iterdir())


def test_nor_through_a_folder_bound_elsewhere(bound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same file under two paths that no link joins."""
    write_tiny(bound / "real" / "m.gguf", n_layer=1, n_embd=64, n_ff=64)
    before = contents(bound / "real")
    assert main(["quantize", str(bound / "real" / "m.gguf"), str(bound / "shown" / "m.gguf"), "Q8_0"]) == 2
    assert "the same file" in capsys.readouterr().err
    assert contents(bound / "real") == before


def test_nor_of_any_part_of_a_split_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever part is named; also where the output is a set whose second part would be one of them."""
    first = write_tiny(tmp_path / "m.gguf", split_max_tensors=6, n_layer=1, n_embd=64, n_ff=64)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 2
    before = contents(tmp_path)
    for source in (first, parts[-1]):
        for out in parts:
            assert main(["quantize", str(source), str(out), "Q8_0"]) == 2
    for option in (["--keep-split"], ["--split-max-tensors", "6"]):
        assert main(["quantize", str(first), str(tmp_path / "m.gguf"), "F16", *option]) == 2
    assert capsys.readouterr().err.count("input and output are the same file") == 2 * len(parts) + 2
    assert contents(tmp_path) == before


def test_case_makes_another_file_only_where_the_system_says_so(
    writers: Writers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What counts is the file that a name leads to: the system tells them apart, here or not."""
    model, other = tmp_path / "m.gguf", tmp_path / "M.gguf"
    shutil.copy(writers.model, model)
    same = other.exists()
    code = main(["quantize", str(model), str(other), "Q8_0"])
    assert code == (2 if same else 0), capsys.readouterr().err
    assert model.read_bytes() == writers.model.read_bytes()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, tuple[Path, str]]]:
    """Places for an output that none can be written to -> what the refusal says."""
    folder = tmp_path / "out"
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "file").write_bytes(b"x")
    (folder / "loop").symlink_to(folder / "loop")
    found = {
        "a folder": (folder / "folder", "not a regular file"),
        "a pipe": (folder / "pipe", "not a regular file"),
        "a device": (Path("/dev/null"), "not a regular file"),
        "a full device": (Path("/dev/full"), "not a regular file"),
        "no folder": (folder / "absent" / "x", "the folder does not exist"),
        "below a file": (folder / "file" / "x", "the folder does not exist"),
        "a loop": (folder / "loop", os.strerror(40)),
        "a long name": (folder / ("x" * 300), os.strerror(36)),
    }
    with mounted(folder / "folder", "-t", "tmpfs", "-o", "ro", "tmpfs") as there:
        if there:
            found["read-only"] = (folder / "folder" / "x", os.strerror(30))
        yield found


@pytest.mark.skipif(sys.platform != "linux", reason="numbers of errors are Linux's")
@pytest.mark.parametrize("name", NAMES)
def test_places_that_cannot_be_written_to(
    writers: Writers, places: dict[str, tuple[Path, str]], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """4, the place named, and no file left; what stands there stays what it is."""
    suffix = writers.suffixes.get(name, "")
    for i, (place, reason) in enumerate(places.values()):
        out = place
        if suffix:  # the ending chooses the format: a link to the place
            out = tmp_path / f"link{i}{suffix}"
            out.symlink_to(place)
        before = contents(tmp_path / "out")
        refused(writers, name, out, 4, capsys, reason)
        assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / "pipe").is_fifo()


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_long_or_strange(writers: Writers, tmp_path: Path, name: str) -> None:
    """The longest name that the system takes, in characters of three bytes, and one with a newline: both written."""
    suffix = writers.suffixes.get(name, ".gguf")
    folder = tmp_path / "out"
    folder.mkdir()
    names = ["\u5199" * ((255 - len(suffix)) // 3) + suffix, f"a\nb\x1b[31m{suffix}", f"-{suffix}"]
    for written in names:
        assert main(list(writers.commands[name](folder / written))) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
