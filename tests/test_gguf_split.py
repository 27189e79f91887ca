"""Split GGUF files: any part opens the whole, and a wrong part is named (acceptance row 9)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localmoe.errors import BadInputError
from localmoe.gguf_file import open_gguf
from tests.tiny import write_tiny


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_tiny(tmp_path / "whole.gguf", n_layer=1)
    write_tiny(tmp_path / "m.gguf", n_layer=1, split_max_tensors=5)
    return sorted(tmp_path.glob("m-*-of-*.gguf"))


def test_split_file_opens_from_any_part(parts: list[Path]) -> None:
    assert len(parts) == 3
    with open_gguf(parts[0].with_name("whole.gguf")) as whole:
        for part in parts:
            with open_gguf(part) as joined:
                assert joined.parts == tuple(parts)
                assert joined.metadata.keys() == whole.metadata.keys()
                assert list(joined.tensors) == list(whole.tensors)
                assert all(np.array_equal(joined.raw(name), whole.raw(name)) for name in whole.tensors)


def test_row_9_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(BadInputError, match=r"parts are missing: m-00002-of-00003\.gguf, got 2, expected 3"):
        open_gguf(parts[0])


def test_row_9_swapped_parts_are_named(parts: list[Path]) -> None:
    kept = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(kept)
    with pytest.raises(BadInputError, match=r"m-00002-of-00003\.gguf: split\.no: parts are swapped, got 2, expected 1"):
        open_gguf(parts[0])
    with pytest.raises(BadInputError, match="parts are swapped"):
        open_gguf(parts[1])


def test_row_9_renamed_part_says_what_it_should_be_called(parts: list[Path]) -> None:
    odd = parts[0].rename(parts[0].with_name("odd.gguf"))
    with pytest.raises(BadInputError, match=r"expected a name that ends in -00001-of-00003\.gguf"):
        open_gguf(odd)


@pytest.mark.parametrize("fields", [{"n_expert": 0, "n_layer": 2}, {"n_layer": 1, "tied": True}])
def test_row_9_part_of_another_model_is_named(parts: list[Path], tmp_path: Path, fields: dict[str, object]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    limit = 8 if fields.get("n_layer") == 2 else 5
    write_tiny(other / "m.gguf", split_max_tensors=limit, **fields)
    parts[1].write_bytes((other / parts[1].name).read_bytes())
    with pytest.raises(BadInputError, match=r"m-00002-of-00003\.gguf: .*part of another model"):
        open_gguf(parts[0])
