"""Which type each tensor gets: llama-quantize's rules over `mixes`.

Source: llama.cpp's src/llama-quant.cpp (tensor_allows_quantization, tensor_get_category, llama_tensor_get_type_impl,
tensor_type_fallback). Rules depend on tensors seen before, so a plan is made for all tensors in file order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type

from localmoe.errors import BadInputError, UsageError
from localmoe.quants.formats import FORMATS, parse_type

from .mixes import ALIASES, RECIPES, Recipe, Rule, of_architecture
from .source import SourceModel, SourceTensor

COPY = "COPY"  # every tensor as it is: for sources that are quantized already

# The types llama.cpp's converter writes by itself; it keeps its own order of tensors
CONVERTER_TYPES = ("F32", "F16", "BF16", "Q8_0")

# A category is the first whose part of a name fits; attn_qkv and attn_kv_b count as attn_v
_CATEGORIES = (
    ("attn_qkv.weight", "attn_v"), ("attn_kv_b.weight", "attn_v"), ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"), ("attn_q.weight", "attn_q"), ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"), ("ffn_gate", "ffn_gate"), ("ffn_down", "ffn_down"),
)  # fmt: skip

_NEVER = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_NEVER_IN = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight",
        "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip
_NEVER_BELOW_Q8_0 = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
_NEVER_EXACTLY = ("position_embd.weight", "token_types.weight")
_LARGE_EMBEDDING = "per_layer_token_embd.weight"  # --tensor-type may name it beside --token-embedding-type
_EMBEDDINGS = ("token_embd.weight", _LARGE_EMBEDDING)
_COUNTED = ("attn_v", "ffn_down", "ffn_gate", "ffn_up")
_LAYER = re.compile(r"blk\.(\d+)")

# architectures whose deepest models llama.cpp calls 70B, by block count: attn_v is then never below Q5_K
_70B_LAYERS = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True)
class Options:
    """What a user may change: see `localmoe quantize --help`. `overrides` are (regular expression, type).

    `files` are those that this was read from, none of which may be written over.
    """

    pure: bool = False
    overrides: tuple[tuple[re.Pattern[str], Type], ...] = ()
    output_type: Type | None = None
    token_embedding_type: Type | None = None
    leave_output: bool = False
    has_imatrix: bool = False
    files: tuple[Path, ...] = ()

    @property
    def named(self) -> list[str]:
        """The options in use that give a tensor a type, as a command line calls them."""
        used = {
            "--pure": self.pure, "--tensor-type": bool(self.overrides), "--imatrix": self.has_imatrix,
            "--output-tensor-type": self.output_type is not None,
            "--token-embedding-type": self.token_embedding_type is not None,
        }  # fmt: skip
        return [name for name, is_used in used.items() if is_used]


@dataclass(frozen=True)
class Choice:
    """The type a tensor is written as, and why it is another than the rules': "" or a sentence to announce."""

    tensor: SourceTensor
    type: Type
    notice: str = ""


@dataclass
class _State:
    """What the rules count on their way through the tensors."""

    recipe: Recipe
    options: Options
    arch: str
    n_layer: int
    n_expert: int
    n_attn_v: int
    tied: bool
    is_70b: bool
    n_shared: int
    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))


def find_recipe(file_type: str) -> Recipe:
    """The recipe of a file type's name in any case, or its number; UsageError lists those there are."""
    name = file_type.strip().upper()
    recipe = RECIPES.get(ALIASES.get(name, name))
    recipe = recipe or next((one for one in RECIPES.values() if name == str(int(one.file_type))), None)
    if recipe is None:
        raise UsageError("unknown file type", got=file_type, expected=f"one of {', '.join(RECIPES)}")
    return recipe


def parse_options(
    *,
    pure: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output: bool = False,
    files: Sequence[Path] = (),
) -> Options:
    """Options from what a command line holds; UsageError for a type or expression that is none."""
    compiled = []
    for expression, type_name in overrides:
        try:
            pattern = re.compile(expression.lower())  # as llama-quantize does: a tensor's name has small letters
        except re.error as error:
            raise UsageError(f"not a regular expression: {error}", got=expression) from None
        compiled.append((pattern, parse_type(type_name)))
    return Options(
        pure=pure,
        overrides=tuple(compiled),
        output_type=parse_type(output_type) if output_type else None,
        token_embedding_type=parse_type(token_embedding_type) if token_embedding_type else None,
        leave_output=leave_output,
        files=tuple(files),
    )


def category(name: str) -> str:
    """What a tensor is to the rules, from its name."""
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "token_embd"
    return next((kind for part, kind in _CATEGORIES if part in name), "other")


def may_quantize(tensor: SourceTensor, arch: str = "") -> bool:
    """Whether the tensor is ever written in another type: matrices, but no norms, routers and small extras."""
    name = tensor.name
    has_rows = any(axis > 1 for axis in tensor.shape[:-1])
    if not has_rows or not name.endswith("weight") or name in _NEVER_EXACTLY:
        return False
    return not any(part in name for part in (*_NEVER, *_NEVER_IN.get(arch, ())))


def file_order(model: SourceModel, file_type: str) -> list[SourceTensor]:
    """Tensors as they are written: llama-quantize's order (layer, then name), or the converter's own."""
    if file_type == COPY or model.keep_order or (model.origin == "checkpoint" and file_type in CONVERTER_TYPES):
        return list(model.tensors)
    return sorted(model.tensors, key=lambda tensor: (_layer_of(tensor.name), tensor.name.encode()))


def _layer_of(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def choose_types(model: SourceModel, file_type: str, options: Options) -> Iterator[Choice]:
    """A choice for every tensor, in file order.

    UsageError: unknown file type, or COPY with an option that changes types (llama-quantize ignores those silently).
    BadInputError: an impossible layer.
    """
    if file_type == COPY:
        if options.named:
            raise UsageError(f"{COPY} keeps the type of every tensor, and has no use for {', '.join(options.named)}")
        yield from (Choice(tensor, tensor.type) for tensor in model.tensors)
        return
    arch = _architecture(model)
    recipe = of_architecture(find_recipe(file_type), arch)
    tensors = file_order(model, recipe.name)
    state = _start(model, tensors, recipe, options)
    for tensor in tensors:
        if options.leave_output and category(tensor.name) == "output":
            yield Choice(tensor, tensor.type)
        elif may_quantize(tensor, arch):
            chosen = _choose(state, tensor, model.label)
            yield _fitting(tensor, chosen) if FORMATS[recipe.default].quantized else Choice(tensor, chosen)
        else:
            yield Choice(tensor, Type.F32 if model.origin == "checkpoint" else tensor.type)


def _start(model: SourceModel, tensors: Sequence[SourceTensor], recipe: Recipe, options: Options) -> _State:
    names = [tensor.name for tensor in tensors]
    n_attn_v = sum(category(name) == "attn_v" for name in names)
    tied = "output.weight" not in names
    arch, n_layer, n_expert = _architecture(model), model.n_layer, model.n_expert
    return _State(recipe, options, arch, n_layer, n_expert, n_attn_v, tied, _is_70b(model), _shared(model))


def _architecture(model: SourceModel) -> str:
    entry = model.metadata.get("general.architecture")
    return str(entry.value) if entry else ""


def _is_70b(model: SourceModel) -> bool:
    arch = _architecture(model)
    if _70B_LAYERS.get(arch) != model.n_layer:
        return False
    if arch != "llama":
        return True
    heads, kv = _heads(model)
    return model.n_expert != 8 and heads != kv


def _heads(model: SourceModel) -> tuple[int, int]:
    """Query heads, and the heads of keys and values, of the first layer; 0 where the metadata does not say."""
    arch = _architecture(model)
    query = model.metadata.get(f"{arch}.attention.head_count")
    kv = model.metadata.get(f"{arch}.attention.head_count_kv", query)
    numbers = [0 if entry is None else int(np.ravel(entry.value)[0]) for entry in (query, kv)]
    return numbers[0], numbers[1]


def _shared(model: SourceModel) -> int:
    """Query heads that share a head of keys and values."""
    heads, kv = _heads(model)
    return heads // kv if kv else 0


def _choose(state: _State, tensor: SourceTensor, label: str) -> Type:
    """The type by options and rules, before it is checked that rows divide into its blocks."""
    options, recipe, kind = state.options, state.recipe, category(tensor.name)
    named = next((type_ for pattern, type_ in options.overrides if pattern.search(tensor.name)), None)
    apart = tensor.name == _LARGE_EMBEDDING and named is not None
    if kind == "token_embd" and options.token_embedding_type is not None and not apart:
        return options.token_embedding_type
    if kind == "output" and options.output_type is not None:
        return options.output_type
    if not FORMATS[recipe.default].quantized:
        return recipe.default
    if named is not None:
        return named
    return recipe.default if options.pure else _by_rule(state, tensor, kind, label)


def _by_rule(state: _State, tensor: SourceTensor, kind: str, label: str) -> Type:
    recipe, eight = state.recipe, state.n_expert == 8
    if any(part in tensor.name for part in _NEVER_BELOW_Q8_0.get(state.arch, ())):
        return Type.Q8_0
    if kind == "output" or (kind == "token_embd" and state.tied):
        return _output_type(state, tensor)
    if recipe.unstacked is not None:
        return recipe.default if _is_stack(state, tensor, kind) else recipe.unstacked
    if kind == "attn_v":
        return _attn_v_type(state)
    if kind == "attn_k" and eight:
        return recipe.attn_of_8
    if kind == "attn_output":
        return (recipe.attn_output_of_8 if eight else recipe.attn_output) or recipe.default
    if kind in ("ffn_down", "ffn_gate", "ffn_up"):
        return _feed_forward_type(state, tensor.name, kind, label)
    plain = {"token_embd": recipe.token_embd, "attn_k": recipe.attn_qk, "attn_q": recipe.attn_qk}
    return plain.get(kind) or recipe.default


def _is_stack(state: _State, tensor: SourceTensor, kind: str) -> bool:
    """Whether a tensor is matrices of several experts to the rules."""
    if state.arch == "bailingmoe3" and kind not in ("ffn_down", "ffn_gate", "ffn_up"):
        return False
    return len(tensor.shape) > 2 and tensor.shape[-3] > 1


def _output_type(state: _State, tensor: SourceTensor) -> Type:
    """The type of the output matrix (or the embedding that serves as one): Q8_0 where rows do not divide."""
    if state.options.output_type is not None:
        return state.options.output_type
    default = state.recipe.default
    return Type.Q8_0 if tensor.n_columns % FORMATS[default].block_size else state.recipe.output


def _attn_v_type(state: _State) -> Type:
    recipe, layer = state.recipe, state.seen["attn_v"]
    state.seen["attn_v"] += 1
    rule = recipe.attn_v_with_imatrix if state.options.has_imatrix else None
    chosen = _apply(state, rule or recipe.attn_v, layer, state.n_attn_v)
    if state.is_70b and not recipe.low and chosen in (Type.Q3_K, Type.Q4_K):
        chosen = Type.Q5_K
    return recipe.attn_of_8 if state.n_expert == 8 else chosen


def _feed_forward_type(state: _State, name: str, kind: str, label: str) -> Type:
    recipe, layer = state.recipe, state.seen[kind]
    if state.n_expert > 1 and not recipe.low:  # counting is enough for the lowest, whose layers come in order
        _check_layer(state, name, label)
        layer = _layer_of(name)
    state.seen[kind] += 1
    if kind != "ffn_down":
        return _apply(state, recipe.ffn_gate_up, layer, state.n_layer)
    rule = recipe.ffn_down_with_imatrix if state.options.has_imatrix else None
    return _apply(state, rule or recipe.ffn_down, layer, state.n_layer)


def _check_layer(state: _State, name: str, label: str) -> None:
    layer = _layer_of(name)
    if not 0 <= layer < state.n_layer:
        raise BadInputError(
            "the layer is not in the model", file=label, item=name, expected=f"0 to {state.n_layer - 1}"
        )


def _apply(state: _State, rule: Rule | None, layer: int, n: int) -> Type:
    """What the rule says of layer `layer` of `n`."""
    default = state.recipe.default
    if rule is None:
        return default
    if _applies(state, rule.when, layer, n):
        return rule.type
    return _apply(state, rule.otherwise, layer, n) if isinstance(rule.otherwise, Rule) else rule.otherwise or default


def _applies(state: _State, when: str, layer: int, n: int) -> bool:
    """Whether a rule's condition holds for layer `layer` of `n`, in llama.cpp's integer arithmetic."""
    return {
        "always": True,
        "more_bits": _more_bits(layer, n),
        "first_eighth": layer < n // 8,
        "first_sixteenth": layer < n // 16,
        "first_two": layer < 2,
        "first_four": layer < 4,
        "middle": n // 8 <= layer < 7 * n // 8,
        "first_eighth_or_more_bits_of_8": layer < n // 8 or (state.n_expert == 8 and _more_bits(layer, n)),
        "shared_by_4": state.n_shared >= 4,
        "shared_by_4_or_4_experts": state.n_shared >= 4 or state.n_expert >= 4,
    }[when]


def _more_bits(layer: int, n: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    return layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2


def _fitting(tensor: SourceTensor, wanted: Type) -> Choice:
    """`wanted` if the rows divide into its blocks, else its fallback, else F16; announced."""
    columns, size = tensor.n_columns, FORMATS[wanted].block_size
    if columns % size == 0:
        return Choice(tensor, wanted)
    instead = FORMATS[wanted].fallback or wanted
    if columns % FORMATS[instead].block_size:
        instead = Type.F16
    notice = (
        f"{tensor.name}: rows of {columns} do not divide into blocks of {size} ({wanted.name}): {instead.name} instead"
    )
    return Choice(tensor, instead, notice)
