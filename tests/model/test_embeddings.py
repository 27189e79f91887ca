"""Rows of the embedding, kept or decoded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import localmoe
from localmoe.model import embeddings
from localmoe.model.embeddings import Embeddings
from tests.tiny import write_tiny


@pytest.mark.parametrize("kept_bytes", [0, 1000, 8 << 20])
def test_a_row_is_the_same_however_often_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(embeddings, "KEPT_BYTES", kept_bytes)
    with localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=32, n_threads=1) as model:
        rows = Embeddings(model._session._runner.weights.token_embd)
        ids = np.array([3, 7, 3, 9, 200, 7, 3, 11, 12, 13, 9], np.int32)
        wanted = rows.rows(ids)
        for _ in range(2):
            np.testing.assert_array_equal([rows.row(int(token)) for token in ids], wanted)
        assert len(rows._kept) <= max(kept_bytes // wanted[0].nbytes, 1)
