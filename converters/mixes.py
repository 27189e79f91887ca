"""The file types that localmoe writes, as data: which tensors of each get another type than most.

Source: llama.cpp's src/llama-quant.cpp (llama_ftype_get_default_type, llama_tensor_get_type_impl). `recipe` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType


@dataclass(frozen=True)
class Rule:
    """A type where `when` holds (see `recipe`), and what the other layers get: None for the file type's default."""

    when: str
    type: Type
    otherwise: Type | Rule | None = None


@dataclass(frozen=True)
class Recipe:
    """One file type: its number in `general.file_type`, the type of most tensors, and the exceptions by category.

    `attn_of_8` (values and keys) and `attn_output_of_8` are for models of exactly 8 experts; `*_with_imatrix` replaces
    the rule of that name where there is an importance matrix. `token_embd` is for an embedding that is not also the
    output. `unstacked` is the type of everything but stacks of experts, which get `default`. `low` marks the types that
    llama.cpp has rules of their own for. Without a matrix only embedding and output may be `needs_imatrix`, or one of
    `NEED_IMATRIX`, in any file type.
    """

    name: str
    file_type: LlamaFileType
    default: Type
    attn_v: Rule | None = None
    ffn_down: Rule | None = None
    attn_v_with_imatrix: Rule | None = None
    ffn_down_with_imatrix: Rule | None = None
    ffn_gate_up: Rule | None = None
    attn_qk: Type | None = None
    attn_of_8: Type = Type.Q8_0
    attn_output: Type | None = None
    attn_output_of_8: Type | None = None
    token_embd: Type | None = None
    output: Type = Type.Q6_K
    unstacked: Type | None = None
    low: bool = False
    needs_imatrix: Type | None = None


def _low(better: Type) -> tuple[Rule, Rule]:
    """Values and down projections of the mixes around 2 bits and below."""
    return Rule("shared_by_4_or_4_experts", Type.Q4_K, better), Rule("first_eighth", better)


NEED_IMATRIX = (Type.IQ3_XXS, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ1_S, Type.IQ1_M)

_F = LlamaFileType
_LOW = MappingProxyType({"attn_of_8": Type.Q4_K, "attn_output_of_8": Type.Q5_K, "output": Type.Q5_K})
_TABLE = (
    Recipe("F32", _F.ALL_F32, Type.F32),
    Recipe("F16", _F.MOSTLY_F16, Type.F16),
    Recipe("BF16", _F.MOSTLY_BF16, Type.BF16),
    Recipe("Q8_0", _F.MOSTLY_Q8_0, Type.Q8_0, output=Type.Q8_0),
    Recipe("Q4_0", _F.MOSTLY_Q4_0, Type.Q4_0, ffn_down_with_imatrix=Rule("first_eighth", Type.Q4_1)),
    Recipe("Q4_1", _F.MOSTLY_Q4_1, Type.Q4_1),
    Recipe("Q5_0", _F.MOSTLY_Q5_0, Type.Q5_0, ffn_down_with_imatrix=Rule("first_eighth", Type.Q5_1)),
    Recipe("Q5_1", _F.MOSTLY_Q5_1, Type.Q5_1),
    Recipe("IQ4_NL", _F.MOSTLY_IQ4_NL, Type.IQ4_NL, Rule("shared_by_4", Type.Q5_K), Rule("first_eighth", Type.Q5_K),
           ffn_down_with_imatrix=Rule("always", Type.IQ4_NL), attn_output_of_8=Type.Q5_K),
    Recipe("IQ4_XS", _F.MOSTLY_IQ4_XS, Type.IQ4_XS, Rule("shared_by_4", Type.Q5_K), Rule("first_eighth", Type.Q5_K),
           ffn_down_with_imatrix=Rule("always", Type.IQ4_XS), attn_output_of_8=Type.Q5_K),
    Recipe("IQ1_S", _F.MOSTLY_IQ1_S, Type.IQ1_S, *_low(Type.Q2_K), token_embd=Type.Q2_K, attn_output=Type.IQ2_XXS,
           low=True, **_LOW),
    Recipe("IQ1_M", _F.MOSTLY_IQ1_M, Type.IQ1_M, *_low(Type.Q2_K), token_embd=Type.Q2_K, attn_output=Type.IQ2_XXS,
           low=True, **_LOW),
    Recipe("IQ2_XXS", _F.MOSTLY_IQ2_XXS, Type.IQ2_XXS, *_low(Type.Q2_K), token_embd=Type.Q2_K, low=True, **_LOW),
    Recipe("IQ2_XS", _F.MOSTLY_IQ2_XS, Type.IQ2_XS, *_low(Type.Q2_K), token_embd=Type.Q2_K, low=True, **_LOW),
    Recipe("IQ2_S", _F.MOSTLY_IQ2_S, Type.IQ2_XS, *_low(Type.IQ3_S), token_embd=Type.IQ3_S,
           attn_output=Type.IQ3_S, low=True, **_LOW),
    Recipe("IQ2_M", _F.MOSTLY_IQ2_M, Type.IQ2_S, *_low(Type.IQ3_S), token_embd=Type.IQ3_S,
           attn_output=Type.IQ3_S, low=True, **_LOW),
    Recipe("IQ3_XXS", _F.MOSTLY_IQ3_XXS, Type.IQ3_XXS, Rule("shared_by_4", Type.Q4_K, Type.IQ3_S),
           Rule("first_eighth", Type.Q4_K, Type.Q3_K), Rule("shared_by_4", Type.Q4_K), Rule("always", Type.IQ3_XXS),
           attn_qk=Type.IQ2_S, attn_output=Type.IQ3_S, attn_output_of_8=Type.Q5_K, token_embd=Type.IQ3_S,
           output=Type.Q5_K),
    Recipe("IQ3_XS", _F.MOSTLY_IQ3_XS, Type.IQ3_S, Rule("shared_by_4", Type.Q4_K), attn_qk=Type.IQ3_XXS,
           ffn_gate_up=Rule("middle", Type.IQ3_XXS), attn_output_of_8=Type.Q5_K),
    Recipe("IQ3_S", _F.MOSTLY_IQ3_S, Type.IQ3_S, Rule("shared_by_4", Type.Q4_K), attn_output_of_8=Type.Q5_K),
    Recipe("IQ3_M", _F.MOSTLY_IQ3_M, Type.IQ3_S, Rule("always", Type.Q4_K),
           Rule("first_eighth_or_more_bits_of_8", Type.Q4_K), attn_output=Type.Q4_K, attn_output_of_8=Type.Q5_K),
    Recipe("Q2_K", _F.MOSTLY_Q2_K, Type.Q2_K, Rule("shared_by_4", Type.Q4_K, Type.Q3_K), Rule("always", Type.Q3_K),
           attn_output=Type.Q3_K, attn_output_of_8=Type.Q5_K),
    Recipe("Q2_K_S", _F.MOSTLY_Q2_K_S, Type.Q2_K, Rule("shared_by_4", Type.Q4_K), Rule("first_eighth", Type.Q4_K),
           needs_imatrix=Type.Q2_K),
    Recipe("Q3_K_S", _F.MOSTLY_Q3_K_S, Type.Q3_K, attn_output_of_8=Type.Q5_K),
    Recipe("Q3_K_M", _F.MOSTLY_Q3_K_M, Type.Q3_K, Rule("first_two", Type.Q5_K, Type.Q4_K),
           Rule("first_sixteenth", Type.Q5_K, Type.Q4_K), attn_output=Type.Q4_K, attn_output_of_8=Type.Q5_K),
    Recipe("Q3_K_L", _F.MOSTLY_Q3_K_L, Type.Q3_K, Rule("always", Type.Q5_K), Rule("always", Type.Q5_K),
           attn_output=Type.Q5_K),
    Recipe("Q4_K_S", _F.MOSTLY_Q4_K_S, Type.Q4_K, Rule("first_four", Type.Q5_K), Rule("first_eighth", Type.Q5_K),
           attn_output_of_8=Type.Q5_K),
    Recipe("Q4_K_M", _F.MOSTLY_Q4_K_M, Type.Q4_K, Rule("more_bits", Type.Q6_K), Rule("more_bits", Type.Q6_K),
           attn_output_of_8=Type.Q5_K),
    Recipe("Q5_K_S", _F.MOSTLY_Q5_K_S, Type.Q5_K),
    Recipe("Q5_K_M", _F.MOSTLY_Q5_K_M, Type.Q5_K, Rule("more_bits", Type.Q6_K), Rule("more_bits", Type.Q6_K)),
    Recipe("Q6_K", _F.MOSTLY_Q6_K, Type.Q6_K),
    Recipe("TQ1_0", _F.MOSTLY_TQ1_0, Type.TQ1_0, token_embd=Type.Q4_K),
    Recipe("TQ2_0", _F.MOSTLY_TQ2_0, Type.TQ2_0, token_embd=Type.Q4_K),
    Recipe("MXFP4_MOE", _F.MOSTLY_MXFP4_MOE, Type.MXFP4, output=Type.Q8_0, unstacked=Type.Q8_0),
)  # fmt: skip
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _TABLE})
ALIASES: Mapping[str, str] = MappingProxyType({"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"})

# What llama.cpp gives Falcon instead
_FALCON_DOWN: dict[str, Rule | None] = {
    "Q3_K_M": Rule("first_sixteenth", Type.Q5_K, Rule("more_bits", Type.Q4_K)),
    "Q3_K_L": Rule("always", Type.Q4_K),
    "Q4_K_S": None,
    "Q4_K_M": Rule("first_sixteenth", Type.Q6_K, Rule("more_bits", Type.Q5_K)),
}


def of_architecture(recipe: Recipe, arch: str) -> Recipe:
    """The recipe as llama.cpp has it for models of one architecture, by its name in GGUF."""
    if arch != "falcon":
        return recipe
    down = _FALCON_DOWN.get(recipe.name, recipe.ffn_down)
    recipe = replace(recipe, output=Type.Q8_0, ffn_down=down)
    if recipe.low:
        return recipe
    attn_output = Type.Q4_K if recipe.name == "Q3_K_L" else None
    return replace(recipe, attn_output=attn_output, attn_output_of_8=attn_output)
