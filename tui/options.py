"""What the app is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmoe.experts.recording import Recording


@dataclass(frozen=True)
class AppOptions:
    """Keywords: `load` for `localmoe.load`, `sampling` for every `model.chat`; `system` is the system prompt.

    `saved` is a run to show differences from.
    """

    load: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    saved: Recording | None = None
