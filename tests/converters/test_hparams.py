"""config.json of transformers 4 and 5: defaults, rotary parameters, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.converters.hparams import HParams, model_keys, read_hparams, rope_factors
from localmoe.converters.huggingface import load_source
from localmoe.errors import BadInputError
from tests.checkpoints import Tiny, config_json, write_checkpoint

FILE = Path("config.json")


def read(config: dict[str, Any], notes: list[str] | None = None) -> HParams:
    """The hyperparameters of a config; notes are collected."""
    return read_hparams(config, FILE, ([] if notes is None else notes).append)


def tiny(family: str = "mixtral", **config: Any) -> dict[str, Any]:
    """A small config with some keys replaced, None removing them."""
    return config_json(Tiny(family, config=config))


@pytest.mark.parametrize(
    ("family", "expected"),
    [  # the defaults of transformers 5.23's configuration classes
        ("llama", (32000, 4096, 11008, 32, 32, 32, 128, 2048, 1e-6, 10000.0, 0, 0)),
        ("mistral", (32000, 4096, 14336, 32, 32, 8, 128, 131072, 1e-6, 10000.0, 0, 0)),
        ("mixtral", (32000, 4096, 14336, 32, 32, 8, 128, 131072, 1e-5, 1000000.0, 8, 2)),
    ],
)
def test_missing_keys_default_as_in_transformers(family: str, expected: tuple[Any, ...]) -> None:
    """A config of nothing but its architecture."""
    h = read({"architectures": [f"{family.capitalize()}ForCausalLM"]})
    assert (
        h.vocab_size, h.hidden_size, h.intermediate_size, h.num_hidden_layers, h.num_attention_heads,
        h.num_key_value_heads, h.head_dim, h.max_position_embeddings, h.rms_norm_eps, h.rope["rope_theta"],
        h.num_local_experts, h.num_experts_per_tok,
    ) == expected  # fmt: skip
    assert not h.tie_word_embeddings


def test_architecture_from_model_type() -> None:
    """A config without `architectures` is what its model_type says."""
    config = tiny("mistral", architectures=None)
    assert read(config).family == "mistral"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
        {"rope_theta": 1.0, "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 500000}},
    ],
)
def test_both_spellings_of_rope_parameters(rope: dict[str, Any]) -> None:
    """transformers 4's and 5's give the same keys."""
    keys = model_keys(read(tiny("llama", **rope)))
    assert keys["llama.rope.scaling.type"].value == "linear"
    assert keys["llama.rope.scaling.factor"].value == 4.0
    assert keys["llama.rope.freq_base"].value == 5e5


def test_yarns_original_context_defaults_to_the_models() -> None:
    """As transformers sets it; given parameters are written, others are not."""
    keys = model_keys(read(tiny("llama", rope_scaling={"type": "yarn", "factor": 2.0, "attention_factor": 1.5})))
    assert keys["llama.rope.scaling.original_context_length"].value == 256
    assert keys["llama.rope.scaling.yarn_attn_factor"].value == 1.5
    assert "llama.rope.scaling.yarn_beta_fast" not in keys


@pytest.mark.parametrize(
    ("more", "noted"),
    [
        ({"truncate": False}, ["yarn's truncate of false is not kept"]),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, ["yarn's mscale and mscale_all_dim are not kept"]),
        ({"mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.1}, []),
        ({"truncate": True, "mscale": 0.7}, []),
    ],
)
def test_what_gguf_cannot_say_of_yarn_is_noted(more: dict[str, Any], noted: list[str]) -> None:
    """Where transformers computes something else than llama.cpp does with llama.cpp's conversion."""
    notes: list[str] = []
    read(tiny("llama", rope_scaling={"type": "yarn", "factor": 2.0, **more}), notes)
    assert [note.split(":")[0] for note in notes] == noted


def test_llama3_factors_follow_their_definition() -> None:
    """Short wavelengths 1, long ones the factor, between them a blend, by the formula in doubles."""
    rope: dict[str, Any] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    h = read(
        tiny("llama", head_dim=128, rope_theta=5e5, rope_scaling={**rope, "original_max_position_embeddings": 8192})
    )
    expected = []
    for i in range(64):
        wavelength = 2 * math.pi * 5e5 ** (2 * i / 128)
        smooth = min(1.0, max(0.0, (8192 / wavelength - 1) / 3))
        expected.append(1 / ((1 - smooth) / 8 + smooth))
    factors = rope_factors(h)
    assert factors is not None
    assert (factors[0], factors[-1]) == (1, 8)
    np.testing.assert_allclose(factors, expected, rtol=1e-5)


def test_other_rope_types_have_no_factors() -> None:
    """Only llama3 is a tensor."""
    assert rope_factors(read(tiny("llama"))) is None


def test_key_length_is_written_where_transformers_always_has_it() -> None:
    """Llama and Mistral configs always hold head_dim after loading, Mixtral only when given."""
    assert model_keys(read(tiny("llama")))["llama.attention.key_length"].value == 8
    assert "llama.attention.key_length" not in model_keys(read(tiny()))
    assert model_keys(read(tiny(head_dim=16)))["llama.attention.value_length"].value == 16


def test_a_sliding_window_and_dynamic_scaling_are_noted() -> None:
    """llama.cpp writes neither; the user is told."""
    notes: list[str] = []
    read(tiny("mistral", sliding_window=64, rope_scaling={"type": "dynamic", "factor": 2.0}), notes)
    assert [note.split()[0] for note in notes] == ["sliding_window", "dynamic"]
    notes.clear()
    for window in (None, 256):
        read(tiny("mistral") | {"sliding_window": window}, notes)
    assert notes == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["Qwen2ForCausalLM"]},
            "is not converted, got Qwen2ForCausalLM, expected Llama",
        ),
        ({"architectures": [["x"]]}, "architecture is not converted"),
        ({"architectures": "MixtralForCausalLM", "model_type": "x"}, "architecture is not converted"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: is not a usable size, got 1000000000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_attention_heads": 5}, "num_attention_heads: does not divide hidden_size, got 5, expected 32"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: does not divide num_attention_heads, got 3, expected 4"),
        ({"head_dim": 7}, "head_dim: is odd"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok: is more than num_local_experts, got 5, expected 4"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: is not a positive number"),
        ({"rope_theta": "1e6"}, "rope_theta"),
        ({"rope_scaling": [1]}, "rope_parameters: is not a table"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type: rope type is not supported, got longrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor: is not a positive number"),
        ({"rope_scaling": {"type": "llama3", "low_freq_factor": 4.0}}, "high_freq_factor: is not above"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": "x"}}, "beta_fast"),
        ({"hidden_act": "gelu"}, "hidden_act: is not supported, got gelu, expected silu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized checkpoints are not read, got gptq"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], message: str) -> None:
    """Each names its key."""
    with pytest.raises(BadInputError, match=message):
        read(tiny(**config))


def test_the_numbers_of_a_text_config_are_the_models(tmp_path: Path) -> None:
    """What llama.cpp's converter moves to the top."""
    folder = write_checkpoint(tmp_path, Tiny("llama"))
    numbers = json.loads((folder / "config.json").read_text())
    outer = {"architectures": numbers.pop("architectures"), "text_config": numbers, "hidden_size": 1}
    whole = load_source(folder, warn=lambda _: None)
    (folder / "config.json").write_text(json.dumps(outer))
    assert load_source(folder, warn=lambda _: None).metadata == whole.metadata
