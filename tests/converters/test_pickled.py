"""Pickled weights: read as they are stored, and nothing in them is run."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from localmoe.converters.pickled import read_pickled
from localmoe.errors import BadInputError
from tests.pickles import TABLE, payloads, tensor, text, write_torch
from tests.slowness import slowness

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_that_pytorch_saved(protocol: int) -> None:
    """Made by PyTorch 2.13 from an OrderedDict: float32, a bfloat16 Parameter, a view of the first, float16."""
    path = DATA / f"torch-saved-{protocol}.pth"
    found = read_pickled(path, path)
    assert list(found) == ["a", "b", "c", "h"]
    assert [t.dtype for t in found.values()] == ["F32", "BF16", "F32", "F16"]
    np.testing.assert_array_equal(found["a"].data(), np.arange(12, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(found["c"].data(), found["a"].data()[1:])
    np.testing.assert_array_equal(found["b"].data(), np.full((2, 3), 0x3F80, np.uint16))
    np.testing.assert_array_equal(found["h"].data(), np.full(5, 0.5, np.float16))


def test_what_is_written_here_is_read(tmp_path: Path) -> None:
    """Arrays are views of the file's map, read-only."""
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    path = write_torch(tmp_path / "m.pth", {"x": x, "n": np.arange(3)})
    found = read_pickled(path, path)
    np.testing.assert_array_equal(found["x"].data(), x)
    assert not found["x"].data().flags.writeable
    with pytest.raises(BadInputError, match="n: dtype is not read, got I64"):
        found["n"].data()


def test_payloads_are_refused_and_not_run(tmp_path: Path) -> None:
    for payload, named in payloads(tmp_path / "ran"):
        path = write_torch(tmp_path / "m.pth", {"x": np.ones(2, np.float32)}, extra=payload)
        with pytest.raises(BadInputError, match="could run code: refused, and not run") as error:
            read_pickled(path, path)
        assert named in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (tensor(np.ones(2, np.float32), "0", offset=1), "reaches past its storage"),
        (tensor(np.ones(2, np.float32), "0", offset=-1), "no size"),
        (tensor(np.ones(2, np.float32), "0", n=3), "its storage is of another size"),
        (tensor(np.ones((1, 2), np.float16), "0"), "its storage is of another size"),
        (tensor(np.ones(2, np.float32), "../0"), "its storage is missing"),
        (text("a string"), "is not a tensor"),
        (TABLE, "is not a tensor"),
        (b"h\x07", "damaged"),
        (b"R", "damaged"),
        (b"X\xff\xff\xff\x7fabc", "damaged"),
    ],
)
def test_lies_are_named(tmp_path: Path, item: bytes, reason: str) -> None:
    path = write_torch(tmp_path / "m.pth", {"x": np.ones(2, np.float32)}, extra=item)
    with pytest.raises(BadInputError, match=reason):
        read_pickled(path, path)


@pytest.mark.parametrize("program", [b"", b".", b"\x80\x02N.", b"\x80\x02]q\x00.", b"\x80\x02}.", b"\x80\x02}}."])
def test_pickles_that_are_no_table(tmp_path: Path, program: bytes) -> None:
    path = write_torch(tmp_path / "m.pth", {"x": np.ones(2, np.float32)}, program=program or b"\0")
    with pytest.raises(BadInputError, match=r"damaged|is not a table of tensors|could run code"):
        read_pickled(path, path)


def doubled(n: int) -> bytes:
    """Instructions of a tuple of two tuples of two tuples ...: 2^n values, if anyone looked at them all."""
    pairs = (b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(n))
    return b")q\x00" + b"".join(pairs)


HUGE = doubled(80)


@pytest.mark.parametrize(
    "program",
    [
        b"}" + HUGE + b"Ns.",  # as a name
        b"}" + text("x") + HUGE + b"s.",  # as a tensor
        HUGE + HUGE + b"\x93.",  # as a function's module and name
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor(np.ones(2, np.float32), "0")[36:-20] + HUGE + b"tR.",
        b"(" * 2_000_000 + b"t" * 2_000_000 + b".",
        b"}" * 10_000_000 + b".",
        b"(" * 200_000 + b"t" * 200_000 + b".",
    ],
)
def test_pickles_that_grow_are_refused_at_once(tmp_path: Path, program: bytes) -> None:
    """Values of values, marks on marks: nothing is spelled out in a message, nothing takes the square of its size."""
    path = write_torch(tmp_path / "m.pth", {"x": np.ones(2, np.float32)}, program=b"\x80\x02" + program)
    began = time.thread_time()
    with pytest.raises(BadInputError, match=r"damaged|is not a tensor|is not a table|could run code") as error:
        read_pickled(path, path)
    assert time.thread_time() - began < 4 * slowness()  # what takes the square of 200,000 takes minutes
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["/etc/passwd", "../../outside", "C:\\outside", "a" * 60000])
def test_names_in_the_zip_lead_nowhere(tmp_path: Path, name: str) -> None:
    """Nothing is unpacked: members are places in the file."""
    path = write_torch(tmp_path / "m.pth", {"x": np.ones(2, np.float32)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
        archive.writestr(f"{name}/data.pkl", "x")
    with pytest.raises(BadInputError, match=r"has no data\.pkl"):
        read_pickled(path, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pth"]


def test_files_that_are_no_zip_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    good = write_torch(path, {"x": np.ones(64, np.float32)}).read_bytes()
    for data in (b"", b"PK\5\6", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", good[:-10], good[: len(good) // 2]):
        path.write_bytes(data)
        with pytest.raises(BadInputError, match=r"empty|is no zip file|has no data\.pkl|damaged|truncated"):
            read_pickled(path, path)
    write_torch(path, {"x": np.zeros(64, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadInputError, match="is compressed"):
        read_pickled(path, path)


def test_any_bit_flip_is_refused_or_harmless(tmp_path: Path) -> None:
    """No damage ends in anything but tensors within the file or a BadInputError."""
    path = tmp_path / "m.pth"
    good = write_torch(path, {"x": np.ones((2, 3), np.float32), "y": np.ones(4, np.float16)}).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            found = read_pickled(path, path)
        except BadInputError:
            continue
        assert all(t.array is None or t.array.sum() is not None for t in found.values())
