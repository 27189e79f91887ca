"""Plain words about routers, from rows and recordings made by hand."""

from __future__ import annotations

import numpy as np

from localmoe.experts.health import layer_health, lines, verdict
from tests.experts.recordings import recording


def test_what_is_found_by_hand() -> None:
    """Layer 0: rows 0 and 2 parallel, always {0, 1}. Layer 1: orthogonal rows, every expert reached, sets vary."""
    rows = np.stack([np.array([[1, 0], [0, 1], [2, 0.01]]), np.eye(3)[:, :2] + [[0, 0], [0, 0], [-1, -1]]])
    made = recording([[[0, 1], [0, 1]], [[1, 0], [2, 1]], [[0, 1], [0, 2]]], n_expert=3)
    first, second = layer_health(rows.astype(np.float32), made)
    assert first.closest == (0, 2)
    assert first.alike == ((0, 2),)
    assert first.unreached == (2,)
    assert (first.usual_set, first.usual_share) == ((0, 1), 1.0)
    assert second.alike == ()
    assert second.unreached == ()
    assert second.usual_share == 1 / 3
    text = lines([first, second], 3, 2, 3)
    assert text[0].startswith("rows: nearly alike in 1 of 2 layers (above 0.99): experts 0 and 2")
    assert text[1] == "reach: 1 of 6 experts were chosen by none of 3 tokens (layer 0: 2)"
    assert text[2].startswith(
        "choice: 1 of 2 layers hardly chooses: the same for 90% of tokens or more (layer 0: 0 and 1)"
    )


def test_verdicts() -> None:
    """Nothing changes when shuffled; it changes but half the layers do not choose; it changes and they choose."""
    rows = np.stack([np.eye(3, 2), np.eye(3, 2)]).astype(np.float32)
    varied = layer_health(rows, recording([[[0], [0]], [[1], [1]], [[2], [2]]], n_expert=3))
    fixed = layer_health(rows, recording([[[0], [0]], [[0], [1]], [[0], [2]]], n_expert=3))
    assert "hardly matters" in verdict(varied, 0.001)
    assert "hardly tells texts apart" in verdict(fixed, 1.0)
    assert "the choice matters" in verdict(varied, 1.0)
