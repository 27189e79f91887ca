"""The runtime against a float64 model written to be read, where routing can go wrong and where it must agree."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.errors import BadInputError, LocalMoeError, UsageError
from tests.naive_model import naive_model, nmse
from tests.tiny import tiny_weights, write_tiny

MODELS: dict[str, dict[str, Any]] = {
    "8 experts, top 2": {},
    "5 experts, top 2": {"n_expert": 5},
    "8 experts, top 3": {"n_expert_used": 3},
    "4 experts, top 1": {"n_expert": 4, "n_expert_used": 1},
    "64 experts, top 8": {"n_expert": 64, "n_expert_used": 8, "n_ff": 32},
    "all experts": {"n_expert": 3, "n_expert_used": 3},
    "dense": {"n_expert": 0},
    "tied": {"tied": True},
    "one KV head": {"n_head": 6, "n_head_kv": 1, "n_embd": 96},
    "many heads a KV head": {"n_head": 24, "n_head_kv": 2, "n_embd": 96},
    "as many KV heads": {"n_head_kv": 4},
    "odd sizes": {"n_embd": 60, "n_head": 3, "n_head_kv": 3, "n_ff": 50},
    "wide heads": {"n_embd_head": 40},
    "one expert takes all": {"favoured": 6},
    "scaled rotary": {"rope_freqs": tuple(np.linspace(1.0, 8.0, 8))},
}
IDS = np.random.default_rng(0).integers(3, 250, 70).tolist()


def weights_of(**fields: Any) -> dict[str, np.ndarray]:
    return tiny_weights(**fields)


def open_f32(path: Path, **options: Any) -> localmoe.Model:
    return localmoe.load(str(path), cache_type_k="f32", cache_type_v="f32", n_ctx=128, **options)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_routing_equal_the_naive_models(tmp_path: Path, name: str) -> None:
    fields = MODELS[name]
    with open_f32(write_tiny(tmp_path / "m.gguf", **fields), n_threads=2) as model:
        got = model.eval(IDS)
        wanted = naive_model(weights_of(**fields), model.config, IDS)
    assert nmse(got.logits, wanted.logits) < 1e-11
    if model.config.n_expert:
        np.testing.assert_array_equal(got.experts, wanted.experts)
        np.testing.assert_allclose(got.weights, wanted.weights, atol=1e-5)
        np.testing.assert_allclose(got.router, wanted.router, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_equals_the_batch(tmp_path: Path, name: str) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf", **MODELS[name]), n_threads=2) as model:
        batch = model.eval(IDS)
        session = model.session()
        session.reset()
        steps = [session.decode(token).logits[0].copy() for token in IDS]
    assert nmse(np.array(steps), batch.logits) < 1e-9


def test_hidden_states_are_the_residual_stream(tmp_path: Path) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model:
        hidden = model.hidden_states(IDS)
        wanted = naive_model(weights_of(), model.config, IDS).hidden
    assert hidden.shape == wanted.shape
    assert nmse(hidden, wanted) < 1e-11


def test_equal_router_scores_choose_the_lower_index(tmp_path: Path) -> None:
    zero = {f"blk.{i}.ffn_gate_inp.weight": np.zeros((8, 64), np.float32) for i in range(2)}
    with open_f32(write_tiny(tmp_path / "m.gguf", extra_tensors=zero)) as model:
        got = model.eval(IDS[:9])
    assert (got.experts == [0, 1]).all()
    np.testing.assert_allclose(got.weights, 0.5)


@pytest.mark.parametrize("n_used", [1, 4, 8])
def test_another_number_of_experts_for_one_request(tmp_path: Path, n_used: int) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model:
        got = model.eval(IDS, n_expert_used=n_used)
        wanted = naive_model(weights_of(), model.config, IDS, n_used)
        again = model.eval(IDS[:4])
    assert got.experts.shape == (len(IDS), 2, n_used)
    assert nmse(got.logits, wanted.logits) < 1e-11
    assert again.experts.shape[2] == 2


@pytest.mark.parametrize("n_used", [0, 9, -1])
def test_a_number_of_experts_out_of_range_is_a_usage_error(tmp_path: Path, n_used: int) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model, pytest.raises(UsageError, match="1 to 8"):
        model.eval(IDS, n_expert_used=n_used)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"])
def test_other_weight_types_run_on_what_they_decode_to(tmp_path: Path, kind: str) -> None:
    quantized_forward(tmp_path, kind, n_embd=64, n_ff=96)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K"])
def test_k_quants_run_on_what_they_decode_to(tmp_path: Path, kind: str) -> None:
    quantized_forward(tmp_path, kind, n_embd=256, n_ff=256)


@pytest.mark.parametrize("kind", ["IQ4_XS", "IQ3_S", "IQ2_S", "IQ1_M", "TQ2_0"])
def test_types_with_code_books_run_on_what_they_decode_to(tmp_path: Path, kind: str) -> None:
    quantized_forward(tmp_path, kind, n_embd=256, n_ff=256)


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_may_have_a_type_of_its_own(tmp_path: Path, tied: bool) -> None:
    """Mixes of types that no file type has, and an embedding and output of 16-bit floats."""
    types = {
        "ffn_gate_exps": "Q4_0", "ffn_up_exps": "Q4_1", "ffn_down_exps": "MXFP4", "attn_q": "IQ4_NL", "attn_k": "F16",
        "output.weight": "BF16", "token_embd": "BF16" if tied else "F16",
    }  # fmt: skip
    quantized_forward(tmp_path, "Q8_0", n_embd=64, n_ff=96, types=types, tied=tied)


def quantized_forward(tmp_path: Path, kind: str, **fields: Any) -> None:
    """Decoded weights in float64 give what the kernels give, up to int8 activations; both paths, routing forced."""
    from localmoe.gguf_file import open_gguf
    from localmoe.quants.decode import decode

    path = write_tiny(tmp_path / "m.gguf", type=kind, n_expert=2, n_layer=1, **fields)
    with open_gguf(path) as file:
        weights = {n: decode(t.type, file.raw(n)).reshape(t.shape) for n, t in file.tensors.items()}
    with open_f32(path) as model:
        wanted = naive_model(weights, model.config, IDS)
        batch = model.eval(IDS).logits
        session = model.session()
        session.reset()
        steps = np.array([session.decode(token).logits[0].copy() for token in IDS])
    bound = 1e-11 if kind in ("F16", "BF16") else 1e-3
    assert nmse(batch, wanted.logits) < bound
    assert nmse(steps, wanted.logits) < bound
    assert nmse(steps, batch) < 1e-5


def test_a_half_precision_cache_stays_close(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with open_f32(path) as full, localmoe.load(str(path), n_ctx=128) as half:
        assert nmse(half.eval(IDS).logits, full.eval(IDS).logits) < 1e-5


def test_the_same_tokens_for_any_number_of_threads(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", type="Q8_0")
    said = []
    for n_threads in (1, 2, 3):
        with localmoe.load(str(path), n_ctx=512, n_threads=n_threads) as model:
            said.append([step.token for step in model.generate(IDS, max_tokens=300, seed=7, ignore_eos=True)])
    assert len(said[0]) == 300
    assert said[0] == said[1] == said[2]


def test_what_the_cache_holds_of_a_prompt_is_not_computed_again(tmp_path: Path) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model:
        fresh = [s.token for s in model.generate(IDS[:40], max_tokens=5, temperature=0.0)]
        assert model.timings.n_cached == 0
        again = [s.token for s in model.generate(IDS[:40], max_tokens=5, temperature=0.0)]
        assert model.timings.n_cached == 39
        list(model.generate(IDS[:40], max_tokens=5, temperature=0.0, n_expert_used=3))
        assert model.timings.n_cached == 0
    assert fresh == again


def test_the_trace_holds_what_eval_returns(tmp_path: Path) -> None:
    """Experts and weights exactly, probabilities as a recording keeps them."""
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model:
        got = model.eval(IDS)
        seen = model.trace.read(model.trace.count - len(IDS))
    np.testing.assert_array_equal(seen.tokens, IDS)
    np.testing.assert_array_equal(seen.experts, got.experts)
    np.testing.assert_array_equal(seen.weights, got.weights)
    np.testing.assert_array_equal(seen.router, got.router.astype(np.float16))


def test_generation_stops_at_its_limit_its_stop_string_and_when_cancelled(tmp_path: Path) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model:
        steps = list(model.generate(IDS[:5], max_tokens=4, temperature=0.0, ignore_eos=True))
        assert [s.stop_reason for s in steps] == [None, None, None, "length"]
        said = "".join(s.text for s in steps)
        stopped = list(model.generate(IDS[:5], max_tokens=4, temperature=0.0, ignore_eos=True, stop=[said[2:4]]))
        assert stopped[-1].stop_reason == "stop"
        assert "".join(s.text for s in stopped) == said[: said.index(said[2:4])]
        cancel = threading.Event()
        running = model.generate(IDS[:5], temperature=0.0, ignore_eos=True, cancel=cancel)
        first = next(running)
        cancel.set()
        rest = list(running)
    assert first.stop_reason is None
    assert [(s.token, s.stop_reason) for s in rest] == [(-1, "cancelled")]


def test_a_full_context_is_said_and_nothing_is_cut(tmp_path: Path) -> None:
    with localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=32) as model:
        with pytest.raises(UsageError, match="prompt does not fit"):
            model.generate(IDS[:32])
        steps = list(model.generate(IDS[:20], temperature=0.0, ignore_eos=True))
        assert steps[-1].stop_reason == "context"
        assert model.session().tokens[:20] == IDS[:20]
        assert len(steps) == 13
        with pytest.raises(UsageError, match="context is full"):
            model.eval(IDS[:33])


@pytest.mark.parametrize("ids", [[-1], [10**6], []])
def test_token_ids_outside_the_vocabulary_never_reach_a_kernel(tmp_path: Path, ids: list[int]) -> None:
    with open_f32(write_tiny(tmp_path / "m.gguf")) as model, pytest.raises(UsageError):
        model.eval(ids)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("blk.1.ffn_gate_inp.weight", "router of layer 1"),
        ("blk.0.attn_v.weight", "router of layer 0"),  # and then the logits
        ("blk.0.ffn_down_exps.weight", "router of layer 1"),
        ("output_norm.weight", "logits"),
    ],
)
def test_damaged_weights_are_an_error_and_not_an_index(tmp_path: Path, name: str, where: str) -> None:
    damaged = weights_of()[name].copy()
    damaged.flat[::7] = np.nan
    with open_f32(write_tiny(tmp_path / "m.gguf", extra_tensors={name: damaged})) as model:
        with pytest.raises(LocalMoeError, match=rf"{where} .*not finite"):
            model.eval(IDS[:3])
        with pytest.raises(LocalMoeError, match=rf"{where} .*not finite"):
            list(model.generate(IDS[:3], max_tokens=2))


def test_a_type_that_does_not_run_is_refused_before_anything_else(tmp_path: Path) -> None:
    from gguf import GGUFValueType

    path = write_tiny(
        tmp_path / "m.gguf", extra_metadata={"general.architecture": ("gpt2", GGUFValueType.STRING, None)}
    )
    with pytest.raises(BadInputError, match="architecture"):
        localmoe.load(str(path))


def test_two_models_run_side_by_side(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with open_f32(path, n_threads=2) as a, open_f32(path, n_threads=2) as b:
        wanted = a.eval(IDS).logits
        results: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda m=m: results.append(m.eval(IDS).logits)) for m in (a, b)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all((r == wanted).all() for r in results)
