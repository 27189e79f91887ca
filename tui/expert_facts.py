"""What is shown of a model's experts must know of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ExpertFacts:
    """Labels are () or one a expert, expert_bytes (L,) of one expert or None."""

    n_layer: int
    n_expert: int
    n_used: int
    labels: tuple[str, ...] = ()
    expert_bytes: NDArray[np.int64] | None = None
