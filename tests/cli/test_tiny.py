"""The packaged model: small enough, whole, and a trained router."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

import localmoe
from localmoe.cli import main
from localmoe.cli.default_model import tiny_model_path

SCRIPTURE = """And it came to pass in those days, that there went out a decree, and the people said unto him, \
Behold, thou art the king of Israel, and we will go with thee into the land which the LORD giveth us."""


def test_it_is_at_most_14_mb_and_runs_offline_at_once() -> None:
    assert tiny_model_path().stat().st_size <= 14_000_000
    with localmoe.load(str(tiny_model_path()), n_threads=1) as model:
        assert (model.config.n_layer, model.config.n_expert, model.config.n_expert_used) == (6, 8, 2)
        said = "".join(s.text for s in model.generate("And God said unto", max_tokens=12, temperature=0.0))
        assert said.strip()
        ids = model.tokenize(SCRIPTURE)
        logits = model.eval(ids).logits[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    nll = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    assert math.exp(nll.mean()) < 60  # of 4,096 tokens


def test_tiny_and_a_model_are_one_too_many(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tui", "--tiny", "-m", "m.gguf"]) == 2
    assert "two models given" in capfd.readouterr().err


def test_the_wordnet_licence_is_whole_where_the_model_is() -> None:
    """Its terms ask for the notice on all copies: WordNet 3.0's LICENSE by the start of its sha256."""
    text = tiny_model_path().with_name("tiny-moe-licences.txt").read_text(encoding="utf-8")
    notice = " ".join(text[text.index("WordNet Release 3.0") : text.index("=== CPython")].split())
    assert "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in notice
    assert hashlib.sha256(notice.encode()).hexdigest()[:16] == "6c3c1815039b91dc"
