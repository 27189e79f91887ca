"""The GGUF reader against gguf-py, and against every way a file can be wrong (acceptance rows 1-8, 34, 36)."""

from __future__ import annotations

import os
import random
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from localmoe.errors import BadInputError, FileError, LocalMoeError
from localmoe.gguf_file import MAX_TENSORS, open_gguf, visible
from tests.slowness import least, slowness
from tests.tiny import write_tiny

U8, U32, F32, BOOL, STR, ARR = 0, 4, 6, 7, 8, 9
VOCABULARIES = Path(__file__).parents[1].parent / "shared" / "data" / "vocab"


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def tensor(name: str = "t", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def build(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    """A file by hand; counts can be made to lie."""
    counts = u64(len(tensors) if n_tensors is None else n_tensors) + u64(len(keys) if n_keys is None else n_keys)
    head = magic + u32(version) + counts + b"".join(keys) + b"".join(tensors)
    return head + (b"\0" * (-len(head) % 32) + data if data else b"")


GOOD = build((key("general.name", STR, text("x")),), (tensor(),), np.arange(8, dtype="<f4").tobytes())


def refused(folder: Path, content: bytes) -> str:
    """Write content, expect exit code 3, and give the message, which starts with the file."""
    path = folder / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


def test_good_file_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD)
    with open_gguf(path) as file:
        assert file.version == 3
        assert file.alignment == 32
        assert file.metadata == {"general.name": "x"}
        info = file.tensors["t"]
        assert (info.shape, info.dims, info.n_elements, info.n_bytes) == ((8,), (8,), 8, 32)
        raw = file.raw("t")
        assert not raw.flags.writeable
        assert raw.view("<f4").tolist() == list(range(8))
        assert file.n_bytes == len(GOOD)


def test_version_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD[:4] + u32(2) + GOOD[8:])
    assert open_gguf(path).version == 2


def test_every_value_type_as_gguf_py_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "test")
    values = {
        GGUFValueType.UINT8: 200, GGUFValueType.INT8: -5, GGUFValueType.UINT16: 60000, GGUFValueType.INT16: -300,
        GGUFValueType.UINT32: 1 << 31, GGUFValueType.INT32: -1, GGUFValueType.FLOAT32: 0.5, GGUFValueType.BOOL: True,
        GGUFValueType.STRING: "żółć", GGUFValueType.UINT64: 1 << 63, GGUFValueType.INT64: -(1 << 62),
        GGUFValueType.FLOAT64: 0.1,
    }  # fmt: skip
    for kind, value in values.items():
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"many.{kind.name}", [value, value], GGUFValueType.ARRAY, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = open_gguf(path)
    for kind, value in values.items():
        one, many = file.metadata[f"one.{kind.name}"], file.metadata[f"many.{kind.name}"]
        assert (one, type(one)) == (value, type(value))
        assert list(many) == [value, value]
        assert file.metadata_types[f"one.{kind.name}"] == (kind, None)
        assert file.metadata_types[f"many.{kind.name}"] == (GGUFValueType.ARRAY, kind)
    assert isinstance(file.metadata["many.STRING"], list)
    assert file.metadata["many.BOOL"].dtype == np.bool_


@pytest.mark.parametrize("fields", [{}, {"type": "Q8_0", "vocab": "bpe"}, {"type": "F16", "tied": True, "n_expert": 0}])
def test_agrees_with_gguf_py(tmp_path: Path, fields: dict[str, object]) -> None:
    path = write_tiny(tmp_path / "m.gguf", **fields)
    theirs = GGUFReader(path)
    with open_gguf(path) as ours:
        assert list(ours.tensors) == [t.name for t in theirs.tensors]
        for t in theirs.tensors:
            info = ours.tensors[t.name]
            assert (info.dims, info.type, info.offset) == (tuple(t.shape), t.tensor_type, t.data_offset)
            assert np.array_equal(ours.raw(t.name), t.data.view(np.uint8).reshape(-1))
        for name, value in ours.metadata.items():
            contents = theirs.fields[name].contents()
            assert (list(value) if isinstance(value, (list, np.ndarray)) else value) == contents


@pytest.mark.parametrize(("name", "limit_s"), [("llama-spm", 0.05), ("qwen2", 0.3)])
def test_vocabulary_is_read_fast(name: str, limit_s: float) -> None:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip("the shared vocabularies are not here")
    open_gguf(path).close()
    assert least(3, lambda: open_gguf(path).close()) < limit_s * slowness()


# --- rows 1 to 5 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"GG", "not a GGUF file"),
        (b"PK\x03\x04" + b"\0" * 60, r"magic b'PK\x03\x04'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull` fetches"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"GGUF\x03\0", "offset 4: the version reaches past the end"),
        (GOOD[:20], "past the end"),
    ],
)
def test_row_1_empty_short_or_wrong_magic(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refused(tmp_path, content)


@pytest.mark.parametrize("version", [0, 1, 4, 999])
def test_row_2_versions_are_named(tmp_path: Path, version: int) -> None:
    assert f"got {version}, expected 2 or 3" in refused(tmp_path, build(version=version))


def test_row_2_big_endian_is_named(tmp_path: Path) -> None:
    assert "big-endian GGUF (version 3)" in refused(tmp_path, build(version=3 << 24))


@pytest.mark.parametrize("count", [1 << 63, (1 << 64) - 1, 1 << 40])
@pytest.mark.parametrize("which", ["n_keys", "n_tensors"])
def test_row_3_impossible_counts_fail_at_once(tmp_path: Path, which: str, count: int) -> None:
    start = time.thread_time()
    message = refused(tmp_path, build(**{which: count}))
    assert f"number of {which[2:]} impossible" in message
    assert str(count) in message
    assert time.thread_time() - start < 0.5 * slowness()


def test_row_3_count_that_a_large_file_would_hold_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build(n_tensors=MAX_TENSORS + 1))
    os.truncate(path, 1 << 36)  # sparse
    with pytest.raises(BadInputError, match="number of tensors impossible"):
        open_gguf(path)


@pytest.mark.parametrize(
    "value",
    [
        key("the.key", STR, u64(1 << 62) + b"abc"),
        key("the.key", STR, u64((1 << 64) - 1) + b"abc"),
        key("the.key", ARR, u32(U32) + u64(1 << 61) + b"abcd"),
        key("the.key", ARR, u32(STR) + u64(1 << 60) + b"abcd"),
        key("the.key", ARR, u32(STR) + u64(2) + text("a") + u64(1 << 63)),
        key("the.key", ARR, u32(STR) + u64(2) + text("a") + u64(99)),
        key("the.key", ARR, u32(BOOL) + u64(1000)),
    ],
)
def test_row_4_longer_than_the_file_names_the_key(tmp_path: Path, value: bytes) -> None:
    message = refused(tmp_path, build((value,)))
    assert ": the.key: " in message
    assert "past the end" in message


def test_row_4_metadata_has_a_limit_even_in_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build((key("the.key", ARR, u32(U8) + u64(1 << 35)),)))
    os.truncate(path, 1 << 36)
    start = time.thread_time()
    with pytest.raises(BadInputError, match=r"the\.key: the array makes the metadata too large"):
        open_gguf(path)
    assert time.thread_time() - start < 0.5 * slowness()


def test_row_4_too_many_strings(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build((key("the.key", ARR, u32(STR) + u64((1 << 21) + 1)),)))
    os.truncate(path, 1 << 30)
    with pytest.raises(BadInputError, match=r"the\.key: too many strings, got 2097153"):
        open_gguf(path)


def test_row_5_duplicates(tmp_path: Path) -> None:
    same = key("a.b", U32, u32(1))
    assert "a.b: duplicate key" in refused(tmp_path, build((same, same)))
    assert "t: duplicate tensor" in refused(tmp_path, build((), (tensor(), tensor(offset=32)), b"\0" * 64))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (key("", U32, u32(1)), "empty key"),
        (key("k", 13, u32(1)), "k: unknown value type, got 13"),
        (key("k", ARR, u32(13) + u64(0)), "k: unknown element type, got 13"),
        (key("k", ARR, u32(ARR) + u64(1) + u32(U32) + u64(0)), "k: arrays of arrays are not supported"),
        (key("k", BOOL, b"\x02"), "k: a bool is neither 0 nor 1, got 2"),
        (key("k", ARR, u32(BOOL) + u64(2) + b"\x01\xff"), "k: a bool is neither 0 nor 1, got 255"),
        (key("k", STR, text(b"ab\xff")), "k: the string is not UTF-8 at its byte 2"),
        (key("k", ARR, u32(STR) + u64(2) + text("a") + text(b"\xc3")), "k: string 1 is not UTF-8"),
        (key(b"\xff", U32, u32(1)), "a key is not UTF-8"),
    ],
)
def test_broken_values_name_the_key(tmp_path: Path, value: bytes, expected: str) -> None:
    assert expected in refused(tmp_path, build((value, key("last", STR, text("padding"))), (), b"\0" * 64))


def test_row_34_control_characters_are_made_visible(tmp_path: Path) -> None:
    message = refused(tmp_path, build((key("k\x1b[2J\u202e", 13, u32(1)),)))
    assert r"k\x1b[2J\u202e: unknown value type" in message
    assert visible("a\nb\x7f", 3) == r"a\nb..."


# --- rows 6 to 8 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [0, 13, 4, 1, 48])
def test_row_6_alignment_must_be_a_power_of_two(tmp_path: Path, alignment: int) -> None:
    message = refused(tmp_path, build((key("general.alignment", U32, u32(alignment)),)))
    assert f"general.alignment: is not a valid alignment, got {alignment}" in message


def test_row_6_alignment_must_be_u32(tmp_path: Path) -> None:
    message = refused(tmp_path, build((key("general.alignment", 10, u64(32)),)))
    assert "general.alignment: is of the wrong type, got UINT64, expected UINT32" in message


@pytest.mark.parametrize(
    "dims", [(1 << 32, 1 << 32), (1 << 63,), ((1 << 64) - 1, 2), (0,), (4, 0), (1 << 31, 1 << 31, 4, 1 << 31)]
)
def test_row_7_dimensions_that_wrap_or_vanish(tmp_path: Path, dims: tuple[int, ...]) -> None:
    assert "t: impossible dimensions" in refused(tmp_path, build((), (tensor(dims=dims),), b"\0" * 64))


def test_row_8_tensor_past_the_end_says_needed_and_actual(tmp_path: Path) -> None:
    content = build((), (tensor(dims=(1000,)),), b"\0" * 64)
    start = len(content) - 64
    message = refused(tmp_path, content)
    assert (
        f"t: the tensor reaches past the end of the file, got {len(content)} bytes, expected >= {start + 4000}"
        in message
    )


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ((tensor(dims=()),), "t: number of dimensions, got 0, expected 1 to 4"),
        ((tensor(dims=(1, 1, 1, 1, 1)),), "t: number of dimensions, got 5"),
        ((tensor(kind=99),), "t: unknown tensor type, got 99"),
        ((tensor(kind=4),), "t: unknown tensor type, got 4"),
        ((tensor(dims=(33,), kind=8),), "t: a row of Q8_0 is not whole blocks, got 33, expected a multiple of 32"),
        ((tensor(offset=32),), "t: the tensor's data is not where the one before ends, got offset 32, expected 0"),
        ((tensor(), tensor("u", offset=16)), "u: the tensor's data is not where"),
        ((tensor(), tensor("u", offset=0)), "u: the tensor's data is not where"),
        ((tensor(), tensor("u", offset=64)), "u: the tensor's data is not where"),
        ((tensor(), tensor("u", offset=(1 << 64) - 32)), "u: the tensor's data is not where"),
        ((tensor("n" * 64),), "a tensor's name is too long, got 64 bytes, expected <= 63"),
    ],
)
def test_broken_tensors_are_named(tmp_path: Path, infos: tuple[bytes, ...], expected: str) -> None:
    assert expected in refused(tmp_path, build((), infos, b"\0" * 256))


def test_last_tensor_needs_no_padding_after_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build((), (tensor(dims=(3,)),), np.ones(3, "<f4").tobytes()))
    assert open_gguf(path).raw("t").view("<f4").tolist() == [1, 1, 1]


# --- row 36 and life -------------------------------------------------------------------------------------------------


def test_row_36_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.gguf: cannot be opened: No such file") as caught:
        open_gguf(tmp_path / "none.gguf")
    assert caught.value.exit_code == 4


def test_row_36_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder"):
        open_gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="not a regular file"):
        open_gguf(tmp_path / "pipe")
    with pytest.raises(FileError):
        open_gguf("nul\0byte")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_row_36_permission(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(FileError, match="Permission denied"):
        open_gguf(path)


def test_views_outlive_close(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD)
    with open_gguf(path) as file:
        view = file.raw("t")
    assert view.view("<f4").sum() == 28


def test_damaged_files_give_our_errors_only(tmp_path: Path) -> None:
    """Flip and cut bytes at random: either it opens and every tensor can be read, or it is our error, soon."""
    source = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32, n_ff=32, n_expert=2, n_vocab=400, type="Q8_0")
    good = source.read_bytes()
    with open_gguf(source) as file:
        header = min(info.offset for info in file.tensors.values())
    rng = random.Random(7)
    path = tmp_path / "bad.gguf"
    slowest, messages = 0.0, []
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(24 if rng.random() < 0.1 else header)
            bad[at] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
        if rng.random() < 0.2:
            del bad[rng.randrange(len(bad)) :]
        path.write_bytes(bad)
        start = time.thread_time()
        try:
            with open_gguf(path) as file:
                for name in file.tensors:
                    assert file.raw(name).size == file.tensors[name].n_bytes
        except LocalMoeError as error:
            messages.append(str(error))
        slowest = max(slowest, time.thread_time() - start)
    assert len(messages) > 100
    assert all(map(str.isprintable, messages))
    assert slowest < 2.0 * slowness()


def test_tensor_types_are_gguf_pys(tmp_path: Path) -> None:
    with open_gguf(write_tiny(tmp_path / "m.gguf", type="BF16")) as file:
        assert file.tensors["blk.0.ffn_up_exps.weight"].type == GGMLQuantizationType.BF16
