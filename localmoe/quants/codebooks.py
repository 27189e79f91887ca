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


@cache
def nonlinear() -> np.ndarray:
    """The 16 values of IQ4_NL and IQ4_XS, int8."""
    from gguf import quants

    return np.array(quants.IQ4_NL.kvalues, np.int8)


@cache
def e2m1() -> np.ndarray:
    """The 16 values of MXFP4, doubled, int8."""
    from gguf import quants

    return np.array(quants.MXFP4.kvalues, np.int8)


SIGNS = np.array([i | (i.bit_count() % 2) << 7 for i in range(128)], np.uint8)
"""Eight signs from seven: the last makes the number of minus signs even."""
