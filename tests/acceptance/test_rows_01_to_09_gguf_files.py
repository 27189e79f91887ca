"""Rows 1 to 9 through the command line: GGUF files that are not what they must be.

tests/test_gguf_file.py has the reader's many ways to be deceived; here each row shows what the commands answer: exit
code 3, one line that names the file and the key, tensor or offset, within 2 s and 200 MB, and nothing written.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.acceptance.command import Answer, contents, together
from tests.test_gguf_file import ARR, GOOD, STR, U32, build, key, tensor, text, u32, u64
from tests.tiny import write_tiny

SAME = key("a.b", U32, u32(1))
FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "row 1 empty": (b"", ("the file is empty",)),
    "row 1 short": (GOOD[:20], ("offset 16", "past the end")),
    "row 1 wrong magic": (b"PK\x03\x04" + bytes(60), ("not a GGUF file", "expected b'GGUF'")),
    "row 2 v0": (build(version=0), ("version", "got 0")),
    "row 2 v1": (build(version=1), ("version", "got 1")),
    "row 2 future": (build(version=4), ("version", "got 4")),
    "row 2 big-endian": (build(version=3 << 24), ("big-endian", "version 3")),
    "row 3 tensors": (build(n_tensors=1 << 63), ("tensors", str(1 << 63))),
    "row 3 keys": (build(n_keys=1 << 63), ("keys", str(1 << 63))),
    "row 4 string": (build((key("the.key", STR, u64(1 << 62) + b"abc"),)), ("the.key", "past the end")),
    "row 4 array": (build((key("the.key", ARR, u32(U32) + u64(1 << 61) + b"abcd"),)), ("the.key", "past the end")),
    "row 4 string in an array": (
        build((key("the.key", ARR, u32(STR) + u64(2) + text("a") + u64(1 << 63)),)),
        ("the.key", "past the end"),
    ),
    "row 5 key": (build((SAME, SAME)), ("a.b", "duplicate key")),
    "row 5 tensor": (build((), (tensor(), tensor(offset=32)), bytes(64)), ("t: duplicate tensor",)),
    "row 6 0": (build((key("general.alignment", U32, u32(0)),)), ("general.alignment", "got 0")),
    "row 6 13": (build((key("general.alignment", U32, u32(13)),)), ("general.alignment", "got 13")),
    "row 6 u64": (build((key("general.alignment", 10, u64(32)),)), ("general.alignment", "UINT64")),
    "row 7": (build((), (tensor(dims=(1 << 32, 1 << 32)),), bytes(64)), ("t: impossible dimensions",)),
    "row 8": (build((), (tensor(dims=(1000,)),), bytes(64)), ("t: ", "past the end", "got 128 bytes", "4064")),
}  # fmt: skip


# These are shown to every command that reads a model, the others to `inspect`.
EVERY_COMMAND = ("row 4 string in an array",)
Refusals = tuple[dict[str, list[Answer]], bool]


def commands(case: str, model: Path, out: Path) -> list[tuple[object, ...]]:
    """The command lines that meet a case's file."""
    if case not in EVERY_COMMAND:
        return [("inspect", model)]
    return [
        ("run", "-m", model, "-p", "a"), ("quantize", model, out, "Q4_K_M"), ("convert", model, "-o", out),
        ("tokenize", "-m", model, "a"), ("bench", "-m", model), ("inspect", model, "--json"), ("chat", "-m", model),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    """What the commands answered to each case, and whether all files stayed as they were."""
    folder = tmp_path_factory.mktemp("files")
    out = folder / "out.gguf"
    out.write_bytes(b"older output")
    for case in FILES:
        (folder / f"{case}.gguf").write_bytes(FILES[case][0])
    before = contents(folder)
    lines = [(case, line) for case in FILES for line in commands(case, folder / f"{case}.gguf", out)]
    answers: dict[str, list[Answer]] = {case: [] for case in FILES}
    for (case, _), answer in zip(lines, together(*(line for _, line in lines)), strict=True):
        answers[case].append(answer)
    return answers, contents(folder) == before


@pytest.mark.parametrize("case", FILES)
def test_it_is_refused(refusals: Refusals, case: str) -> None:
    for answer in refusals[0][case]:
        answer.failed(3, f"{case}.gguf: ", *FILES[case][1]).quickly()
        assert answer.out == ""


def test_nothing_is_left_behind(refusals: Refusals) -> None:
    assert refusals[1]


def test_row_3_and_4_a_huge_file_that_could_hold_what_it_says(tmp_path: Path) -> None:
    """64 GiB, all of it a hole: counts are bounded by more than the file's size."""
    heads = {
        "tensors": (build(n_tensors=1 << 30), "tensors"),
        "array": (build((key("the.key", ARR, u32(U32) + u64(1 << 33)),)), "the.key"),
        "strings": (build((key("the.key", ARR, u32(STR) + u64(1 << 31)),)), "the.key"),
    }
    models = [tmp_path / f"{name}.gguf" for name in heads]
    for model, (head, _) in zip(models, heads.values(), strict=True):
        model.write_bytes(head)
        os.truncate(model, 1 << 36)
    answers = together(*(("inspect", model) for model in models))
    for model, (_, part), answer in zip(models, heads.values(), answers, strict=True):
        answer.failed(3, model, part).quickly()


def split(folder: Path) -> list[Path]:
    """A model in three parts."""
    write_tiny(folder / "m.gguf", n_layer=1, split_max_tensors=5)
    return sorted(folder.glob("m-*-of-*.gguf"))


def test_row_9_split_files(tmp_path: Path) -> None:
    """A part that is missing, two that are swapped, one of another model; from any part."""
    (tmp_path / "missing").mkdir()
    missing = split(tmp_path / "missing")
    missing[1].unlink()
    (tmp_path / "swapped").mkdir()
    swapped = split(tmp_path / "swapped")
    kept = swapped[1].read_bytes()
    swapped[1].write_bytes(swapped[2].read_bytes())
    swapped[2].write_bytes(kept)
    (tmp_path / "other").mkdir()
    other = split(tmp_path / "other")
    (tmp_path / "another").mkdir()
    write_tiny(tmp_path / "another" / "m.gguf", n_layer=1, tied=True, split_max_tensors=5)
    other[1].write_bytes((tmp_path / "another" / other[1].name).read_bytes())
    before = contents(tmp_path)
    answers = together(
        ("inspect", missing[0]), ("run", "-m", missing[2], "-p", "a"), ("inspect", swapped[0]),
        ("quantize", swapped[1], tmp_path / "o", "Q8_0"), ("inspect", other[0]), ("run", "-m", other[0], "-p", "a"),
    )  # fmt: skip
    expected = [("m-00002-of-00003.gguf", "missing")] * 2 + [("swapped",)] * 2 + [("another model",)] * 2
    for answer, parts in zip(answers, expected, strict=True):
        answer.failed(3, *parts).quickly()
    assert contents(tmp_path) == before
