"""The types chosen, against what llama-quantize chose (recorded by tests/parity/quantize_parity.py)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGUFValueType
from gguf import GGMLQuantizationType as Type

from localmoe.converters.recipe import (
    RECIPES,
    Options,
    category,
    choose_types,
    file_order,
    find_recipe,
    may_quantize,
    parse_options,
)
from localmoe.converters.source import MetaValue, SourceModel, SourceTensor
from localmoe.errors import BadInputError, UsageError
from tests.parity.quantize_parity import IMATRIX, by_kind, shape_model

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((Path(__file__).parent / "data" / "llama_quantize_types.json").read_text())
MIXTRAL = RECORDED["shapes"]["mixtral-8x7b"]


def types(model: SourceModel, file_type: str, options: Options | None = None) -> dict[str, str]:
    return {choice.tensor.name: choice.type.name for choice in choose_types(model, file_type, options or Options())}


def matrix(name: str, *shape: int) -> SourceTensor:
    return SourceTensor(name, shape, Type.F16, [])


@pytest.mark.parametrize("file_type", RECIPES)
@pytest.mark.parametrize("shape", RECORDED["shapes"])
def test_types_are_llama_quantizes(shape: str, file_type: str) -> None:
    model, recorded = shape_model(RECORDED["shapes"][shape]), RECORDED["types"][shape]
    assert by_kind(types(model, file_type)) == recorded[file_type]
    weighed = by_kind(types(model, file_type, Options(has_imatrix=True)))
    assert weighed == recorded.get(file_type + IMATRIX, recorded[file_type])


def test_the_readme_has_the_sizes_of_mixtral() -> None:
    """Its table: a file's tensors, and those that a token reads: two of eight experts, one row of the embedding."""
    model, text = shape_model(MIXTRAL), (ROOT / "README.md").read_text()
    row = r"^\| (\w+)(, with a matrix)? \| ([\d.]+) GiB \| ([\d.]+) GiB \|"
    rows = re.findall(row, text, re.MULTILINE)
    assert len(rows) > 5
    for file_type, weighed, whole, read in rows:
        chosen = types(model, file_type, Options(has_imatrix=bool(weighed)))
        found = [0.0, 0.0]
        for tensor in model.tensors:
            block, size = GGML_QUANT_SIZES[Type[chosen[tensor.name]]]
            n_bytes = math.prod(tensor.shape) // block * size
            part = 0 if tensor.name == "token_embd.weight" else 2 / 8 if "_exps" in tensor.name else 1
            found = [found[0] + n_bytes, found[1] + n_bytes * part]
        assert [f"{n / 2**30:.1f}" for n in found] == [whole, read], file_type


def test_tensors_are_written_by_layer_and_then_by_name() -> None:
    """llama-quantize's order: what is in no layer first; 10 comes after 2; bytes decide, so `_` after capitals."""
    model = shape_model(MIXTRAL | {"n_layer": 11})
    names = [tensor.name for tensor in file_order(replace(model, tensors=model.tensors[::-1]), "Q4_K_M")]
    assert names[:4] == ["output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight"]
    assert [name for name in names if "attn_q." in name] == [f"blk.{i}.attn_q.weight" for i in range(11)]
    assert names[-1] == "blk.10.ffn_up_exps.weight"


def test_a_checkpoint_keeps_the_converters_order_in_the_converters_types() -> None:
    model = replace(shape_model(MIXTRAL), origin="checkpoint")
    assert file_order(model, "F16") == model.tensors
    assert file_order(model, "Q8_0") == model.tensors
    assert file_order(model, "Q4_K_M") != model.tensors


def test_a_checkpoints_norms_and_router_become_f32() -> None:
    router = replace(matrix("blk.0.ffn_gate_inp.weight", 8, 4096), type=Type.BF16)
    for origin, wanted in (("checkpoint", "F32"), ("gguf", "BF16")):
        model: Any = replace(shape_model(MIXTRAL), tensors=[router], origin=origin)
        assert types(model, "Q6_K") == {router.name: wanted}


@pytest.mark.parametrize(
    ("name", "shape", "allowed"),
    [
        ("blk.0.attn_q.weight", (8, 8), True),
        ("blk.0.attn_q.weight", (1, 8), False),  # ggml counts axes up to the last that is longer than 1
        ("blk.0.ffn_up_exps.weight", (2, 1, 8), True),
        ("blk.0.attn_norm.weight", (8,), False),
        ("blk.0.attn_q_norm.weight", (8, 8), False),
        ("blk.0.ffn_gate_inp.weight", (8, 8), False),
        ("blk.0.attn_q.bias", (8, 8), False),
        ("position_embd.weight", (8, 8), False),
    ],
)
def test_what_is_never_quantized(name: str, shape: tuple[int, ...], allowed: bool) -> None:
    assert may_quantize(matrix(name, *shape)) is allowed


def test_categories() -> None:
    assert category("output.weight") == "output"
    assert category("blk.3.attn_output.weight") == "attn_output"
    assert category("blk.3.attn_qkv.weight") == "attn_v"
    assert category("blk.3.ffn_down_exps.weight") == "ffn_down"
    assert category("rope_freqs.weight") == "other"


def test_pure_gives_one_type_to_all_matrices() -> None:
    chosen = types(shape_model(MIXTRAL), "Q4_K_M", Options(pure=True))
    assert {chosen[n] for n in chosen if not n.endswith("norm.weight") and "gate_inp" not in n} == {"Q4_K"}


def test_the_expression_of_an_override_is_searched_in_small_letters() -> None:
    """As llama-quantize does, \\S becomes \\s too."""
    options = parse_options(overrides=[("FFN_Down", "Q8_0"), (r"attn_\S", "Q5_0")])
    assert [pattern.pattern for pattern, _ in options.overrides] == ["ffn_down", r"attn_\s"]


def test_overrides_come_first_and_are_not_counted() -> None:
    """llama-quantize: the counter of attn_v moves only where its rules are asked (here: layers 1, 2, ... are 0, 1)."""
    model = shape_model(MIXTRAL | {"n_expert": 4, "n_layer": 8})
    overrides = ((re.compile(r"blk\.0\.attn_v"), Type.F16), (re.compile("attn_v"), Type.Q4_0))
    assert types(model, "Q4_K_M", Options(overrides=overrides))["blk.0.attn_v.weight"] == "F16"
    assert types(model, "Q4_K_M", Options(overrides=overrides))["blk.5.attn_v.weight"] == "Q4_0"
    plain, moved = types(model, "Q4_K_M"), types(model, "Q4_K_M", Options(overrides=overrides[:1]))
    values = [f"blk.{i}.attn_v.weight" for i in range(8)]
    assert [moved[n] for n in values[1:]] == [plain[n] for n in values[:-1]]


def test_output_and_embedding_types() -> None:
    options = Options(output_type=Type.Q8_0, token_embedding_type=Type.Q5_1)
    chosen = types(shape_model(MIXTRAL), "Q4_K_M", options)
    assert (chosen["output.weight"], chosen["token_embd.weight"]) == ("Q8_0", "Q5_1")
    tied = types(shape_model(MIXTRAL | {"tied": True}), "Q4_K_M", Options(output_type=Type.Q8_0))
    assert tied["token_embd.weight"] == "Q8_0"


def test_the_embedding_of_every_layer_can_be_named() -> None:
    """llama-quantize: it follows --token-embedding-type unless --tensor-type names it, token_embd always."""
    model = shape_model(MIXTRAL)
    both = replace(model, tensors=[*model.tensors, matrix("per_layer_token_embd.weight", 256, 256)])
    for expression, large in (("attn_q", "Q5_1"), ("token_embd", "Q4_0")):
        options = Options(token_embedding_type=Type.Q5_1, overrides=((re.compile(expression), Type.Q4_0),))
        chosen = types(both, "Q4_K_M", options)
        assert (chosen["token_embd.weight"], chosen["per_layer_token_embd.weight"]) == ("Q5_1", large)


def test_the_output_can_be_left_as_it_is() -> None:
    """llama-quantize: before every other option; an embedding that is also the output is quantized."""
    options = Options(leave_output=True, output_type=Type.Q8_0, pure=True)
    assert types(shape_model(MIXTRAL), "Q4_K_M", options)["output.weight"] == "F16"
    bf16 = replace(matrix("output.weight", 256, 256), type=Type.BF16)
    checkpoint = replace(shape_model(MIXTRAL), tensors=[bf16], origin="checkpoint")
    assert types(checkpoint, "IQ4_XS", options) == {"output.weight": "BF16"}
    assert types(shape_model(MIXTRAL | {"tied": True}), "Q4_K_M", options)["token_embd.weight"] == "Q4_K"


def named(arch: str, model: SourceModel) -> SourceModel:
    """The model as one of another architecture."""
    numbers = {key.replace("llama.", f"{arch}."): value for key, value in model.metadata.items()}
    return replace(model, metadata=numbers | {"general.architecture": MetaValue(arch, GGUFValueType.STRING)})


@pytest.mark.parametrize(
    ("file_type", "down", "attention"),
    [
        ("Q4_K_M", "Q6_K Q5_K Q4_K Q5_K Q4_K Q5_K Q4_K Q5_K", "Q4_K"),
        ("Q4_K_S", "Q4_K", "Q4_K"),
        ("Q3_K_M", "Q5_K Q4_K Q3_K Q4_K Q3_K Q4_K Q3_K Q4_K", "Q3_K"),
        ("Q3_K_L", "Q4_K", "Q4_K"),
        ("Q2_K", "Q3_K", "Q2_K"),
    ],
)
def test_falcon_has_rules_of_its_own(file_type: str, down: str, attention: str) -> None:
    """What llama-quantize chose in a dry run: for layers 0, 1, 2, 4, 5, 7, 8 and 15 of 16."""
    model = named("falcon", shape_model(MIXTRAL | {"n_expert": 0, "n_layer": 16}))
    chosen = types(model, file_type)
    picked = [chosen[f"blk.{i}.ffn_down.weight"] for i in (0, 1, 2, 4, 5, 7, 8, 15)]
    assert " ".join(dict.fromkeys(picked) if len(set(picked)) == 1 else picked) == down
    assert {chosen[f"blk.{i}.attn_output.weight"] for i in range(16)} == {attention}
    assert chosen["output.weight"] == "Q8_0"


def test_glm5_next_keeps_small_matrices_and_spares_three() -> None:
    extra = [matrix(f"blk.0.{name}.weight", 256, 256) for name in ("attn_q_a", "nextn.eh_proj", "attn_k_b", "ssm_beta")]
    model = replace(named("glm5-next", shape_model(MIXTRAL)), tensors=extra)
    assert list(types(model, "Q4_K_M").values()) == ["F16", "Q8_0", "Q8_0", "F16"]
    assert set(types(replace(shape_model(MIXTRAL), tensors=extra), "Q4_K_M").values()) == {"Q4_K"}


def test_what_a_stack_of_experts_is() -> None:
    """For MXFP4_MOE: matrices behind one another, whatever comes before; of bailingmoe3 the feed-forward ones alone."""
    stacks = [matrix("blk.0.attn_k_b.weight", 4, 64, 64), matrix("blk.0.ffn_up_exps.weight", 1, 4, 64, 64)]
    for arch, wanted in (("deepseek2", ["MXFP4", "MXFP4"]), ("bailingmoe3", ["Q8_0", "MXFP4"])):
        model = replace(named(arch, shape_model(MIXTRAL)), tensors=stacks)
        assert list(types(model, "MXFP4_MOE").values()) == wanted


def test_an_imatrix_spares_the_first_eighth_of_q4_0() -> None:
    chosen = types(shape_model(MIXTRAL), "Q4_0", Options(has_imatrix=True))
    assert [chosen[f"blk.{i}.ffn_down_exps.weight"] for i in (0, 3, 4, 31)] == ["Q4_1", "Q4_1", "Q4_0", "Q4_0"]


def test_rows_that_do_not_divide_fall_back_and_say_so() -> None:
    """llama-quantize, from types of 256; F16 where 32 does not divide either."""
    tensors = [matrix("blk.0.attn_q.weight", 64, 96), matrix("blk.0.attn_k.weight", 64, 40)]
    model = replace(shape_model(MIXTRAL | {"n_expert": 0}), tensors=tensors)
    fallbacks = {"Q3_K_S": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K_S": "Q5_0", "Q5_K_S": "Q5_1", "Q6_K": "Q8_0"}
    for file_type, wanted in fallbacks.items():
        key, query = choose_types(model, file_type, Options())
        assert (query.type.name, key.type.name) == (wanted, "F16")
        blocks = f"blocks of 256 ({find_recipe(file_type).default.name})"
        assert query.notice == f"blk.0.attn_q.weight: rows of 96 do not divide into {blocks}: {wanted} instead"


def test_copy_changes_nothing() -> None:
    model = shape_model(MIXTRAL)
    assert [(c.tensor, c.type) for c in choose_types(model, "COPY", Options())] == [(t, t.type) for t in model.tensors]
    assert [c.type for c in choose_types(model, "COPY", Options(leave_output=True))] == [t.type for t in model.tensors]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pure": True}, "--pure"),
        ({"overrides": [("ffn", "Q8_0")], "output_type": "Q6_K"}, "--tensor-type, --output-tensor-type"),
        ({"token_embedding_type": "Q6_K"}, "--token-embedding-type"),
    ],
)
def test_copy_takes_no_option_that_changes_types(options: dict[str, Any], named: str) -> None:
    """llama-quantize ignores them and says nothing."""
    model = shape_model(MIXTRAL)
    with pytest.raises(UsageError, match=f"COPY keeps the type of every tensor, and has no use for {named}$"):
        list(choose_types(model, "COPY", parse_options(**options)))


def test_an_expert_in_a_layer_that_is_not_there() -> None:
    model = replace(shape_model(MIXTRAL), tensors=[matrix("blk.40.ffn_up_exps.weight", 8, 64, 256)])
    with pytest.raises(BadInputError, match=r"blk\.40\.ffn_up_exps\.weight: the layer is not in the model"):
        types(model, "Q4_K_M")


def test_file_types_by_name() -> None:
    assert find_recipe("q4_k").name == "Q4_K_M"
    assert find_recipe(" Q8_0 ").file_type == 7
    assert [find_recipe(number).name for number in ("15", "0", "38")] == ["Q4_K_M", "F32", "MXFP4_MOE"]
    with pytest.raises(UsageError, match="unknown file type, got Q2_X, expected one of F32, F16"):
        find_recipe("Q2_X")
    with pytest.raises(UsageError, match="got 40"):
        find_recipe("40")
