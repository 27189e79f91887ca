"""The codes of types are those of the package gguf."""

from __future__ import annotations

import gguf
import pytest

from localmoe import ggml


@pytest.mark.parametrize("name", ["GGMLQuantizationType", "GGUFValueType"])
def test_codes_and_names_are_those_of_gguf(name: str) -> None:
    ours = {member.name: member for member in getattr(ggml, name)}
    for theirs in getattr(gguf, name):
        assert ours[theirs.name] == theirs
        assert hash(ours[theirs.name]) == hash(theirs)  # both are keys of the same tables


def test_sizes_of_blocks_are_those_of_gguf() -> None:
    for kind, size in gguf.GGML_QUANT_SIZES.items():
        assert ggml.GGML_QUANT_SIZES[kind] == size  # type: ignore[index]
