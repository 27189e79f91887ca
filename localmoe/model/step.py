"""What goes into a step of the forward pass besides tokens, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localmoe.errors import LocalMoeError
from localmoe.model.plan import BAD_LOGITS, INTERRUPTED


@dataclass(frozen=True)
class RoutingRules:
    """What a step's router may choose: of_expert (L, E) int32, -1 never, 0 freely, 1 always; limits (L,) int32, experts
    of a token at most; a weight below `threshold` is dropped. Contiguous; at least one expert a layer is not -1.
    """

    of_expert: npt.NDArray[np.int32]
    limits: npt.NDArray[np.int32]
    threshold: float


class Interrupted(Exception):
    """A step of many tokens was ended from outside before its last layer; nothing of it counts."""


def failure(failed_layer: int) -> Exception:
    """What a step's `failed_layer` says: Interrupted, or LocalMoeError about damaged weights."""
    if failed_layer == INTERRUPTED:
        return Interrupted()
    if failed_layer == BAD_LOGITS:
        return LocalMoeError("the model gave logits that are not finite: the weights are damaged")
    return LocalMoeError(
        f"the router of layer {failed_layer - 1} gave scores that are not finite: the weights are damaged"
    )


@dataclass(frozen=True)
class StepResult:
    """logits: (n_out, V) float32. experts, weights: (T, L, K). router: (T, L, E). hidden: (L + 1, T, D) or None.

    All are views of buffers that the next step overwrites.
    """

    logits: npt.NDArray[np.float32]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    router: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32] | None
