"""Rows of the token embedding as float32; those of single tokens are kept for a while."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from localmoe.model.weights import Weight
from localmoe.quants.decode import decode

KEPT_BYTES = 8 << 20


class Embeddings:
    """Decodes rows of `token_embd` (V, D): one takes as long as a thin layer, and texts repeat their tokens."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        self._most = max(KEPT_BYTES // (4 * weight.cols), 1)
        self._kept: dict[int, npt.NDArray[np.float32]] = {}

    def rows(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Those of checked tokens (T,), as (T, D)."""
        return decode(self._weight.type, self._weight.data[ids])

    def row(self, token: int) -> npt.NDArray[np.float32]:
        """One checked token's, (D,), to be read only."""
        row = self._kept.get(token)
        if row is None:
            if len(self._kept) >= self._most:
                self._kept.clear()
            row = self._kept[token] = decode(self._weight.type, self._weight.data[token : token + 1])[0]
        return row
