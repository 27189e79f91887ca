"""Parameters, bytes and limits, by hand and for Mixtral's real shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from localmoe.errors import MemoryLimitError, UsageError
from localmoe.gguf_file import TensorInfo, open_gguf
from localmoe.model import memory
from localmoe.model.config import ModelConfig
from localmoe.model.weights import expected_shapes
from tests.tiny import write_tiny

GIB = 1 << 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    with open_gguf(write_tiny(tmp_path_factory.mktemp("m") / "m.gguf")) as file:
        return ModelConfig.from_metadata(file)


@pytest.fixture(scope="module")
def mixtral(tiny: ModelConfig) -> ModelConfig:
    """Mixtral-8x7B's numbers (mistralai/Mixtral-8x7B-v0.1, config.json)."""
    return replace(
        tiny, n_layer=32, n_embd=4096, n_head=32, n_head_kv=8, n_embd_head_k=128, n_embd_head_v=128, rope_dim=128,
        n_ff=14336, n_ff_exp=14336, n_vocab=32000, n_ctx_train=32768,
    )  # fmt: skip


def infos(config: ModelConfig, kind: T) -> list[TensorInfo]:
    block, size = GGML_QUANT_SIZES[kind]
    out = []
    for name, shape in expected_shapes(config).items():
        n_bytes = math.prod(shape) * 4 if len(shape) == 1 else math.prod(shape) // block * size
        out.append(TensorInfo(name, shape, kind if len(shape) > 1 else T.F32, n_bytes, 0, 0))
    return out


def test_mixtral_has_46_7_billion_parameters_and_12_9_active(mixtral: ModelConfig) -> None:
    size = memory.model_size(infos(mixtral, T.Q4_K), mixtral)
    assert size.parameters == 46_702_792_704  # safetensors' own count on the model's page
    assert round(size.parameters / 1e9, 1) == 46.7
    assert round(size.active / 1e9, 1) == 12.9
    assert round(memory.model_size(infos(mixtral, T.Q4_K), mixtral, 8).active / 1e9, 1) == 46.7


def test_sizes_by_hand(tiny: ModelConfig) -> None:
    config = replace(tiny, n_layer=1)
    size = memory.model_size(infos(config, T.F16), config)
    embedding, attention = 379 * 64, 2 * 64 * 64 + 2 * 32 * 64
    norms, router, expert = 3 * 64, 8 * 64, 3 * 96 * 64
    assert size.parameters == 2 * embedding + attention + norms + router + 8 * expert
    assert size.active == size.parameters - 6 * expert
    assert size.weight_bytes == 2 * size.parameters + 2 * norms
    # one row of the embedding, all of the output matrix
    assert size.bytes_per_token == 2 * (size.active - embedding + 64) + 2 * norms


def test_a_tied_embedding_is_read_whole(tiny: ModelConfig) -> None:
    config = replace(tiny, tied=True)
    size = memory.model_size(infos(config, T.F32), config)
    assert size.bytes_per_token == 4 * size.active


def test_cache_of_mixtral(mixtral: ModelConfig) -> None:
    # 2 tensors x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB a position
    assert memory.kv_cache_bytes(mixtral, 32768) == 4 * GIB
    assert memory.kv_cache_bytes(mixtral, 1, "f32", "f16") == 3 * 64 * 1024
    assert memory.kv_cache_bytes(mixtral, 1, "q8_0", "q8_0") == 128 * 1024 * 34 // 64
    with pytest.raises(UsageError, match="unknown cache type, got q1, expected one of: f32, f16"):
        memory.kv_cache_bytes(mixtral, 1, "q1")


def test_row_30_cache_that_does_not_fit_is_refused_with_the_estimate(mixtral: ModelConfig) -> None:
    with pytest.raises(MemoryLimitError) as caught:
        memory.check_sizes(mixtral, 32768, 26 * GIB, 4 * GIB, file="m.gguf")
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        "m.gguf: context 32768: the cache of a context of 32768 does not fit in memory: choose a smaller one, "
        "got 4.0 GiB for the cache and 300.0 MiB to work in, expected at most 4.0 GiB, what is available"
    )


def test_row_30_weights_larger_than_memory_only_warn(mixtral: ModelConfig) -> None:
    warning = memory.check_sizes(mixtral, 4096, 26 * GIB, 8 * GIB)
    assert warning is not None
    assert warning.startswith("weights of 26.0 GiB and a cache of 512.0 MiB are more than the 8.0 GiB available")
    assert memory.check_sizes(mixtral, 4096, 26 * GIB, 32 * GIB) is None


def test_a_file_is_checked_against_this_machine(tmp_path: Path) -> None:
    with open_gguf(write_tiny(tmp_path / "m.gguf")) as file:
        config = ModelConfig.from_metadata(file)
        assert memory.check_memory(file, config, 512) is None
        with pytest.raises(MemoryLimitError, match=r"m\.gguf: context 1000000000: the cache"):
            memory.check_memory(file, replace(config, n_layer=100), 10**9)


def test_available_memory_is_plausible() -> None:
    available = memory.available_memory()
    assert available is not None
    assert 1 << 26 < available < 1 << 46


def test_memory_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\nactive_file 50000\n")
    assert memory._cgroup_available(tmp_path) == 550000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup_available(tmp_path) is None
    assert memory._linux_available(tmp_path / "none") is None


def test_size_text() -> None:
    shown = [memory.size_text(n) for n in (0, 1023, 1536, 5 << 20, 3.25 * GIB, 2 << 40)]
    assert shown == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.2 GiB", "2.0 TiB"]
