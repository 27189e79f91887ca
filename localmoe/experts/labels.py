"""What a file calls its experts.

A frankenMoE's recipe names an expert, or its first prompt does, or else its source. The label does not say what the
expert is good at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS_KEY = "localmoe.expert.labels"


def expert_labels(metadata: Mapping[str, Any], n_expert: int) -> tuple[str, ...]:
    """One text an expert from `localmoe.expert.labels` (array of strings), or () where the file has no usable one.

    The texts are as the file has them: pass them through `localmoe.text.visible` before showing them.
    """
    labels = metadata.get(LABELS_KEY)
    if not isinstance(labels, (list, tuple)) or len(labels) != n_expert:
        return ()
    if not all(isinstance(label, str) for label in labels) or not any(labels):
        return ()
    return tuple(labels)
