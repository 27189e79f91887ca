"""Model numbers from GGUF keys: defaults, refusals (acceptance row 10) and rotary tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType as T

from localmoe.errors import BadInputError
from localmoe.gguf_file import open_gguf
from localmoe.model.config import ModelConfig, RopeScaling, rope_frequencies
from tests.tiny import write_tiny

A, S = "llama.attention.", "llama.rope.scaling."


def rope_table(config: ModelConfig, n_ctx: int, factors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (n_ctx, rope_dim // 2) float32, as the forward pass makes them over a float32 cache."""
    angles = np.arange(n_ctx)[:, None] * rope_frequencies(config, factors)
    scale = config.rope_scaling.mscale
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def config_of(path: Path, **fields: Any) -> ModelConfig:
    with open_gguf(write_tiny(path / "m.gguf", **fields)) as file:
        return ModelConfig.from_metadata(file)


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        config_of(path, **fields)
    return str(caught.value)


def test_moe_numbers(tmp_path: Path) -> None:
    config = config_of(tmp_path, rope_freq_base=1e6)
    assert config == ModelConfig(
        arch="llama", name="tiny", n_layer=2, n_embd=64, n_head=4, n_head_kv=2, n_embd_head_k=16, n_embd_head_v=16,
        n_ff=96, n_ff_exp=96, n_expert=8, n_expert_used=2, rms_eps=config.rms_eps, rope_freq_base=1e6, rope_dim=16,
        rope_scaling=RopeScaling(n_ctx_orig=512), n_ctx_train=512, n_vocab=379, expert_gating="softmax",
        expert_weights_norm=True, tied=False,
    )  # fmt: skip
    assert config.rms_eps == pytest.approx(1e-5)
    assert config.architecture.rope_interleaved


def test_dense_tied_and_llama_cpp_defaults(tmp_path: Path) -> None:
    dropped = [
        A + "head_count_kv",
        "llama.rope.freq_base",
        "llama.rope.dimension_count",
        "llama.vocab_size",
        "general.name",
    ]
    config = config_of(tmp_path, n_expert=0, tied=True, n_head_kv=4, drop_metadata=dropped)
    assert (config.n_expert, config.n_expert_used, config.n_ff_exp, config.tied) == (0, 0, 0, True)
    assert (config.n_head_kv, config.rope_freq_base, config.rope_dim, config.n_vocab) == (4, 10000.0, 16, 379)


def test_head_size_from_its_keys(tmp_path: Path) -> None:
    config = config_of(tmp_path, n_embd_head=32)
    assert (config.n_embd_head_k, config.n_embd_head_v, config.rope_dim) == (32, 32, 32)


def test_equal_values_for_all_layers_are_one_value(tmp_path: Path) -> None:
    key = A + "head_count_kv"
    assert config_of(tmp_path, extra_metadata={key: ([2, 2], T.ARRAY, T.UINT32)}).n_head_kv == 2
    message = refusal(tmp_path, extra_metadata={key: ([2, 4], T.ARRAY, T.UINT32)})
    assert f"{key}: differs between layers" in message


def test_vocabulary_without_tokens_comes_from_its_key(tmp_path: Path) -> None:
    assert config_of(tmp_path, vocab=None, n_vocab=123).n_vocab == 123
    message = refusal(tmp_path, vocab=None, n_vocab=123, extra_metadata={"llama.vocab_size": (124, T.UINT32, None)})
    assert "llama.vocab_size: does not fit token_embd.weight, got 124 tokens, expected 123" in message


def test_tokens_must_fit_the_embedding(tmp_path: Path) -> None:
    message = refusal(tmp_path, extra_metadata={"tokenizer.ggml.tokens": (["a", "b"], T.ARRAY, T.STRING)})
    assert "tokenizer.ggml.tokens: does not fit token_embd.weight, got 2 tokens, expected 379" in message


@pytest.mark.parametrize(
    ("key", "value", "kind", "expected"),
    [
        ("llama.expert_used_count", 0, T.UINT32, "is out of range, got 0, expected 1 to 8, the number of experts"),
        ("llama.expert_used_count", 9, T.UINT32, "is out of range, got 9, expected 1 to 8"),
        ("llama.expert_count", 100000, T.UINT32, "is out of range, got 100000, expected 0 to 1024"),
        ("llama.expert_count", 0, T.UINT32, "set in a model without experts"),
        ("llama.block_count", 10**9, T.UINT32, "is out of range, got 1000000000, expected 1 to 512"),
        ("llama.block_count", 0, T.UINT32, "is out of range, got 0"),
        ("llama.block_count", -1, T.INT32, "is out of range, got -1"),
        ("llama.block_count", "2", T.STRING, "is of the wrong type, got '2', expected a whole number"),
        ("llama.block_count", True, T.BOOL, "is of the wrong type, got True, expected a whole number"),
        ("llama.block_count", 2.0, T.FLOAT32, "is of the wrong type, got 2.0, expected a whole number"),
        ("llama.embedding_length", 0, T.UINT32, "is out of range, got 0"),
        ("llama.embedding_length", 66, T.UINT32, "does not divide the embedding, got 4, expected a divisor of 66"),
        ("llama.feed_forward_length", 0, T.UINT32, "is out of range, got 0"),
        ("llama.context_length", 0, T.UINT32, "is out of range, got 0"),
        (A + "head_count", 0, T.UINT32, "is out of range, got 0"),
        (A + "head_count_kv", 0, T.UINT32, "is out of range, got 0"),
        (A + "head_count_kv", 3, T.UINT32, "does not divide the heads, got 3, expected a divisor of 4"),
        (A + "head_count_kv", 8, T.UINT32, "does not divide the heads, got 8"),
        (A + "value_length", 8, T.UINT32, "differs from the key length, got 8, expected 16"),
        (A + "layer_norm_rms_epsilon", math.nan, T.FLOAT32, "is out of range, got nan, expected a finite number > 0"),
        (A + "layer_norm_rms_epsilon", 0.0, T.FLOAT32, "is out of range, got 0.0"),
        (A + "layer_norm_rms_epsilon", "x", T.STRING, "is of the wrong type, got 'x', expected a number"),
        (A + "causal", False, T.BOOL, "not supported, got False, expected True"),
        ("llama.rope.freq_base", math.inf, T.FLOAT32, "is out of range, got inf, expected a finite number > 1"),
        ("llama.rope.freq_base", -5.0, T.FLOAT32, "is out of range, got -5.0"),
        ("llama.rope.dimension_count", 8, T.UINT32, "does not fit the heads, got 8, expected 16"),
        ("llama.expert_weights_norm", False, T.BOOL, "not supported, got False, expected True"),
        ("llama.expert_gating_func", 2, T.UINT32, "not supported, got 2, expected softmax"),
        ("llama.nextn_predict_layers", 1, T.UINT32, "layers that predict further tokens are not supported"),
        ("llama.expert_weights_scale", 2.5, T.FLOAT32, "scaled expert weights are not supported"),
        ("general.name", 5, T.UINT32, "is of the wrong type, got 5, expected a string"),
        (S + "type", "longrope", T.STRING, "not supported, got longrope, expected one of: none, linear, yarn"),
        (S + "factor", math.inf, T.FLOAT32, "is out of range, got inf"),
        (S + "factor", -2.0, T.FLOAT32, "is out of range, got -2.0"),
    ],
)  # fmt: skip
def test_row_10_bad_numbers_name_their_key(tmp_path: Path, key: str, value: Any, kind: T, expected: str) -> None:
    message = refusal(tmp_path, extra_metadata={key: (value, kind, None)})
    # a value that breaks another key's rule is reported there
    other = {("llama.expert_count", 0): "llama.expert_used_count", ("llama.embedding_length", 66): A + "head_count"}
    assert f": {other.get((key, value), key)}: {expected}" in message


@pytest.mark.parametrize(
    "key", ["llama.block_count", "llama.embedding_length", A + "head_count", A + "layer_norm_rms_epsilon"]
)
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    assert f"{key}: the key is missing" in refusal(tmp_path, drop_metadata=[key])


def test_unsupported_architecture_lists_what_runs(tmp_path: Path) -> None:
    message = refusal(tmp_path, extra_metadata={"general.architecture": ("mam\x1bba", T.STRING, None)})
    assert r"general.architecture: architecture not supported, got mam\x1bba, expected one of: llama" in message


# --- rotary tables ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return config_of(tmp_path_factory.mktemp("rope"))


def test_plain_table_by_hand(plain: ModelConfig) -> None:
    cos, sin = rope_table(plain, 5000)
    assert cos.shape == sin.shape == (5000, 8)
    assert cos.dtype == sin.dtype == np.float32
    assert cos[0].tolist() == [1.0] * 8
    # pair 0 turns one radian a position, pair 4 (of 8) a hundredth of it
    for position in (1, 3, 4095, 4096, 4999):
        assert cos[position, 0] == np.float32(math.cos(position))
        assert sin[position, 4] == np.float32(math.sin(position * 10000.0**-0.5))


# frequencies that transformers 5.23's ROPE_INIT_FUNCTIONS gave on 2026-11-22
LINEAR = [0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05]
YARN = [1.0, 0.316227764, 0.100000001, 0.025693506, 0.00624999963, 0.00138349656, 0.000250000012, 7.90569466e-05]
YARN_OWN_BETAS = [
    1.0, 0.440366626, 0.193922758, 0.0853971019, 0.0376060307, 0.012679087, 0.00387422834, 0.000953398063,
    8.83883404e-05, 3.89232773e-05, 1.71405118e-05, 7.5481089e-06, 3.32393483e-06, 1.46374987e-06, 6.44586578e-07,
    2.83854405e-07,
]  # fmt: skip
LLAMA3 = [
    1.0, 0.440366626, 0.193922758, 0.0853971019, 0.0376060307, 0.0165604409, 0.00729266508, 0.00321144611,
    0.000524846022, 7.78465546e-05, 3.42810235e-05, 1.50962178e-05, 6.64786967e-06, 2.92749974e-06, 1.28917316e-06,
    5.6770881e-07,
]  # fmt: skip


def scaled(
    path: Path, kind: str, factor: float, n_ctx_orig: int, extra: dict[str, float], **fields: Any
) -> ModelConfig:
    metadata: dict[str, Any] = {
        S + "type": (kind, T.STRING, None),
        S + "factor": (factor, T.FLOAT32, None),
        S + "original_context_length": (n_ctx_orig, T.UINT32, None),
    }
    metadata |= {S + name: (value, T.FLOAT32, None) for name, value in extra.items()}
    return config_of(path, extra_metadata=metadata, **fields)


def test_linear_scaling_as_transformers(tmp_path: Path) -> None:
    config = scaled(tmp_path, "linear", 4.0, 2048, {})
    np.testing.assert_allclose(rope_frequencies(config), LINEAR, rtol=2e-7)
    assert rope_table(config, 9)[0][8, 0] == np.float32(math.cos(2.0))


def test_old_key_of_linear_scaling(tmp_path: Path) -> None:
    config = config_of(tmp_path, extra_metadata={"llama.rope.scale_linear": (4.0, T.FLOAT32, None)})
    np.testing.assert_allclose(rope_frequencies(config), LINEAR, rtol=2e-7)


def test_type_none_ignores_the_factor(tmp_path: Path) -> None:
    assert scaled(tmp_path, "none", 4.0, 2048, {}).rope_scaling == RopeScaling(n_ctx_orig=2048)


def test_yarn_as_transformers(tmp_path: Path) -> None:
    config = scaled(tmp_path, "yarn", 4.0, 2048, {}, n_ctx_train=8192)
    np.testing.assert_allclose(rope_frequencies(config), YARN, rtol=3e-7)
    assert config.rope_scaling.mscale == pytest.approx(1.138629436111989, rel=1e-12)
    cos, sin = rope_table(config, 2)
    assert cos[0, 0] == np.float32(1.138629436111989)
    assert sin[1, 0] == np.float32(math.sin(1.0) * 1.138629436111989)


def test_yarn_with_its_own_betas_and_magnitude_as_transformers(tmp_path: Path) -> None:
    extra = {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0, "yarn_attn_factor": 1.5}
    fields = {"rope_freq_base": 500000.0, "n_embd_head": 32, "n_ctx_train": 65536}
    config = scaled(tmp_path, "yarn", 16.0, 4096, extra, **fields)
    np.testing.assert_allclose(rope_frequencies(config), YARN_OWN_BETAS, rtol=3e-7)
    assert config.rope_scaling.mscale == 1.5


def test_yarn_log_multiplier_divides_the_magnitude(tmp_path: Path) -> None:
    """llama-context.cpp: mscale(factor, 1) / mscale(factor, log_mul) = (0.1 ln 4 + 1) / (0.05 ln 4 + 1)."""
    config = scaled(tmp_path, "yarn", 4.0, 2048, {"yarn_log_multiplier": 0.5})
    assert config.rope_scaling.mscale == pytest.approx((0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))


def test_llama3_factors_as_transformers(plain: ModelConfig) -> None:
    """rope_freqs.weight as llama.cpp's converter computes it from factor 8, low 1, high 4, original context 8192."""
    config = replace(plain, rope_freq_base=500000.0, rope_dim=32)
    factors = []
    for pair in range(16):
        wavelength = 2 * math.pi * 500000.0 ** (pair / 16)
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        factors.append(1.0 if smooth > 1 else 8.0 if smooth < 0 else 1 / ((1 - smooth) / 8 + smooth))
    assert 1.0 < min(f for f in factors if f != 1.0) < 8.0
    np.testing.assert_allclose(rope_frequencies(config, np.array(factors, np.float32)), LLAMA3, rtol=3e-7)
