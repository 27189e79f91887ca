"""Perplexity by chunks and the file of log-probabilities, against plain arithmetic on the model's logits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import localmoe
from localmoe.cli import main
from localmoe.cli.perplexity import report
from localmoe.engine.divergence import (
    Divergence,
    base_bytes,
    compare,
    decode_rows,
    encode_rows,
    open_base,
    row_words,
    write_base,
)
from localmoe.engine.perplexity import cut_chunks, perplexity, score
from localmoe.errors import BadInputError, UsageError
from tests.tiny import write_tiny

N_CTX = 24
TEXT = "the red sun is in the day and he is one of the moe expert hello to it " * 8


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "m.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[localmoe.Model]:
    with localmoe.load(str(path), n_ctx=N_CTX, n_threads=2) as opened:
        yield opened


def log_probabilities(model: localmoe.Model, chunk: np.ndarray) -> np.ndarray:
    """float64 log p of a chunk's scored tokens, (n, V), by evaluating it whole."""
    ids = [model.tokenizer.bos, *chunk[1:].tolist()]
    logits = model.eval(ids).logits.astype(np.float64)[N_CTX // 2 : N_CTX - 1]
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_perplexity_is_that_of_the_second_half_of_each_chunk(model: localmoe.Model) -> None:
    chunks = cut_chunks(model.tokenize(TEXT), N_CTX, 3)
    expected = []
    for chunk in chunks:
        log_p = log_probabilities(model, chunk)
        expected += [-log_p[i, token] for i, token in enumerate(chunk[N_CTX // 2 + 1 :])]
    estimates = list(perplexity(model, chunks))
    assert [n for n, _ in estimates] == [1, 2, 3]
    last = estimates[-1][1]
    assert last.n_tokens == len(expected) == 3 * (N_CTX - 1 - N_CTX // 2)
    assert last.ppl == pytest.approx(math.exp(np.mean(expected)), rel=1e-5)
    spread = np.std(expected) / math.sqrt(len(expected) - 1)
    assert last.ppl_error == pytest.approx(last.ppl * spread, rel=1e-4)


def test_logits_come_in_parts_where_they_are_large(model: localmoe.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = cut_chunks(model.tokenize(TEXT), N_CTX, 2)
    whole = [part.logits.copy() for part in score(model, chunks)]
    monkeypatch.setattr("localmoe.engine.perplexity._LOGIT_BYTES", 4 * 4 * model.config.n_vocab)
    parts = [(part.chunk, part.logits.copy(), part.targets) for part in score(model, chunks)]
    assert max(len(logits) for _, logits, _ in parts) == 4
    np.testing.assert_allclose(np.concatenate([p for _, p, _ in parts]), np.concatenate(whole), atol=2e-4)
    np.testing.assert_array_equal(np.concatenate([t for _, _, t in parts]), chunks[:, N_CTX // 2 + 1 :].reshape(-1))


def test_a_short_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"too short .* got 47 tokens, expected >= 48"):
        cut_chunks(list(range(47)), N_CTX)


@pytest.mark.parametrize("n_vocab", [7, 8])
def test_a_row_keeps_log_probabilities_within_half_a_step(n_vocab: int) -> None:
    """By the format: 16 nats below the top in 65535 steps, an odd vocabulary padded by one word."""
    logits = np.random.default_rng(0).normal(0, 3, (5, n_vocab)).astype(np.float32)
    logits[1] = 2.5  # all alike: no scale
    logits[2, 0] = -40.0  # beyond the range
    rows = encode_rows(logits)
    assert rows.shape == (5, row_words(n_vocab))
    assert row_words(7) == row_words(8) == 12
    top = logits.max(axis=1, keepdims=True).astype(np.float64)
    log_sum = np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    expected = np.maximum(logits - top, -16) - log_sum
    np.testing.assert_allclose(decode_rows(rows, n_vocab), expected, atol=16 / 65535 / 2 + 3e-6)


def test_a_model_against_itself_and_with_fewer_experts(model: localmoe.Model, tmp_path: Path) -> None:
    chunks = cut_chunks(model.tokenize(TEXT), N_CTX, 3)
    base = tmp_path / "base.kld"
    written: list[bytes] = []
    *_, (_, estimate) = write_base(model, chunks, written.append)
    base.write_bytes(b"".join(written))
    assert base.stat().st_size == base_bytes(chunks, model.config.n_vocab)
    *_, (_, same) = compare(model, open_base(base))
    assert same().kld == pytest.approx(0, abs=1e-4)
    assert same().ppl == pytest.approx(estimate.ppl, rel=1e-6)
    assert same().same_top == 100.0
    expected, reference = [], [log_probabilities(model, chunk) for chunk in chunks]
    model.session().route(n_expert_used=1)
    try:
        *_, (n, less) = compare(model, open_base(base))
    finally:
        model.session().route()
    for chunk, p in zip(chunks, reference, strict=True):
        ids = [model.tokenizer.bos, *chunk[1:].tolist()]
        logits = model.eval(ids, n_expert_used=1).logits.astype(np.float64)[N_CTX // 2 : N_CTX - 1]
        q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected += ((np.exp(p) * (p - q)).sum(axis=1)).tolist()
    assert n == 3
    assert less().kld == pytest.approx(np.mean(expected), rel=2e-3)
    assert less().kld_max == pytest.approx(max(expected), rel=2e-3)
    assert less().kld_quantiles["Median"] == pytest.approx(np.median(expected), rel=1e-2)
    check_differences(less())


def check_differences(d: Divergence) -> None:
    """PPL(Q)-PPL(base) and its error follow from the other figures (perplexity.cpp, kl_divergence)."""
    assert d.ppl_difference == pytest.approx(d.ppl - d.ppl_base)
    shared = d.ln_ppl_correlation / 100 * d.ppl_error * d.ppl_base_error
    expected = math.sqrt(d.ppl_error**2 + d.ppl_base_error**2 - 2 * shared)
    assert d.ppl_difference_error == pytest.approx(expected, rel=1e-6)


def test_the_report_has_llama_perplexitys_lines(model: localmoe.Model, tmp_path: Path) -> None:
    """Names as perplexity.cpp prints them, in its order."""
    written: list[bytes] = []
    list(write_base(model, cut_chunks(model.tokenize(TEXT), N_CTX, 1), written.append))
    (tmp_path / "base").write_bytes(b"".join(written))
    *_, (_, same) = compare(model, open_base(tmp_path / "base"))
    names = [line.split(":")[0] for line in report(same()) if ":" in line]
    assert names[:6] == [
        "Mean PPL(Q)                   ", "Mean PPL(base)                ", "Cor(ln(PPL(Q)), ln(PPL(base)))",
        "Mean ln(PPL(Q)/PPL(base))     ", "Mean PPL(Q)/PPL(base)         ", "Mean PPL(Q)-PPL(base)         ",
    ]  # fmt: skip
    quantiles = ["99.9%", "99.0%", "95.0%", "90.0%", "Median", "10.0%", " 5.0%", " 1.0%", " 0.1%"]
    assert names[6:18] == [f"{name:<8}KLD" for name in ("Mean", "Maximum", *quantiles, "Minimum")]
    quantiles[4:5] = ["75.0%", "Median", "25.0%"]
    assert names[18:32] == [f"{name:<8}Δp" for name in ("Mean", "Maximum", *quantiles, "Minimum")]
    assert names[32:] == ["RMS Δp    ", "Same top p"]


def damaged(data: bytes) -> dict[str, tuple[bytes, str]]:
    head = np.frombuffer(data[8:20], "<i4").tolist()
    huge = np.array([head[0], head[1], 1 << 30], "<i4").tobytes()
    token = np.array([1 << 20], "<i4").tobytes()
    return {
        "other": (b"GGUF" + data[4:], "is not a file of log-probabilities"),
        "empty": (b"", "is not a file of log-probabilities"),
        "short": (data[:-1], "is not whole"),
        "long": (data + b"\0", "is not whole"),
        "counts": (data[:8] + huge + data[20:], "is not whole"),
        "negative": (data[:8] + b"\xff" * 12 + data[20:], "impossible sizes"),
        "token": (data[:20] + token + data[24:], "tokens outside the vocabulary"),
    }


@pytest.mark.parametrize("case", ["other", "empty", "short", "long", "counts", "negative", "token"])
def test_a_damaged_base_is_refused(model: localmoe.Model, tmp_path: Path, case: str) -> None:
    parts: list[bytes] = []
    list(write_base(model, cut_chunks(model.tokenize(TEXT), N_CTX, 1), parts.append))
    data, reason = damaged(b"".join(parts))[case]
    (tmp_path / "base").write_bytes(data)
    with pytest.raises(BadInputError, match=reason):
        open_base(tmp_path / "base")


def test_the_command_writes_a_base_and_compares(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, base = tmp_path / "text", tmp_path / "base"
    text.write_text(TEXT)
    command = ["perplexity", "-m", str(path), "-c", str(N_CTX), "-f", str(text)]
    assert main([*command, "--chunks", "3", "--kl-divergence-base", str(base)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Final estimate: PPL = ")
    assert err.startswith("[1]")
    assert main([*command, "--chunks", "3", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert f"PPL = {alone['ppl']:.4f} +/- {alone['ppl_error']:.5f}" in out
    again = ["perplexity", "-m", str(path), "--kl-divergence", "--kl-divergence-base", str(base)]
    assert main([*again, "--experts-used", "1"]) == 0
    assert "Mean    KLD: " in capsys.readouterr().out
    assert main([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same_top"] == 100.0
    before = base.read_bytes()
    assert main([*command, "--kl-divergence-base", str(path)]) == 2
    assert main([*again, "-f", str(text)]) == 2
    assert main(["perplexity", "-m", str(path)]) == 2
    assert base.read_bytes() == before
