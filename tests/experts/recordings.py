"""Small recordings for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.experts.recording import Recording


def recording(experts: Any, n_expert: int = 4, **changed: Any) -> Recording:
    """A recording of one text with these choices (N, L, K), -1 unused, even weights."""
    chosen = np.array(experts, np.int32)
    n, n_layer, n_slot = chosen.shape
    used = np.maximum((chosen >= 0).sum(axis=2, keepdims=True), 1)
    fields: dict[str, Any] = {
        "tokens": np.arange(n, dtype=np.int32),
        "pieces": tuple(f" t{i}" for i in range(n)),
        "phase": np.zeros(n, np.int8),
        "starts": np.arange(n) == 0,
        "n_used": np.full((n, n_layer), n_slot, np.int32),
        "experts": chosen,
        "weights": np.where(chosen >= 0, 1.0 / used, 0.0).astype(np.float32),
        "router": None,
        "n_expert": n_expert,
        "expert_bytes": np.full(n_layer, 1000, np.int64),
        "model": "m.gguf",
        "settings": "top-2",
    }
    return Recording(**{**fields, **changed})
