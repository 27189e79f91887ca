"""Importance matrices: sums of squared inputs against the naive model's, and the file the command writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.cli import main
from localmoe.converters.imatrix import read_imatrix
from localmoe.engine.importance import Collector
from localmoe.engine.perplexity import cut_chunks
from tests import naive_model
from tests.naive_model import silu
from tests.tiny import tiny_weights, write_tiny

N_CTX = 24
TEXT = "the red sun is in the day and he is one of the moe expert hello to it " * 8


def naive_inputs(
    fields: dict[str, Any], model: localmoe.Model, chunks: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> dict[str, np.ndarray]:
    """Sums of squares by tensor name, by running the naive model with its attention and mixture watched."""
    weights, config = tiny_weights(**fields), model.config
    found: dict[str, Any] = {}
    state = {"layer": 0}
    attend, mix = naive_model.attention, naive_model.mixture

    def add(name: str, index: int, row: np.ndarray, n: int) -> None:
        found.setdefault(f"blk.{state['layer']}.{name}.weight", np.zeros((n, row.size)))[index] += row**2

    def attention(x: np.ndarray, w: dict[str, np.ndarray], *rest: Any) -> np.ndarray:
        inner = attend(x, w | {"attn_output": np.eye(w["attn_output"].shape[1])}, *rest)
        for row, attended in zip(x, inner, strict=True):
            add("attn_q", 0, row, 1)
            add("attn_output", 0, attended, 1)
        return attend(x, w, *rest)

    def mixture(x: np.ndarray, w: dict[str, np.ndarray], ids: np.ndarray, probs: np.ndarray) -> np.ndarray:
        for t, row in enumerate(x):
            add("ffn_gate_inp", 0, row, 1)
            for e in ids[t]:
                add("ffn_up_exps", e, row, config.n_expert)
                hidden = silu(w["ffn_gate_exps"][e] @ row) * (w["ffn_up_exps"][e] @ row)
                add("ffn_down_exps", e, hidden, config.n_expert)
        state["layer"] = (state["layer"] + 1) % config.n_layer
        return mix(x, w, ids, probs)

    monkeypatch.setattr(naive_model, "attention", attention)
    monkeypatch.setattr(naive_model, "mixture", mixture)
    for chunk in chunks:
        naive_model.naive_model(weights, config, [model.tokenizer.bos, *chunk[1:].tolist()])
    return found


@pytest.mark.parametrize("n_threads", [1, 2])
def test_sums_and_counts_are_those_of_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    fields: dict[str, Any] = {"n_expert": 5}
    path = write_tiny(tmp_path / "m.gguf", **fields)
    with localmoe.load(str(path), n_ctx=N_CTX, n_threads=n_threads, cache_type_k="f32", cache_type_v="f32") as model:
        chunks = cut_chunks(model.tokenize(TEXT), N_CTX, 2)
        collector = Collector(model)
        assert list(collector.run(chunks)) == [1, 2]
        expected = naive_inputs(fields, model, chunks, monkeypatch)
        routed = [model.eval([model.tokenizer.bos, *chunk[1:].tolist()]).experts for chunk in chunks]
    found = collector.matrices()
    assert len(found) == 2 * 8
    for name, sums in expected.items():
        np.testing.assert_allclose(found[name].sums, sums, rtol=1e-3, atol=1e-5, err_msg=name)
    for layer in range(2):
        counts = np.bincount(np.concatenate(routed)[:, layer].reshape(-1), minlength=5)
        for stem in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            np.testing.assert_array_equal(found[f"blk.{layer}.{stem}.weight"].counts, counts)
        for stem in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp"):
            assert found[f"blk.{layer}.{stem}.weight"].counts.tolist() == [2 * N_CTX]


def test_batches_of_one_token_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    sums = []
    for size in (512, 1):
        with localmoe.load(str(path), n_ctx=N_CTX, n_threads=2, cache_type_k="f32", cache_type_v="f32") as model:
            monkeypatch.setattr(type(model._runner), "batch_size", lambda self, n_used, size=size: size)
            collector = Collector(model)
            list(collector.run(cut_chunks(model.tokenize(TEXT), N_CTX, 1)))
            sums.append(collector.matrices())
    for name, one in sums[0].items():
        np.testing.assert_allclose(sums[1][name].sums, one.sums, rtol=1e-3, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(sums[1][name].counts, one.counts)


def test_a_dense_model_has_one_count_a_matrix(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_expert=0)
    with localmoe.load(str(path), n_ctx=N_CTX) as model:
        collector = Collector(model)
        list(collector.run(cut_chunks(model.tokenize(TEXT), N_CTX, 3)))
    found = collector.matrices()
    assert {name.split(".")[2] for name in found} == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
    }  # fmt: skip
    assert all(one.counts.tolist() == [3 * N_CTX] for one in found.values())
    assert collector.unseen() == []


def test_the_command_writes_a_matrix_and_names_experts_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text, out = write_tiny(tmp_path / "m.gguf", favoured=3, n_expert_used=1), tmp_path / "text", tmp_path / "im"
    text.write_text(TEXT)
    command = ["imatrix", "-m", str(path), "-f", str(text), "-c", str(N_CTX), "--chunks", "3"]
    assert main([*command, "-o", str(out)]) == 0
    printed, said = capsys.readouterr()
    assert printed == f"{out}\n"
    assert "note: layer 0: no token of the text reached expert 0, 1, 2, 4, 5, 6, 7" in said
    matrix = read_imatrix(out)
    assert (matrix.datasets, matrix.chunk_count, matrix.chunk_size) == ((str(text),), 3, N_CTX)
    assert len(matrix.entries) == 16
    down = matrix.entries["blk.1.ffn_down_exps.weight"]
    assert down.counts.tolist() == [0, 0, 0, 3 * N_CTX, 0, 0, 0, 0]
    assert (down.sums[3] > 0).any()
    assert not down.sums[[0, 1, 2, 4, 5, 6, 7]].any()
    before = path.read_bytes()
    assert main([*command, "-o", str(path)]) == 2
    assert path.read_bytes() == before


def test_the_command_adds_matrices_up_and_leaves_chunks_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = write_tiny(tmp_path / "m.gguf"), tmp_path / "text"
    text.write_text(TEXT)
    out, total, rest = (str(tmp_path / name) for name in ("first.gguf", "both,2.gguf", "rest.dat"))
    command = ["imatrix", "-m", str(path), "-f", str(text), "-c", str(N_CTX), "--no-ppl"]
    assert main([*command, "--chunks", "2", "-o", out, "--output-frequency", "1"]) == 0
    assert main([*command, "--chunk", "2", "--chunks", "2", "-o", total, "--in-file", out]) == 0
    assert main([*command, "--chunks", "4", "-o", str(tmp_path / "whole.gguf")]) == 0
    added, whole = read_imatrix(Path(total)), read_imatrix(tmp_path / "whole.gguf")
    assert (added.chunk_count, added.datasets) == (4, (str(text), str(text)))
    for name, entry in whole.entries.items():
        np.testing.assert_array_equal(added.entries[name].counts, entry.counts)
        np.testing.assert_allclose(added.entries[name].sums, entry.sums, rtol=1e-5)
    joined = ["imatrix", "-c", str(N_CTX), "--in-file", f'{out},"{total}"', "--output-format", "dat", "-o", rest]
    assert main(joined) == 0
    assert read_imatrix(Path(rest)).chunk_count == 6
    before = Path(out).read_bytes()
    for arguments, said in {
        ("--chunk", "99", "-m", str(path), "-f", str(text)): "error: --chunk: leaves too little of the text",
        ("--in-file", out, "-o", out): f"error: {out}: input and output are the same file",
        ("--output-format", "x"): "error: --output-format: no such form, got 'x', expected gguf or dat",
        ("-m", str(path)): "error: a text is needed",
        ("-f", str(text)): "error: which model?",
        ("--in-file", out, "-c", "0"): "error: --ctx-size: the size of a chunk is needed",
        ("--process-output",): "error: No such option: --process-output",
    }.items():
        capsys.readouterr()
        assert main(["imatrix", "-o", str(tmp_path / "none"), "-c", str(N_CTX), *arguments]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    assert Path(out).read_bytes() == before
    assert not (tmp_path / "none").exists()
