"""One table of what GGUF's tensor types are: a block's size, its bytes, its fields, and who can read and write it.

Field offsets are those of ggml's `block_*` structs (ggml-common.h); names are ggml's. Sizes come from `gguf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from localmoe.errors import BadInputError, UsageError
from localmoe.ggml import GGML_QUANT_SIZES, GGMLQuantizationType

Type: TypeAlias = GGMLQuantizationType
Activation = Literal["f32", "q8_0", "q8_k"]


@dataclass(frozen=True)
class Format:
    """What a block of one type is.

    `fields` maps a field of the block to its (offset, bytes); `scales` names the float16 ones among them. `activation`
    is the form a kernel wants the other operand in: float32, int8 per 32 or int8 per 256. `fallback` is what
    llama-quantize writes instead where rows do not divide into blocks (F16 where that does not divide either).
    """

    type: GGMLQuantizationType
    block_size: int
    block_bytes: int
    fields: Mapping[str, tuple[int, int]]
    scales: tuple[str, ...] = ()
    activation: Activation = "f32"
    fallback: GGMLQuantizationType | None = None
    decodes: bool = False
    encodes: bool = False

    @property
    def name(self) -> str:
        """ggml's name in capitals: `Q4_K`."""
        return self.type.name

    @property
    def quantized(self) -> bool:
        """Whether elements come in blocks that share scales."""
        return self.block_size > 1

    def row_bytes(self, n_columns: int) -> int:
        """Bytes of a row; `n_columns` must divide into blocks."""
        assert n_columns % self.block_size == 0
        return n_columns // self.block_size * self.block_bytes


_Fields = tuple[tuple[str, int], ...]  # name and bytes, in the order they lie in the block

# type, fields, activations, fallback, can be decoded, can be encoded
_TABLE: tuple[tuple[Type, _Fields, Activation, Type | None, bool, bool], ...] = (
    (Type.F32, (("x", 4),), "f32", None, True, True),
    (Type.F16, (("x", 2),), "f32", None, True, True),
    (Type.BF16, (("x", 2),), "f32", None, True, True),
    (Type.Q8_0, (("d", 2), ("qs", 32)), "q8_0", None, True, True),
    (Type.Q4_0, (("d", 2), ("qs", 16)), "q8_0", None, True, True),
    (Type.Q4_1, (("d", 2), ("m", 2), ("qs", 16)), "q8_0", None, True, True),
    (Type.Q5_0, (("d", 2), ("qh", 4), ("qs", 16)), "q8_0", None, True, True),
    (Type.Q5_1, (("d", 2), ("m", 2), ("qh", 4), ("qs", 16)), "q8_0", None, True, True),
    (Type.Q2_K, (("scales", 16), ("qs", 64), ("d", 2), ("dmin", 2)), "q8_k", Type.Q4_0, True, True),
    (Type.Q3_K, (("hmask", 32), ("qs", 64), ("scales", 12), ("d", 2)), "q8_k", Type.Q4_0, True, True),
    (Type.Q4_K, (("d", 2), ("dmin", 2), ("scales", 12), ("qs", 128)), "q8_k", Type.Q5_0, True, True),
    (Type.Q5_K, (("d", 2), ("dmin", 2), ("scales", 12), ("qh", 32), ("qs", 128)), "q8_k", Type.Q5_1, True, True),
    (Type.Q6_K, (("ql", 128), ("qh", 64), ("scales", 16), ("d", 2)), "q8_k", Type.Q8_0, True, True),
    (Type.IQ4_NL, (("d", 2), ("qs", 16)), "q8_0", None, True, True),
    (Type.IQ4_XS, (("d", 2), ("scales_h", 2), ("scales_l", 4), ("qs", 128)), "q8_k", Type.IQ4_NL, True, True),
    (Type.IQ3_S, (("d", 2), ("qs", 64), ("qh", 8), ("signs", 32), ("scales", 4)), "q8_k", Type.IQ4_NL, True, True),
    (Type.IQ3_XXS, (("d", 2), ("qs", 96)), "q8_k", Type.IQ4_NL, True, True),
    (Type.IQ2_S, (("d", 2), ("qs", 64), ("qh", 8), ("scales", 8)), "q8_k", Type.IQ4_NL, True, True),
    (Type.IQ2_XS, (("d", 2), ("qs", 64), ("scales", 8)), "q8_k", Type.IQ4_NL, True, True),
    (Type.IQ2_XXS, (("d", 2), ("qs", 64)), "q8_k", Type.IQ4_NL, True, True),
    (Type.IQ1_S, (("d", 2), ("qs", 32), ("qh", 16)), "q8_k", Type.IQ4_NL, True, True),
    (Type.IQ1_M, (("qs", 32), ("qh", 16), ("scales", 8)), "q8_k", Type.IQ4_NL, True, True),
    (Type.TQ1_0, (("qs", 48), ("qh", 4), ("d", 2)), "q8_k", Type.Q4_0, True, True),
    (Type.TQ2_0, (("qs", 64), ("d", 2)), "q8_k", Type.Q4_0, True, True),
    (Type.MXFP4, (("e", 1), ("qs", 16)), "q8_0", None, True, True),
)


def _offsets(fields: _Fields) -> dict[str, tuple[int, int]]:
    offsets, at = {}, 0
    for name, size in fields:
        offsets[name] = (at, size)
        at += size
    return offsets


def _format(
    type_: Type, fields: _Fields, activation: Activation, fallback: Type | None, decodes: bool, encodes: bool
) -> Format:
    size, n_bytes = GGML_QUANT_SIZES[type_]
    assert sum(width for _, width in fields) == n_bytes
    scales = tuple(name for name, width in fields if name in ("d", "dmin", "m") and width == 2)
    layout = MappingProxyType(_offsets(fields))
    return Format(type_, size, n_bytes, layout, scales, activation, fallback, decodes, encodes)


FORMATS: Mapping[GGMLQuantizationType, Format] = MappingProxyType({row[0]: _format(*row) for row in _TABLE})


def format_of(type_: GGMLQuantizationType, *, file: str | None = None, item: str | None = None) -> Format:
    """The format of a type, or a BadInputError that names the tensor if localmoe does not know it."""
    known = FORMATS.get(type_)
    if known is None:
        supported = ", ".join(f.name for f in FORMATS.values())
        raise BadInputError(
            "type is not supported", file=file, item=item, got=type_.name, expected=f"one of {supported}"
        )
    return known


def stored_format(type_: GGMLQuantizationType) -> Format:
    """How a type lies in a file: of one that localmoe does not know the sizes alone, which copying takes."""
    return FORMATS.get(type_) or Format(type_, *GGML_QUANT_SIZES[type_], fields=MappingProxyType({}))


def parse_type(name: str) -> GGMLQuantizationType:
    """A type from its name in any case, as a command line gives it; UsageError if it cannot be written."""
    wanted = name.strip().upper()
    for form in FORMATS.values():
        if form.name == wanted and form.encodes:
            return form.type
    expected = ", ".join(f.name for f in FORMATS.values() if f.encodes)
    raise UsageError("unknown tensor type", got=name, expected=f"one of {expected}")
