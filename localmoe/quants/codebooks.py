"""The code books of the IQ types and MXFP4, from gguf-py: what an index in a block stands for.

Source: ggml-common.h, `iq2xxs_grid` ... `iq1s_grid`, `ksigns_iq2xs`, `kvalues_iq4nl`, `kvalues_mxfp4`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np


def _grid(owner: Any) -> np.ndarray:
    """int8 (entries, elements)."""
    owner.init_grid()
    return np.asarray(owner.grid).reshape(owner.grid_shape).astype(np.int8)


@cache
def grid(name: str) -> np.ndarray:
    """The grid of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S or IQ1_S (which IQ1_M shares), int8 (entries, 8 or 4)."""
    from gguf import quants

    return _grid(getattr(quants, name))


NONLINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""The 16 values of IQ4_NL and IQ4_XS."""

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""The 16 values of MXFP4, doubled."""

SIGNS = np.array([i | (i.bit_count() % 2) << 7 for i in range(128)], np.uint8)
"""Eight signs from seven: the last makes the number of minus signs even."""
