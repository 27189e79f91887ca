"""A trained MoE: tiny-moe converts, and its perplexity on held-out texts is the one transformers gives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import localmoe
from localmoe.converters.huggingface import load_source
from localmoe.converters.pipeline import write_model

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "tiny-moe"
WINDOW = 256
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="tiny-moe is not beside the repository")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> localmoe.Model:
    path = tmp_path_factory.mktemp("tiny-moe") / "tiny-moe.gguf"
    write_model(load_source(FOLDER), path, "F32")
    return localmoe.load(str(path), n_ctx=WINDOW, cache_type_k="f32", cache_type_v="f32")


def recorded() -> dict[str, tuple[int, float]]:
    """Windows and perplexity by text, from the model's README."""
    rows = re.findall(r"^\| (heldout-\S+) \| (\d+) \| ([\d.]+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    return {name: (int(windows), float(perplexity)) for name, windows, perplexity in rows}


def window_loss(logits: np.ndarray, ids: list[int]) -> float:
    """Summed negative log likelihood of all tokens but the first."""
    x = logits[:-1].astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return float((np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(ids) - 1), ids[1:]]).sum())


@pytest.mark.parametrize("text", ["scripture", "jargon", "glosses", "python"])
def test_perplexity_equals_transformers(model: localmoe.Model, text: str) -> None:
    name = f"heldout-{text}.txt"
    windows, wanted = recorded()[name]
    ids = model.tokenize((FOLDER / name).read_text(encoding="utf-8"), add_bos=False)
    starts = range(0, len(ids) - WINDOW + 1, WINDOW)
    assert len(starts) == windows
    loss = sum(window_loss(model.eval(ids[s : s + WINDOW]).logits, ids[s : s + WINDOW]) for s in starts)
    assert np.exp(loss / (windows * (WINDOW - 1))) == pytest.approx(wanted, rel=1e-3)


def test_a_trained_router_uses_every_expert_and_tells_texts_apart(model: localmoe.Model) -> None:
    shares = []
    for text in ("scripture", "python"):
        ids = model.tokenize((FOLDER / f"heldout-{text}.txt").read_text(encoding="utf-8"), add_bos=False)[:WINDOW]
        experts = model.eval(ids).experts
        shares.append(np.stack([np.bincount(experts[:, layer].ravel(), minlength=8) for layer in range(6)]) / len(ids))
    assert (sum(shares) > 0).all()
    assert np.abs(shares[0] - shares[1]).sum(axis=1).max() > 0.5
