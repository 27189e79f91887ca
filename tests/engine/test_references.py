"""The runtime against logits recorded from transformers and llama.cpp (tests/parity/runtime_parity.py --record)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.naive_model import nmse
from tests.parity.runtime_parity import LLAMA_TYPES, MARGIN, TRANSFORMERS, evaluate, margins, write_initialised
from tests.tiny import write_tiny

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_float32_logits_and_experts_equal_transformers(tmp_path: Path, name: str) -> None:
    wanted = np.load(DATA / f"transformers-{name}.npz")
    got = evaluate(write_tiny(tmp_path / "m.gguf", **TRANSFORMERS[name]), wanted["ids"], "f32")
    assert nmse(got.logits[-8:], wanted["logits"]) <= 1e-9
    np.testing.assert_array_equal(got.experts, wanted["experts"])


@pytest.mark.parametrize("kind", LLAMA_TYPES)
def test_quantized_logits_equal_llama_cpps(tmp_path: Path, kind: str) -> None:
    """Near-ties in routing may fall either way, and are left out."""
    wanted = np.load(DATA / f"llama-{kind}.npz")
    write_initialised(tmp_path / "m.gguf", tmp_path / "q.gguf", kind)
    got = evaluate(tmp_path / "q.gguf", wanted["ids"], "f16")
    clear = margins(got)[-8:] > MARGIN
    assert clear.sum() >= 4
    assert nmse(got.logits[-8:][clear], wanted["logits"][clear]) <= 1e-4
