"""frankenMoEs from tiny models: router rows against naive hidden states, stacks byte for byte, refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml

import localmoe
from localmoe.converters.franken import Franken, build
from localmoe.converters.franken_recipe import read_recipe
from localmoe.errors import BadInputError, LocalMoeError, MemoryLimitError, UsageError
from localmoe.gguf_file import GGUFFile, open_gguf
from localmoe.model.config import ModelConfig
from tests import naive_bfloat16
from tests.checkpoints import write_checkpoint
from tests.naive_model import naive_model, nmse
from tests.tiny import tiny_weights, vocabulary, write_tiny

DENSE: dict[str, Any] = {"n_expert": 0, "n_embd": 64, "n_ff": 96}
PROMPTS = (["the sun is red", "hello"], ["one and two in it"], ["he is the expert of moe"])
NEGATIVE = ["the day"]
BOS = 1


def quiet(line: str) -> None:
    """Hear no notes."""


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Three experts, one of a second model with a negative prompt; the base is a.gguf."""
    experts = [
        {"source_model": "a.gguf", "positive_prompts": PROMPTS[0], "label": "red"},
        {"source_model": "b.gguf", "positive_prompts": PROMPTS[1], "negative_prompts": NEGATIVE},
        {"source_model": "a.gguf", "positive_prompts": PROMPTS[2]},
    ]
    recipe = {"base_model": "a.gguf", "experts": experts} | changes
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yml"


def models(folder: Path, **fields: Any) -> None:
    """a.gguf and b.gguf, of the same shape with other weights."""
    write_tiny(folder / "a.gguf", **(DENSE | fields))
    write_tiny(folder / "b.gguf", **(DENSE | {"seed": 7} | fields))


def make(
    folder: Path, file_type: str | None = "F32", options: Mapping[str, Any] | None = None, **recipe: Any
) -> Franken:
    """Build out.gguf from the recipe."""
    read = read_recipe(write_recipe(folder, **recipe), quiet)
    return build(read, folder / "out.gguf", file_type, notify=quiet, **(options or {}))


def tokens(gguf_path: Path, prompt: str) -> list[int]:
    with localmoe.load(str(gguf_path)) as model:
        return [BOS, *model.tokenize(prompt, add_bos=False, parse_special=True)]


def config_of(path: Path) -> ModelConfig:
    with open_gguf(path) as opened:
        return ModelConfig.from_metadata(opened)


def naive_hidden(folder: Path, prompt: str, weights: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """(L, T, D): what enters each layer of a.gguf."""
    base = weights or tiny_weights(**DENSE)
    path = folder / "a.gguf"
    return naive_bfloat16.hidden_states(base, config_of(path), tokens(path, prompt))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- router rows ---


def test_hidden_rows_are_the_last_tokens_states(tmp_path: Path) -> None:
    models(tmp_path)
    router = make(tmp_path).router
    assert router is not None

    def mean(prompts: list[str]) -> np.ndarray:
        return np.mean([naive_hidden(tmp_path, p)[:, -1] for p in prompts], axis=0)

    wanted = np.stack([mean(PROMPTS[0]), mean(PROMPTS[1]) - mean(NEGATIVE), mean(PROMPTS[2])], axis=1)
    naive_bfloat16.assert_alike(router, unit(wanted))
    with open_gguf(tmp_path / "out.gguf") as out:
        for layer in range(2):
            stored = out.raw(f"blk.{layer}.ffn_gate_inp.weight").view(np.float32).reshape(3, 64)
            assert np.array_equal(stored, router[layer])


def test_hidden_avg_counts_the_padding_as_mergekit_does(tmp_path: Path) -> None:
    """The shorter prompt of two is padded with BOS on the left; a padding token's attention is nothing."""
    models(tmp_path)
    router = make(tmp_path, gate_mode="hidden_avg").router
    assert router is not None
    states = [naive_hidden(tmp_path, p) for p in PROMPTS[0]]
    longest = max(s.shape[1] for s in states)
    pads = naive_bfloat16.hidden_states(tiny_weights(**DENSE), config_of(tmp_path / "a.gguf"), [BOS], attend=False)
    padded = [s.sum(axis=1) + (longest - s.shape[1]) * pads[:, 0] for s in states]
    np.testing.assert_allclose(router[:, 0], unit(np.mean(padded, axis=0)), atol=2e-5)
    alone = naive_hidden(tmp_path, PROMPTS[2][0]).mean(axis=1)
    np.testing.assert_allclose(router[:, 2], unit(alone), atol=2e-5)


def test_cheap_embed_sums_embeddings(tmp_path: Path) -> None:
    models(tmp_path)
    router = make(tmp_path, gate_mode="cheap_embed").router
    assert router is not None
    embedding = tiny_weights(**DENSE)["token_embd.weight"]

    def total(prompts: list[str]) -> np.ndarray:
        return unit(sum(embedding[tokens(tmp_path / "a.gguf", p)].sum(axis=0) for p in prompts))

    np.testing.assert_allclose(router[1, 0], total(PROMPTS[0]), atol=1e-6)
    np.testing.assert_allclose(router[0, 1], unit(total(PROMPTS[1]) - total(NEGATIVE)), atol=1e-6)
    assert np.array_equal(router[0], router[1])


def test_random_routers_follow_the_seed(tmp_path: Path) -> None:
    models(tmp_path)
    first, again, other = (make(tmp_path, None, {"seed": s}, gate_mode="random").router for s in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert abs(first.std() - 1) < 0.1
    uniform = make(tmp_path, gate_mode="uniform_random").router
    assert uniform is not None
    assert 0.11 < np.abs(uniform).max() <= 64**-0.5


def test_special_tokens_in_prompts_are_tokens(tmp_path: Path) -> None:
    models(tmp_path, vocab="bpe")
    weights = tiny_weights(**(DENSE | {"vocab": "bpe"}))
    specials = vocabulary("bpe")[0]
    experts = [
        {"source_model": "a.gguf", "positive_prompts": ["<|im_start|>"]},
        {"source_model": "b.gguf", "positive_prompts": ["hello"]},
    ]
    router = make(tmp_path, gate_mode="cheap_embed", experts=experts).router
    assert router is not None
    ids = [specials.index("<|endoftext|>"), specials.index("<|im_start|>")]  # BOS, then the prompt
    np.testing.assert_allclose(router[0, 0], unit(weights["token_embd.weight"][ids].sum(axis=0)), atol=1e-6)


def test_a_checkpoint_gives_the_rows_of_its_own_gguf(tmp_path: Path) -> None:
    from localmoe.converters.huggingface import load_source
    from localmoe.converters.pipeline import write_model

    # a Mistral, to whose prompts transformers puts the space that the vocabulary asks for
    folder = write_checkpoint(tmp_path / "hf", family="mistral", tokenizer="spm", dtype="BF16")
    write_model(load_source(folder, warn=quiet), tmp_path / "a.gguf", "BF16", notify=quiet)
    write_model(load_source(folder, warn=quiet), tmp_path / "b.gguf", "F16", notify=quiet)
    from_file = make(tmp_path).router
    from_folder = make(tmp_path, base_model="hf").router  # and experts that are GGUFs: kinds mix
    assert from_file is not None
    assert from_folder is not None
    np.testing.assert_array_equal(from_folder, from_file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "hf", "out.gguf", "recipe.yml"]


# --- tensors ---


def test_the_model_is_the_bases_attention_and_the_experts_matrices(tmp_path: Path) -> None:
    models(tmp_path)
    built = make(tmp_path)
    a, b = tiny_weights(**DENSE), tiny_weights(**DENSE, seed=7)
    weights = {name: values for name, values in a.items() if not ("ffn_" in name and "norm" not in name)}
    for i in range(2):
        assert built.router is not None
        weights[f"blk.{i}.ffn_gate_inp.weight"] = built.router[i]
        for kind in ("gate", "up", "down"):
            name = f"blk.{i}.ffn_{kind}"
            weights[f"{name}_exps.weight"] = np.stack([w[f"{name}.weight"] for w in (a, b, a)])
    ids = tokens(tmp_path / "a.gguf", "the sun and the moe is red")
    with localmoe.load(str(tmp_path / "out.gguf"), cache_type_k="f32", cache_type_v="f32") as model:
        assert (model.config.n_expert, model.config.n_expert_used) == (3, 2)
        got = model.eval(ids)
        wanted = naive_model(weights, model.config, ids)
    assert nmse(got.logits, wanted.logits) < 1e-9
    assert np.array_equal(got.experts, wanted.experts)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_quantized_experts_are_stacked_byte_for_byte(tmp_path: Path, kind: str) -> None:
    models(tmp_path, type=kind)
    built = make(tmp_path, None if kind != "F16" else "F16")
    assert built.written.file_type == ("COPY" if kind != "F16" else "F16")
    with (
        open_gguf(tmp_path / "out.gguf") as out,
        open_gguf(tmp_path / "a.gguf") as a,
        open_gguf(tmp_path / "b.gguf") as b,
    ):
        for i in range(2):
            for part in ("gate", "up", "down"):
                parts = [source.raw(f"blk.{i}.ffn_{part}.weight") for source in (a, b, a)]
                stack = f"blk.{i}.ffn_{part}_exps.weight"
                assert out.tensors[stack].type.name == kind
                assert np.array_equal(out.raw(stack), np.concatenate(parts))
            assert np.array_equal(out.raw(f"blk.{i}.attn_q.weight"), a.raw(f"blk.{i}.attn_q.weight"))
        assert np.array_equal(out.raw("output.weight"), a.raw("output.weight"))


def floats(opened: GGUFFile, name: str) -> np.ndarray:
    info = opened.tensors[name]
    return gguf.quants.dequantize(opened.raw(name).reshape(info.shape[0], -1), info.type).reshape(info.shape)


def changed(folder: Path, file_type: str | None, options: Mapping[str, Any] | None = None, **second: Any) -> np.ndarray:
    """What expert 1 became beside b.gguf's own matrices: (2, D x F) for gate and down of layer 0, as float32."""
    experts = [
        {"source_model": "a.gguf", "positive_prompts": ["the"]},
        {"source_model": "b.gguf", "positive_prompts": ["sun"]} | second,
    ]
    make(folder, file_type, options, experts=experts, gate_mode="random")
    with open_gguf(folder / "out.gguf") as out, open_gguf(folder / "b.gguf") as b, open_gguf(folder / "a.gguf") as a:
        pairs = []
        for kind in ("gate", "down"):
            stack = floats(out, f"blk.0.ffn_{kind}_exps.weight")
            own = floats(a, f"blk.0.ffn_{kind}.weight")
            assert np.abs(stack[0] - own).max() <= np.abs(own).max() / 250  # the other expert stays
            pairs.append((stack[1].ravel(), floats(b, f"blk.0.ffn_{kind}.weight").ravel()))
    return np.array(pairs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("second", [{"noise_scale": 1e300}, {"noise_scale": 3e38}, {"residual_scale": -1e300}])
def test_weights_that_are_no_longer_finite_are_refused_in_one_line(tmp_path: Path, second: dict[str, Any]) -> None:
    models(tmp_path)
    with pytest.raises(BadInputError, match=r"b\.gguf: blk\.0\.ffn_\w+\.weight: NaN or infinity"):
        changed(tmp_path, "F32", **second)


def test_noise_has_its_scale_and_follows_the_seed(tmp_path: Path) -> None:
    models(tmp_path)
    (gate, own), (down, own_down) = changed(tmp_path, "F32", {"seed": 5}, noise_scale=0.25)
    for noise in (gate - own, down - own_down):
        assert abs(noise.std() - 0.25) < 0.01
        assert abs(noise.mean()) < 0.02
    assert abs(np.corrcoef(gate - own, (down - own_down))[0, 1]) < 0.05
    assert np.array_equal(changed(tmp_path, "F32", {"seed": 5}, noise_scale=0.25)[0, 0], gate)
    assert not np.array_equal(changed(tmp_path, "F32", {"seed": 6}, noise_scale=0.25)[0, 0], gate)


def test_residual_scale_is_on_the_down_projection_alone(tmp_path: Path) -> None:
    models(tmp_path)
    (gate, own), (down, own_down) = changed(tmp_path, "F32", residual_scale=0.5)
    assert np.array_equal(gate, own)
    assert np.array_equal(down, own_down * np.float32(0.5))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_residual_scale_is_taken_before_dtype_in_the_sources_own_type(tmp_path: Path, dtype: str | None) -> None:
    """As mergekit does: 0.3 x in float16, and that in bfloat16 where the recipe says so."""
    models(tmp_path, type="F16")
    prompts = ({"positive_prompts": [word]} for word in ("the", "sun"))
    experts = [{"source_model": f"{name}.gguf", "residual_scale": 0.3} | next(prompts) for name in "ab"]
    make(tmp_path, gate_mode="random", experts=experts, **({"dtype": dtype} if dtype else {}))
    with open_gguf(tmp_path / "out.gguf") as out, open_gguf(tmp_path / "b.gguf") as b:
        wanted = (floats(b, "blk.0.ffn_down.weight") * np.float32(0.3)).astype(np.float16).astype(np.float32)
        if dtype == "bfloat16":
            rounded = gguf.quants.quantize(wanted, gguf.GGMLQuantizationType.BF16)
            wanted = gguf.quants.dequantize(rounded, gguf.GGMLQuantizationType.BF16)
        assert np.array_equal(floats(out, "blk.0.ffn_down_exps.weight")[1], wanted)


def test_dtype_rounds_float_weights(tmp_path: Path) -> None:
    models(tmp_path)
    make(tmp_path, dtype="bfloat16", gate_mode="random")
    with open_gguf(tmp_path / "out.gguf") as out:
        for name in ("blk.1.attn_v.weight", "blk.1.ffn_up_exps.weight", "blk.0.attn_norm.weight"):
            assert out.tensors[name].type.name == "F32"
            assert not (out.raw(name).view(np.uint32) & 0xFFFF).any()


def test_changing_quantized_weights_needs_the_flag(tmp_path: Path) -> None:
    models(tmp_path, type="Q4_1")
    with pytest.raises(UsageError, match=r"b\.gguf: blk\.0\.ffn_\w+\.weight: .* noise and scale.*--allow-requantize"):
        changed(tmp_path, None, noise_scale=0.01)
    with pytest.raises(UsageError, match="--allow-requantize"):
        make(tmp_path, "Q8_0")
    assert not (tmp_path / "out.gguf").exists()
    (gate, own), _ = changed(tmp_path, None, {"allow_requantize": True}, noise_scale=0.01)
    assert 0.008 < (gate - own).std() < 0.013  # Q8_0 adds next to nothing
    with open_gguf(tmp_path / "out.gguf") as out:
        assert {t.type.name for t in out.tensors.values() if "_exps" in t.name} == {"Q8_0"}
        assert out.tensors["blk.0.attn_q.weight"].type.name == "Q4_1"


def test_experts_of_two_types_need_the_flag(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a.gguf", **DENSE, type="Q8_0")
    write_tiny(tmp_path / "b.gguf", **DENSE, type="Q4_1")
    with pytest.raises(UsageError, match=r"joined with another type.*got Q4_1 and Q8_0"):
        make(tmp_path, None)


def test_labels_prompts_and_counts_are_in_the_file(tmp_path: Path) -> None:
    models(tmp_path)
    make(tmp_path)
    with open_gguf(tmp_path / "out.gguf") as out:
        assert out.metadata["localmoe.expert.labels"] == ["red", PROMPTS[1][0], PROMPTS[2][0]]
        prompts = [json.loads(entry) for entry in out.metadata["localmoe.expert.prompts"]]
        assert prompts[1] == {"positive": PROMPTS[1], "negative": NEGATIVE}
        assert out.metadata["localmoe.expert.sources"] == ["a.gguf", "b.gguf", "a.gguf"]
        assert out.metadata["localmoe.router.gate_mode"] == "hidden"
        assert (out.metadata["llama.expert_count"], out.metadata["llama.expert_used_count"]) == (3, 2)
        assert out.metadata["general.name"] == "tiny frankenMoE 3x"
    make(tmp_path, name="three\nof a kind")
    with open_gguf(tmp_path / "out.gguf") as out:
        assert out.metadata["general.name"] == "three of a kind"


# --- refusals ---

DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"n_layer": 3}, "llama.block_count: cannot be merged with the base, got 3, expected 2, from"),
    ({"n_embd": 128}, "llama.embedding_length: .*got 128, expected 64"),
    ({"n_ff": 128}, "llama.feed_forward_length: .*got 128, expected 96"),
    ({"n_head": 8}, "llama.attention.head_count: .*got 8, expected 4"),
    ({"n_head_kv": 4}, "llama.attention.head_count_kv: .*got 4, expected 2"),
    ({"vocab": "bpe"}, r"tokenizer.ggml.tokens: .*got \d+ of \d+ tokens are the base's, expected at least half of \d+"),
    ({"n_expert": 4}, "llama.expert_count: is a mixture of experts already"),
]


@pytest.mark.parametrize(("fields", "message"), DIFFERENT, ids=[next(iter(f)) for f, _ in DIFFERENT])
def test_models_that_differ_are_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_tiny(tmp_path / "a.gguf", **DENSE)
    write_tiny(tmp_path / "b.gguf", **(DENSE | fields))
    with pytest.raises(BadInputError, match=message) as raised:
        make(tmp_path)
    assert raised.value.file == str(tmp_path / "b.gguf")


@pytest.mark.parametrize("problem", ["nan", "empty prompt", "target"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, problem: str) -> None:
    models(tmp_path, vocab="bpe")
    changes: dict[str, Any] = {}
    if problem == "nan":
        broken = tiny_weights(**DENSE, vocab="bpe", seed=7)["blk.1.ffn_up.weight"]
        broken[3, 5] = np.nan
        write_tiny(tmp_path / "b.gguf", **DENSE, vocab="bpe", seed=7, extra_tensors={"blk.1.ffn_up.weight": broken})
    if problem == "target":
        changes["base_model"] = "out.gguf"
        write_tiny(tmp_path / "out.gguf", **DENSE, vocab="bpe")
    else:
        (tmp_path / "out.gguf").write_bytes(b"old")
    if problem == "empty prompt":
        changes["experts"] = [{"source_model": "a.gguf", "positive_prompts": [p]} for p in ("", "x")]
        for name in ("a", "b"):
            write_tiny(tmp_path / f"{name}.gguf", **DENSE, vocab="bpe", drop_metadata=["tokenizer.ggml.bos_token_id"])
    before = (tmp_path / "out.gguf").read_bytes()
    names = sorted(p.name for p in tmp_path.iterdir())
    wanted = {
        "nan": "blk.1.ffn_up_exps.weight: NaN or infinity at index",
        "empty prompt": r"experts\[0\].positive_prompts\[0\]: the prompt has no tokens",
        "target": "input and output are the same file",
    }
    with pytest.raises(LocalMoeError, match=wanted[problem]):
        make(tmp_path, **changes)
    assert (tmp_path / "out.gguf").read_bytes() == before
    assert sorted({*(p.name for p in tmp_path.iterdir())} - {"recipe.yml"}) == names


def test_memory_that_is_short_is_said_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the copy that runs, which has no name."""
    models(tmp_path)
    monkeypatch.setattr("localmoe.model.memory.available_memory", lambda: 1)
    with pytest.raises(MemoryLimitError, match=rf"^{tmp_path}/a\.gguf: context \d+: the cache .* does not fit"):
        make(tmp_path)


def test_a_dry_run_checks_and_writes_nothing(tmp_path: Path) -> None:
    models(tmp_path)
    built = make(tmp_path, "Q8_0", {"dry_run": True})
    assert built.router is None
    assert built.written.n_bytes > 0
    assert not (tmp_path / "out.gguf").exists()
